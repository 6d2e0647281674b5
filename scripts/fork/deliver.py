# SPDX-License-Identifier: GPL-2.0-or-later
"""The series for others: onto a checkout of theirs, or as files."""
from __future__ import annotations

import os
import re
import shlex
import tempfile
import textwrap
from pathlib import Path

from .base import Base
from .common import Fail, Repo, lock, remove, say
from .formats import write_format
from .gitrepo import EMAIL, NAME, Git
from .graft import THERE, Graft, commits, hints, report, tip
from .series import COVER, Series

MANIFEST = ".fork-export"  # what an export of files wrote


# --- apply ----------------------------------------------------------------

def apply(repo: Repo, folder: str, topic: str | None, signoff: bool
          ) -> None:
    """Puts the series on a git checkout of QEMU; all of it or nothing."""
    path = Path(folder).resolve()
    git = Git(path, own_config=True) if path.is_dir() else None
    if not git or not git.ok("rev-parse", "--is-inside-work-tree"):
        raise Fail(f"{path} is not a git checkout; give the top folder of "
                   "a QEMU checkout")
    path = Path(git("rev-parse", "--show-toplevel"))
    git = Git(path, own_config=True)
    if not git.ok("rev-parse", "-q", "--verify", "HEAD"):
        raise Fail(f"{path} has no commit yet; the series goes on QEMU's")
    if busy := git.busy():
        raise Fail(f"{path} is in the middle of {busy}; finish it first")
    if dirty := git.dirty():
        raise Fail(f"{path} has uncommitted changes ({dirty[0]}"
                   f"{' and others' if dirty[1:] else ''}); commit or stash "
                   "them first")
    who = _who(git, path) if signoff else ""
    series = Series.load(repo)
    changes = series.select(topic)
    if not changes:
        raise Fail("the series has no changes yet; there is nothing to "
                   "apply")
    head = git.head()
    with tempfile.TemporaryDirectory(prefix="fork-") as scratch:
        # New objects go to a folder of ours until all is known to fit.
        made = _scratch(repo, git, Path(scratch))
        graft = Graft(made, series)
        if graft.lacking(changes) and _set_up(repo):
            made = _scratch(repo, git, Path(scratch))
            graft = Graft(made, series)
        outcomes = graft.commits(head, changes, signoff=who,
                                 known=graft.known(head))
        hints(made, head, outcomes)
        say(report(outcomes))
        there = [o for o in outcomes if o.status == THERE]
        if len(there) == len(changes):
            raise Fail(f"the series is applied already; {path} is as it was")
        try:
            new = tip(outcomes, head, leave_out=True)
        except Fail as error:
            bad = sum(o.status == "does not fit" for o in outcomes)
            raise Fail(f"{error}; {path} is as it was, as {bad} of "
                       f"{len(outcomes)} changes do not fit and {len(there)} "
                       "are there already; docs/rebase.md tells how to make "
                       "the series fit") from None
        pack = made.bytes("pack-objects", "--revs", "--stdout", "-q",
                          data=f"{new}\n^{head}\n".encode())
        git.bytes("unpack-objects", "-q", data=pack)
    # What the user's git does with merges of others is no matter here
    done = git.raw("merge", "--ff-only", "--no-verify-signatures",
                   "--no-overwrite-ignore", "--no-stat", "-q", new)
    if done.returncode:
        text = " ".join(done.stderr.decode(errors="replace").split())
        raise Fail(f"git cannot move {path} to the new commits: {text}")
    say(f"{len(changes) - len(there)} changes applied to {path}"
        + (f"; {len(there)} were there already" if there else ""))


def _who(git: Git, path: Path) -> str:
    name, mail = (git.raw("config", key).stdout.decode().strip()
                  for key in ("user.name", "user.email"))
    if not name or not mail:
        raise Fail(f"--signoff needs a name: set user.name and user.email "
                   f"by `git -C {path} config`")
    return f"{name} <{mail}>"


def _scratch(repo: Repo, git: Git, scratch: Path) -> Git:
    """git with its new objects in scratch, and with those of the base at
    hand where it is set up here."""
    objects = scratch / "objects"
    objects.mkdir(exist_ok=True)
    others = [git.objects().resolve(), repo.stock / ".git" / "objects"]
    return Git(git.path, {
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(
            _quote(str(path)) for path in others if path.is_dir())})


def _set_up(repo: Repo) -> bool:
    """Fetches QEMU's source: a merge needs the files that the patches were
    made for, and the checkout does not have all of them."""
    try:
        with lock(repo):
            Base(repo).ready()
        return True
    except Fail as error:
        say(f"only files that are QEMU's own can be changed: {error}")
        return False


