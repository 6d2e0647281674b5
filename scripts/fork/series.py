# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch series: patches/series and what it names, to commits and back.

patches/series is plain text:

    topic build
    topic holders after build
    # a comment
    change build/cxx
        iothread.cc

`after` names the topics that a topic needs. A change is the patch
patches/<topic>/<name>.patch and the new files in the indented lines, which
are in this repository at the path that they have in QEMU. A patch is the
commit message, a line `---` and hunks for files that QEMU has already.
"""
from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Mapping, Sequence

from .common import Fail, Repo, remove, write
from .gitrepo import HUNKS, Git
from .origin import origin

INDENT = "    "
COVER = "cover.txt"  # in a topic's folder: what the cover letter says of it
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*/[a-z0-9][a-z0-9.-]*")


@dataclass
class NewFile:
    path: str
    mode: str
    data: bytes


@dataclass
class Change:
    name: str
    lead: list[str] = field(default_factory=list)  # lines before it
    paths: list[str] = field(default_factory=list)  # the new files
    message: str = ""
    hunks: bytes = b""
    files: list[NewFile] = field(default_factory=list)

    @property
    def topic(self) -> str:
        return self.name.split("/")[0]

    @property
    def subject(self) -> str:
        return self.message.split("\n")[0]

    def patch(self) -> bytes:
        return self.message.encode() + b"---\n" + self.hunks

    def touched(self) -> dict[str, str]:
        """The files that the hunks touch, each with its id before."""
        return {path: old for path, old, _ in sections(self.hunks)}


def sections(hunks: bytes) -> list[tuple[str, str, bytes]]:
    """The hunks by file: path, blob id before, and the text."""
    found = []
    for text in re.split(rb"(?m)^(?=diff --git )", hunks):
        if not text:
            continue
        head = re.match(rb"diff --git a/(.+) b/\1\n", text)
        index = re.search(rb"(?m)^index ([0-9a-f]{40})\.\.[0-9a-f]{40}",
                          text)
        if not head:
            raise Fail("a hunk without a readable `diff --git` line")
        found.append((head[1].decode(), index[1].decode() if index else "",
                      text))
    return found


class Series:
    """patches/series as it is in the repository, with all it names."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.path = repo.patches / "series"
        self.topics: dict[str, list[str]] = {}
        self.changes: list[Change] = []
        self.tail: list[str] = []

    @staticmethod
    def load(repo: Repo) -> "Series":
        series = Series(repo)
        if series.path.exists():
            series._parse(series.path.read_text())
        for change in series.changes:
            series._read(change)
        return series

    def _parse(self, text: str) -> None:
        lead: list[str] = []
        change: Change | None = None
        for number, line in enumerate(text.splitlines(), 1):
            where = f"patches/series line {number}"
            words = line.split()
            if line[:1].isspace() and words and words[0][0] != "#":
                if not change or lead:
                    raise Fail(f"{where}: a file name belongs under a "
                               "change")
                path = line.strip()
                if path.startswith("/") or ".." in path.split("/"):
                    raise Fail(f"{where}: {path} is not a path in QEMU")
                change.paths.append(path)
            elif words and words[0] == "change":
                if len(words) != 2 or not NAME.fullmatch(words[1]):
                    raise Fail(f"{where}: expected `change topic/name`")
                if any(c.name == words[1] for c in self.changes):
                    raise Fail(f"{where}: {words[1]} is there twice")
                change = Change(words[1], lead)
                self.changes.append(change)
                lead = []
            else:
                if words and words[0] == "topic":
                    if len(words) != 2 and words[2:3] != ["after"]:
                        raise Fail(f"{where}: expected `topic NAME` or "
                                   "`topic NAME after NAME…`")
                    self.topics[words[1]] = words[3:]
                elif words and words[0][0] != "#":
                    raise Fail(f"{where}: `{words[0]}` is neither topic "
                               "nor change")
                lead.append(line)
        self.tail = lead
        for topic, needs in self.topics.items():
            for need in needs:
                if need not in self.topics:
                    raise Fail(f"patches/series: topic {topic} comes after "
                               f"{need}, which is not a topic")
        for change in self.changes:
            if change.topic not in self.topics:
                raise Fail(f"patches/series: {change.name} is in a topic "
                           "that no `topic` line names")

    def file(self, change: Change) -> Path:
        return self.repo.patches / f"{change.name}.patch"

    def _read(self, change: Change) -> None:
        path = self.file(change)
        try:
            data = path.read_bytes()
        except OSError:
            raise Fail(f"patches/series names {change.name}, but there is "
                       f"no patches/{change.name}.patch") from None
        head, mark, change.hunks = (b"\n" + data).partition(b"\n---\n")
        if not mark:
            raise Fail(f"patches/{change.name}.patch has no line `---` "
                       "after the commit message")
        change.message = head[1:].decode() + "\n"
        for name in change.paths:
            change.files.append(self._new_file(change, name))

    def _new_file(self, change: Change, name: str) -> NewFile:
        path = self.repo.root / name
        if path.is_symlink() or not path.is_file():
            raise Fail(f"{change.name} adds {name}, which is not a file of "
                       "this repository")
        mode = "100755" if os.access(path, os.X_OK) else "100644"
        return NewFile(name, mode, path.read_bytes())

    def text(self) -> str:
        lines = []
        for change in self.changes:
            lines += [*change.lead, f"change {change.name}"]
            lines += [INDENT + path for path in change.paths]
        return "".join(line + "\n" for line in [*lines, *self.tail])

    def hash(self) -> str:
        """Changes with everything that changes what the commits hold."""
        total = hashlib.sha256()
        for change in self.changes:
            for part in (change.name.encode(), change.patch()):
                total.update(hashlib.sha256(part).digest())
            for new in change.files:
                total.update(f"{new.path} {new.mode} ".encode())
                total.update(hashlib.sha256(new.data).digest())
        return total.hexdigest()

    def select(self, topic: str | None) -> list[Change]:
        """All changes, or those of a topic and of what it comes after."""
        if topic is None:
            return self.changes
        if topic not in self.topics:
            raise Fail(f"there is no topic {topic}; the topics are: "
                       + ", ".join(self.topics))
        wanted, todo = set(), [topic]
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                todo += self.topics[name]
        return [c for c in self.changes if c.topic in wanted]

    def base_blobs(self) -> dict[str, str]:
        """Each file of QEMU that the series touches: its id in the base."""
        blobs: dict[str, str] = {}
        for change in self.changes:
            for path, old in change.touched().items():
                blobs.setdefault(path, old)
        return blobs

    def save(self, before: "Series") -> None:
        """Writes the series back, and removes what it no longer has."""
        old = {before.file(c) for c in before.changes} | {
            before.repo.root / p for c in before.changes for p in c.paths}
        new: set[Path] = set()
        for change in self.changes:
            wanted = {self.file(change): (change.patch(), "100644")} | {
                self.repo.root / f.path: (f.data, f.mode)
                for f in change.files}
            for path, (data, mode) in wanted.items():
                new.add(path)
                if not path.is_file() or path.read_bytes() != data:
                    write(path, data)
                path.chmod(0o755 if mode == "100755" else 0o644)
        write(self.path, self.text())
        for path in old - new:
            remove(path)
            folder = path.parent
            while folder != self.repo.root and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent


