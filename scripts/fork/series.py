# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch series: patches/series and what it names, to files and back.

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
from dataclasses import dataclass, field
from pathlib import Path

from .common import Fail, Repo, remove, write
from .gitrepo import HUNKS, Git

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
        return {part.path: part.old for part in sections(self.hunks)}


@dataclass
class Section:
    """The hunks for one file."""
    path: str
    old: str  # blob ids; both empty where only the mode changes
    new: str
    modes: tuple[str, str]  # the second is empty where the file goes
    text: bytes


def sections(hunks: bytes) -> list[Section]:
    """The hunks by file."""
    found = []
    for text in re.split(rb"(?m)^(?=diff --git )", hunks):
        if not text:
            continue
        head = re.match(rb"diff --git a/(.+) b/\1\n", text)
        if not head:
            raise Fail("a hunk without a readable `diff --git` line")
        index = re.search(rb"(?m)^index ([0-9a-f]{40})\.\.([0-9a-f]{40})"
                          rb"(?: (\d+))?$", text)
        modes = {what: mode.decode() for what, mode in re.findall(
            rb"(?m)^(old|new|deleted file) mode (\d+)$", text)}
        same = index[3].decode() if index and index[3] else "100644"
        found.append(Section(
            head[1].decode(), index[1].decode() if index else "",
            index[2].decode() if index else "",
            (modes.get(b"old", modes.get(b"deleted file", same)),
             "" if b"deleted file" in modes else modes.get(b"new", same)),
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
                if old:
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