def _quote(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# --- export ---------------------------------------------------------------

def export(repo: Repo, folder: str, topic: str | None,
           form: str = "mbox") -> None:
    """Writes the series in one of the formats: the same bytes every time."""
    path = Path(folder).resolve()
    old = _earlier(path) if form == "mbox" else _listed(path)
    base = Base(repo)
    git, start = base.git(), base.commit()
    series = Series.load(repo)
    changes = series.select(topic)
    if not changes:
        raise Fail("the series has no changes yet; there is nothing to "
                   "export")
    outcomes = commits(git, start, series, topic)
    end = tip(outcomes, start)
    partial = path.with_name(path.name + ".partial")
    remove(partial)
    partial.mkdir(parents=True)
    try:
        if form == "mbox":
            _mails(base, git, start, end, series, topic, partial)
            how = f"`git am {shlex.quote(str(path))}/*.patch` takes them"
        else:
            how = write_format(form, git, start, outcomes, partial,
                               base.version)
            (partial / MANIFEST).write_text("".join(
                f"{file.relative_to(partial)}\n"
                for file in sorted(partial.rglob("*")) if file.is_file()))
        path.mkdir(exist_ok=True)
        for file in old:
            file.unlink()
            for above in file.relative_to(path).parents[:-1]:
                if not any((path / above).iterdir()):
                    (path / above).rmdir()
        for file in sorted(partial.rglob("*")):
            target = path / file.relative_to(partial)
            if file.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    finally:
        remove(partial)
    say(f"{len(changes)} changes exported to {path}; in QEMU "
        f"{base.version}, {how}" if form == "mbox" else
        f"exported to {path}; {how}")


def _mails(base: Base, git: Git, start: str, end: str, series: Series,
           topic: str | None, folder: Path) -> None:
    git("format-patch", "-q", "-o", str(folder), "--numbered",
        "--zero-commit", "--no-signature", "--full-index", "--binary",
        "--no-renames", "-U3", "--diff-algorithm=myers",
        "--indent-heuristic", "--stat=72", f"{start}..{end}")
    (folder / "0000-cover-letter.txt").write_text(
        _cover(base, git, start, end, series, topic))


def _listed(path: Path) -> list[Path]:
    """The files of an earlier export; an error if others are there."""
    if not path.exists():
        return []
    if not path.is_dir():
        raise Fail(f"{path} is not a folder; give another")
    manifest = path / MANIFEST
    known = {path / name for name in manifest.read_text().splitlines()} \
        | {manifest} if manifest.is_file() else set()
    found = sorted(f for f in path.rglob("*") if not f.is_dir())
    for file in found:
        if file not in known:
            raise Fail(f"{path} holds {file.relative_to(path)}, which is not "
                       "of an earlier export; give an empty or new folder")
    return found


def _earlier(path: Path) -> list[Path]:
    """The files of an earlier export; an error if others are there."""
    if not path.exists():
        return []
    if not path.is_dir():
        raise Fail(f"{path} is not a folder; give another")
    files = sorted(path.iterdir())
    for file in files:
        if not re.fullmatch(r"\d{4}-.*\.(patch|txt)", file.name) \
                or not file.read_bytes().startswith(b"From 0000000000"):
            raise Fail(f"{path} holds {file.name}, which is not of an "
                       "earlier export; give an empty or new folder")
    return files


def _cover(base: Base, git: Git, start: str, end: str, series: Series,
           topic: str | None) -> str:
    changes = series.select(topic)
    total = len(changes)
    zero = "0".zfill(len(str(total)))
    day = git("log", "-1", "--format=%aD", start)
    text = f"""From {'0' * 40} Mon Sep 17 00:00:00 2001
From: {NAME} <{EMAIL}>
Date: {day}
Subject: [PATCH {zero}/{total}] Fork series for QEMU {base.version}{
        f': {topic}' if topic else ''}

"""
    text += textwrap.fill(
        f"These {total} changes are for QEMU {base.version}. They are in "
        "topics; each topic applies alone, after those that it names.",
        72) + "\n"
    last = ""
    for number, change in enumerate(changes, 1):
        if change.topic != last:
            needs = series.topics[change.topic]
            text += f"\n{change.topic}" + (
                f" (after {', '.join(needs)})" if needs else "") + ":\n\n"
            cover = series.repo.root / "patches" / change.topic / COVER
            if cover.exists():
                text += cover.read_text() + "\n"
            last = change.topic
        text += f"  {number:{len(str(total))}}  {change.subject}\n"
    stat = git("diff-tree", "--stat=72", "--summary", "--no-renames",
               start, end)
    return text + f"\n{stat}\n"