# --- From patches to commits ----------------------------------------------

@dataclass
class Outcome:
    change: Change
    status: str = "not tried"
    notes: list[str] = field(default_factory=list)
    commit: str = ""


OK, THERE = "ok", "is there already"


def commits(git: Git, base: str, changes: Iterable[Change], *,
            signoff: str = "", three_way: bool = False,
            known: Mapping[str, str] | None = None) -> list[Outcome]:
    """Makes one commit per change on top of base; touches no work tree.

    git's environment may send the new objects elsewhere. three_way: git
    sees the blobs that the patches were made for, so where a patch alone
    does not fit, a clean merge will do. known: changes that base has
    already, by name, and why; these are left out. After the first that does
    not fit there are no more commits: the rest is tried for the report,
    without it.
    """
    outcomes = [Outcome(change) for change in changes]
    with tempfile.TemporaryDirectory(prefix="fork-") as folder:
        index = git.with_env({"GIT_INDEX_FILE": f"{folder}/index"})
        index("read-tree", base)
        parent = base
        for number, outcome in enumerate(outcomes, 1):
            change = outcome.change
            if known and change.name in known:
                outcome.status = THERE
                outcome.notes = [n for n in [known[change.name]] if n]
                continue
            if not _stage(index, outcome, three_way, Path(folder)):
                parent = ""
            elif not parent:
                outcome.status = "would fit"
            if not parent:
                continue
            message = change.message
            if signoff:
                message = git("interpret-trailers", "--no-divider",
                              "--if-exists", "addIfDifferent",
                              "--trailer", f"Signed-off-by: {signoff}",
                              data=message.encode()) + "\n"
            parent = outcome.commit = git.commit_tree(
                index("write-tree"), parent, message, number)
            outcome.status = OK
    return outcomes


