# SPDX-License-Identifier: GPL-2.0-or-later
"""The work tree build/patched/src: the series as commits, to edit there."""
from __future__ import annotations

import json

from .base import Base, placeholders
from .common import Fail, Repo, say, slug, write
from .gitrepo import Git, dates
from .graft import commits, tip
from .origin import refresh_column
from .series import Change, Series, from_commit, raw_diff

BRANCH = "fork"


class WorkTree:
    def __init__(self, repo: Repo, base: Base) -> None:
        self.repo = repo
        self.base = base
        self.path = repo.work
        self.git = Git(repo.work)
        self.state_file = repo.build / "work.json"

    def state(self) -> dict[str, str]:
        """What the command last put there."""
        if self.path.exists() and self.state_file.exists():
            return json.loads(self.state_file.read_text())
        return {}

    def _record(self, series: Series, base: str, commit: str) -> None:
        write(self.state_file, json.dumps(
            {"series": series.hash(), "base": base, "commit": commit}))

    def edited(self, commit: str) -> str:
        """What a person did there since, in words; empty if nothing."""
        if busy := self.git.busy():
            return f"is in the middle of {busy}"
        if self.git.dirty():
            return "has uncommitted changes"
        return "" if self.git.head() == commit else "has commits of its own"

    def ready(self) -> None:
        """Brings the work tree to the series, unless it was edited."""
        base = self.base.commit()
        series = Series.load(self.repo)
        state = self.state()
        if state and state["series"] == series.hash() \
                and state["base"] == base:
            if edited := self.edited(state["commit"]):
                say(f"work tree: {edited}; built as it is (./fork refresh "
                    "writes commits back into patches/)")
            placeholders(self.path)
            return
        try:
            made = tip(commits(self.base.git(), base, series), base)
        except Fail as error:
            if state and state["base"] != base:
                old = state["base"][:12]
                raise Fail(
                    f"the series does not fit QEMU {self.base.version} as "
                    f"it is ({error}); rebase it in {self.path} with `git "
                    f"rebase --onto base {old}`, then run ./fork refresh"
                ) from None
            raise Fail(f"the series does not fit its base: {error}; see "
                       "./fork check") from None
        if not state and self.path.exists():
            # Made, but not recorded: ids are the same every time.
            if self.edited(made):
                raise Fail(f"{self.path} is not as this command made it, "
                           "and nothing says what is yours; move it away "
                           "and run again")
        elif not state:
            self._create(made)
        elif (edited := self.edited(state["commit"])) and not (
                edited.endswith("of its own") and self.git.tree("HEAD")
                == self.git.tree(made)):
            raise Fail(
                f"patches/ changed, and {self.path} {edited} too; either "
                "write the work tree over patches/ (./fork refresh --force) "
                "or drop the edits there (git reset --hard "
                f"{state['commit'][:12]}) and run again")
        else:
            self.git("reset", "-q", "--keep", made)
        self._record(series, base, made)
        placeholders(self.path)

    def _create(self, commit: str) -> None:
        stock = self.base.git()
        stock("worktree", "prune")
        partial = self.path.with_name(self.path.name + ".partial")
        stock("worktree", "add", "-q", "--force", "-B", BRANCH,
              str(partial), commit)
        stock("worktree", "move", str(partial), str(self.path))

    # --- Back into patches/ -----------------------------------------------

    def refresh(self, topic: str | None, force: bool) -> None:
        base = self.base.commit()
        before = Series.load(self.repo)
        state = self.state()
        if not state:
            raise Fail("there is no work tree to refresh from; run ./fork "
                       "build first")
        if state["series"] != before.hash() and not force:
            if not self.edited(state["commit"]):
                raise Fail("patches/ changed and the work tree did not: "
                           "./fork build brings it up to date")
            raise Fail("patches/ changed since the work tree was made from "
                       "it; ./fork refresh --force writes the work tree "
                       "over these changes")
        if busy := self.git.busy():
            raise Fail(f"{self.path} is in the middle of {busy}; finish or "
                       "abort it first")
        if dirty := self.git.dirty():
            raise Fail(f"{self.path} has uncommitted changes "
                       f"({', '.join(dirty[:3])}); commit them first")
        if not self.git.ok("merge-base", "--is-ancestor", base, "HEAD"):
            raise Fail(f"the commits in {self.path} are not on top of QEMU "
                       f"{self.base.version}; rebase them onto the branch "
                       "`base` first")
        self._autosquash(base)
        rows = [row.split() for row in self.git(
            "rev-list", "--reverse", "--parents", f"{base}..HEAD"
        ).splitlines()]
        for row in rows:
            if len(row) != 2:
                raise Fail(f"{row[0][:12]} is a merge; a series has none")
        found = [from_commit(self.git, "", row[1], row[0]) for row in rows]
        self._born_whole(found, rows)
        after = self._named(before, found, topic)
        after.save(before)
        again = Series.load(self.repo)
        made = tip(commits(self.base.git(), base, again), base)
        if self.git.tree(made) != self.git.tree("HEAD"):
            raise Fail("the refreshed series does not give the tree that "
                       "it was made from; that is a fault of this command")
        self.git("reset", "-q", "--keep", made)
        self._record(again, base, made)
        _tell(before, again)
        if refresh_column(self.repo.root, {c.name: c.message
                                           for c in again.changes}):
            say("docs/changes.md: the column upstream is written anew")

    def _autosquash(self, base: str) -> None:
        subjects = self.git("log", "--format=%s", f"{base}..HEAD")
        if not any(s.split("! ")[0] in ("fixup", "squash", "amend")
                   for s in subjects.splitlines()):
            return
        git = self.git.with_env(dates(0) | {"GIT_SEQUENCE_EDITOR": ":"})
        try:
            done = git.raw("rebase", "-q", "-i", "--autosquash", base)
        except BaseException:
            git.raw("rebase", "--abort")
            raise
        if done.returncode:
            why = git("diff", "--name-only", "--diff-filter=U")
            git.raw("rebase", "--abort")
            raise Fail("a fixup does not fit the commit that it is for ("
                       f"{', '.join(why.split()) or 'git rebase failed'}); "
                       f"the work tree is as it was: squash it by hand in "
                       f"{self.path}, then refresh again")

    def _born_whole(self, found: list[Change], rows: list[list[str]]
                    ) -> None:
        """Each new file comes whole in one change: no later edits."""
        born: dict[str, str] = {}
        gone: set[str] = set()
        for change, (commit, parent) in zip(found, rows):
            for status, _, _, path in raw_diff(self.git, parent, commit):
                if path in born:
                    raise Fail(
                        f"\"{change.subject}\" edits {path}, which "
                        f"\"{born[path]}\" adds; make the edit part of that "
                        "commit (git commit --fixup, then ./fork refresh)")
                if status == "A" and path in gone:
                    raise Fail(f"\"{change.subject}\" adds {path}, which an "
                               "earlier commit removes; edit it instead")
                if status == "A":
                    born[path] = change.subject
                if status == "D":
                    gone.add(path)

    def _named(self, before: Series, found: list[Change],
               topic: str | None) -> Series:
        """Finds which change each commit is, and names new ones."""
        old = list(before.changes)
        same: dict[int, Change] = {}
        for number, change in enumerate(found):
            match = next((c for c in old if c.subject == change.subject and
                          c not in same.values()), None)
            if match:
                same[number] = match
        _by_position(old, found, same)
        after = Series(self.repo)
        after.topics = dict(before.topics)
        names = {c.name for c in old}
        last = ""
        for number, change in enumerate(found):
            if number in same:
                match = same[number]
                change.name, change.lead = match.name, match.lead
                # The order of the names is a person's choice; keep it.
                change.paths.sort(key=lambda p: (
                    match.paths.index(p) if p in match.paths
                    else len(match.paths), p))
            else:
                home = topic or last or next(
                    (same[n].topic for n in sorted(same)), "")
                if not home:
                    raise Fail("which topic does the first commit belong "
                               "to? Name it with --topic NAME")
                change.name = name = f"{home}/{slug(change.subject)}"
                count = 2
                while change.name in names:
                    change.name = f"{name}-{count}"
                    count += 1
                names.add(change.name)
                if home not in after.topics:
                    after.topics[home] = []
                    change.lead = [f"topic {home}"]
            last = change.topic
            change.files.sort(key=lambda f: change.paths.index(f.path))
            after.changes.append(change)
        # What stood before a removed change and is not about it alone.
        kept = {id(c) for c in same.values()}
        orphans = [line for c in old if id(c) not in kept
                   for line in c.lead if line.startswith("topic ")]
        after.tail = orphans + before.tail
        return after


def _by_position(old: list[Change], found: list[Change],
                 same: dict[int, Change]) -> None:
    """A subject was edited: one old and one new at the same place."""
    matched = {id(change) for change in same.values()}
    for number in range(len(found)):
        if number in same:
            continue
        left = same.get(number - 1)
        right = same.get(number + 1)
        if number > 0 and not left or number + 1 < len(found) and not right:
            continue
        start = next((i + 1 for i, c in enumerate(old) if c is left), 0)
        end = next((i for i, c in enumerate(old) if c is right), len(old))
        between = old[start:end]
        if len(between) == 1 and id(between[0]) not in matched:
            same[number] = between[0]
            matched.add(id(between[0]))


def _tell(before: Series, after: Series) -> None:
    old = {c.name: c for c in before.changes}
    new = {c.name: c for c in after.changes}
    lines = [f"removed {name}" for name in old if name not in new]
    for name, change in new.items():
        if name not in old:
            lines.append(f"new     {name}")
        elif (change.patch(), [(f.path, f.mode, f.data) for f in
                               change.files]) != (
                old[name].patch(), [(f.path, f.mode, f.data) for f in
                                    old[name].files]):
            lines.append(f"changed {name}")
    for line in lines or ["patches/ is up to date"]:
        say(line)