def _stage(index: Git, outcome: Outcome, three_way: bool, folder: Path
           ) -> bool:
    """Puts one change into the index; tells in outcome why it cannot."""
    change = outcome.change
    if there := _paths(index, change):
        same = _same_files(index, change, there) and (
            not change.hunks or _checks(index, change, reverse=True))
        outcome.status = THERE if same else "does not fit"
        outcome.notes = [f"{path} exists" for path in there]
        return False
    if change.hunks:
        saved = (folder / "index").read_bytes()
        done = index.raw("apply", "--cached", "--whitespace=nowarn", "-v",
                         "-", data=change.hunks)
        if done.returncode == 0:
            outcome.notes = _offsets(done.stderr.decode())
        else:
            (folder / "index").write_bytes(saved)
            if three_way and index.raw(
                    "apply", "--cached", "--3way", "--whitespace=nowarn",
                    "-", data=change.hunks).returncode == 0:
                outcome.notes = ["fits by a three-way merge"]
            else:
                (folder / "index").write_bytes(saved)
                outcome.status = THERE if _checks(
                    index, change, reverse=True) else "does not fit"
                outcome.notes = _misfits(index, change)
                return False
    entries = ""
    for new in change.files:
        blob = index("hash-object", "-w", "--stdin", data=new.data)
        entries += f"{new.mode} {blob}\t{new.path}\n"
    if entries:
        index("update-index", "--index-info", data=entries.encode())
    return True


# --- What a tree has already ----------------------------------------------

def known(git: Git, base: str, changes: Sequence[Change]) -> dict[str, str]:
    """The changes that base has, each with how that was recognised.

    Ours are found from the last to the first: each that can be taken back,
    and cannot be put on, is there, and is taken back before the next is
    looked at. Those that QEMU has in its own form have probes.
    """
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fork-") as folder:
        index = git.with_env({"GIT_INDEX_FILE": f"{folder}/index"})
        index("read-tree", base)
        for change in reversed(changes):
            there = _paths(index, change)
            if change.paths and not _same_files(index, change, there):
                continue
            if change.hunks and (
                    not _checks(index, change, reverse=True)
                    or not change.paths and _checks(index, change)):
                continue
            if change.hunks:
                index("apply", "--cached", "--reverse",
                      "--whitespace=nowarn", "-", data=change.hunks)
            if there:
                index("rm", "-q", "--cached", "--", *there)
            found[change.name] = ""
    for change in changes:
        upstream = origin(change.message)
        if change.name not in found and upstream.same and upstream.probes \
                and all(_holds(git, base, *p) for p in upstream.probes):
            found[change.name] = f"in QEMU's own form, {upstream.short()}"
    return found


def hints(git: Git, base: str, outcomes: Iterable[Outcome]) -> None:
    """Notes for what does not fit: may QEMU's own form be in the way?"""
    release = _numbers(git.raw("show", f"{base}:VERSION").stdout.decode())
    for outcome in outcomes:
        upstream = origin(outcome.change.message)
        rows = upstream.same or upstream.weaker
        if outcome.status != "does not fit" or not rows:
            continue
        seen = upstream.probes and all(_holds(git, base, *p)
                                       for p in upstream.probes)
        if seen or release >= min(_numbers(r) for r, _ in rows):
            outcome.notes.append(
                f"{'this tree has' if seen else 'perhaps this tree has'} "
                f"QEMU's own{', weaker' if upstream.weaker else ''} form, "
                + upstream.short())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _holds(git: Git, base: str, path: str, what: str) -> bool:
    return what.encode() in git.raw("show", f"{base}:{path}").stdout


def _paths(index: Git, change: Change) -> list[str]:
    """Which of a change's new files are there."""
    return [p for p in index("--literal-pathspecs", "ls-files", "-z", "--",
                             *change.paths).split("\0") if p] \
        if change.paths else []


def _same_files(index: Git, change: Change, there: list[str]) -> bool:
    return sorted(there) == sorted(change.paths) and all(
        index.raw("show", f":{new.path}").stdout == new.data
        for new in change.files)


def _checks(index: Git, change: Change, reverse: bool = False) -> bool:
    return index.raw("apply", "--cached", "--check",
                     *["--reverse"] * reverse, "-",
                     data=change.hunks).returncode == 0


def _offsets(text: str) -> list[str]:
    notes, path = [], ""
    for line in text.splitlines():
        if match := re.match(r"Checking patch (.+)\.\.\.$", line):
            path = match[1]
        elif match := re.match(r"Hunk #(\d+) succeeded at \d+ "
                               r"\(offset (-?\d+) lines?\)", line):
            notes.append(f"{path} hunk {match[1]} fits with an offset of "
                         f"{match[2]} lines")
    return notes


def _misfits(index: Git, change: Change) -> list[str]:
    """Which hunks do not fit, tried file by file outside of the tree."""
    notes = []
    for path, _, text in sections(change.hunks):
        blob = index.raw("show", f":{path}")
        if blob.returncode:
            notes.append(f"{path} does not exist there")
            continue
        with tempfile.TemporaryDirectory(prefix="fork-") as folder:
            copy = Path(folder) / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(blob.stdout)
            trial = Git(Path(folder), {"GIT_CEILING_DIRECTORIES": str(
                Path(folder).parent)})
            done = trial.raw("apply", "--reject", "--whitespace=nowarn",
                             "-v", "-", data=text)
        if done.returncode == 0:
            continue
        lines = re.findall(rb"(?m)^@@ -(\d+)", text)
        bad = re.findall(rb"Rejected hunk #(\d+)", done.stderr)
        if bad:
            notes.append(f"{path} " + ", ".join(
                f"hunk {n.decode()} (line {lines[int(n) - 1].decode()})"
                for n in bad))
        else:
            notes.append(f"{path} (the whole file)")
    return notes


def report(outcomes: Iterable[Outcome]) -> str:
    lines = []
    for outcome in outcomes:
        lines.append(f"  {outcome.change.name}: {outcome.status}")
        lines += [f"    {note}" for note in outcome.notes]
    return "\n".join(lines)


def tip(outcomes: list[Outcome], base: str, leave_out: bool = False) -> str:
    """The last commit, or the error that names what does not fit.

    leave_out: what is there already is no error."""
    for outcome in outcomes:
        if outcome.status != OK and (outcome.status != THERE
                                     or not leave_out):
            raise Fail(f"{outcome.change.name} {outcome.status}: "
                       + ("; ".join(outcome.notes) or "its hunks are in"))
    made = [outcome.commit for outcome in outcomes if outcome.commit]
    return made[-1] if made else base


# --- From commits to patches ----------------------------------------------

def raw_diff(git: Git, parent: str, commit: str) -> list[tuple[str, ...]]:
    """The files of a commit: status letter, mode, blob id, path."""
    out = git("diff-tree", "-r", "-z", "--no-renames", "--raw", "--no-abbrev",
              parent, commit).split("\0")
    rows = []
    for meta, path in zip(out[::2], out[1::2]):
        _, mode, _, blob, status = meta[1:].split(" ")
        rows.append((status, mode, blob, path))
    return rows


def from_commit(git: Git, name: str, parent: str, commit: str) -> Change:
    """The change that a commit is: message, hunks, new files."""
    change = Change(name)
    change.message = git("log", "-1", "--format=%B", commit).rstrip("\n") \
        + "\n"
    edited = []
    for status, mode, blob, path in raw_diff(git, parent, commit):
        if mode not in ("100644", "100755", "000000"):
            raise Fail(f"{change.subject}: {path} is not a plain file; a "
                       "series holds plain files only")
        if status == "A":
            change.paths.append(path)
            change.files.append(
                NewFile(path, mode, git.bytes("cat-file", "blob", blob)))
        else:
            edited.append(path)
    if edited:
        change.hunks = git.bytes("--literal-pathspecs", "diff-tree", "-p",
                                 *HUNKS, parent, commit, "--", *edited)
    return change
