# SPDX-License-Identifier: GPL-2.0-or-later
"""The series on a tree: patches to commits, and what is there already.

A patch has one line of context. For the file that it was made for that is
enough; in any other it may fit at a wrong place, or fit once more where it is
already. So the patches are put on the files that they were made for, all of
them in their order, and each file before and after a change is kept. On a
tree a change then is a three-way merge of each of its files.

All that is done in memory, as thousands of calls of git take minutes; git
reads, merges what is not the same, and writes the objects.
"""
from __future__ import annotations

import hashlib
import io
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Sequence

from .common import Fail, write
from .gitrepo import EMAIL, NAME, Git, seconds
from .origin import origin
from .series import Change, Series, sections

File = tuple[str, str]  # mode and blob id; two times "" if it is not there
ABSENT: File = ("", "")
FOLDER = "040000"
MARK = 40  # as no line of a file begins
OK, THERE, MISFIT = "ok", "is there already", "does not fit"


@dataclass
class Outcome:
    change: Change
    status: str = "not tried"
    notes: list[str] = field(default_factory=list)
    commit: str = ""
    foreign: bool = False  # merged into a file that is not QEMU's


@dataclass
class Edit:
    """What a change does to one file."""
    path: str
    old: File
    new: File
    text: bytes = b""  # the hunks; none for a new file


# --- Patches on the files that they were made for -------------------------

def hunks(text: bytes) -> Iterator[tuple[int, int, list[bytes], list[bytes]]]:
    """Of each: its line, that line's index, the lines before and after."""
    for part in re.split(rb"(?m)^(?=@@ -)", text)[1:]:
        head, *rows = io.BytesIO(part).readlines()
        match = re.match(rb"@@ -(\d+)(,0)?", head)
        line = int(match[1]) if match else 0
        body: list[bytes] = []
        for row in rows:
            if row[:1] == b"\\":  # No newline at end of file
                body[-1] = body[-1].rstrip(b"\n")
            else:
                body.append(row)
        yield (line, line if match and match[2] else line - 1,
               [r[1:] for r in body if r[:1] in b" -"],
               [r[1:] for r in body if r[:1] in b" +"])


def exactly(data: bytes, text: bytes) -> bytes | None:
    """The file after its hunks, each at the line that it names."""
    lines = io.BytesIO(data).readlines()
    out: list[bytes] = []
    done = 0
    for _, start, before, after in hunks(text):
        end = start + len(before)
        if start < done or lines[start:end] != before:
            return None
        out += lines[done:start] + after
        done = end
    return b"".join(out + lines[done:])


def by_git(path: str, data: bytes, text: bytes
           ) -> tuple[bytes | None, list[str]]:
    """The same where lines have moved, as in patches that were merged or
    edited by hand; with notes on the hunks."""
    with tempfile.TemporaryDirectory(prefix="fork-") as folder:
        copy = Path(folder) / path
        write(copy, data)
        git = Git(Path(folder), {"GIT_CEILING_DIRECTORIES": str(
            Path(folder).parent)})
        done = git.raw("apply", "--reject", "--whitespace=nowarn", "-v", "-",
                       data=text)
        said = done.stderr.decode(errors="replace")
        if done.returncode == 0:
            return copy.read_bytes() if copy.exists() else None, [
                f"{path} hunk {n} fits with an offset of {by} lines"
                for n, by in re.findall(
                    r"Hunk #(\d+) succeeded at \d+ \(offset (-?\d+)", said)]
    bad = [int(n) for n in re.findall(r"Rejected hunk #(\d+)", said)]
    return None, [_misfit(path, text, bad)]


def _misfit(path: str, text: bytes, bad: list[int]) -> str:
    lines = [line for line, *_ in hunks(text)]
    return f"{path} " + (", ".join(f"hunk {n} (line {lines[n - 1]})"
                                   for n in bad) or "(the whole file)")


# --- Merges ---------------------------------------------------------------

def settle(merged: bytes) -> bytes | None:
    """Ends conflicts that are only two edits side by side.

    Such a conflict has ours, the original and theirs. What theirs changes
    there is put into ours, with one line of context, if there is one place
    for it, and ours does not have what it adds. The place cannot be a wrong
    one: it is between lines that all three have.
    """
    marks = [sign * MARK for sign in (b"<", b"|", b"=", b">")]
    out: list[bytes] = []
    rows = iter(io.BytesIO(merged).readlines())
    for row in rows:
        if not row.startswith(marks[0]):
            out.append(row)
            continue
        parts = []
        for mark in marks[1:]:
            part = out[-1:]  # the line before, and below that after
            for row in rows:
                if row.startswith(mark):
                    break
                part.append(row)
            parts.append(part)
        after = next(rows, b"")
        if after.startswith(marks[0]):
            return None
        ours, old, new = (part + [after] * bool(after) for part in parts)
        same = next((n for n, (a, b) in enumerate(zip(old, new)) if a != b),
                    min(len(old), len(new)))
        rest = next((n for n, (a, b) in enumerate(zip(
            old[same:][::-1], new[same:][::-1])) if a != b),
            min(len(old), len(new)) - same)
        added = new[same:len(new) - rest]
        first = max(same - 1, 0)
        old = old[first:len(old) - max(rest - 1, 0)]
        new = new[first:len(new) - max(rest - 1, 0)]
        places = _places(ours, old)
        if len(places) != 1 or added and _places(ours, added):
            return None
        out[-1:] = ours[:places[0]] + new + ours[places[0] + len(old):]
    return b"".join(out)


def _places(lines: list[bytes], part: list[bytes]) -> list[int]:
    return [n for n in range(len(lines) - len(part) + 1)
            if lines[n:n + len(part)] == part]


# --- Objects of git -------------------------------------------------------

class Objects:
    """Objects in memory, with the ids that git gives them."""

    def __init__(self, git: Git) -> None:
        self.git = git
        self.blobs: dict[str, bytes | None] = {}
        self.merges: dict[tuple[str, str, str], str | None] = {}
        self.written: set[str] = set()

    def read(self, names: Iterable[str]) -> None:
        """Reads blobs, all at once; None is one that git has not."""
        todo = [name for name in dict.fromkeys(names)
                if name not in self.blobs]
        if not todo:
            return
        out = io.BytesIO(self.git.bytes(
            "cat-file", "--batch", data="\n".join([*todo, ""]).encode()))
        for name in todo:
            head = out.readline().split()
            size = int(head[2]) if len(head) == 3 else -1
            data = out.read(size + 1)[:-1] if size >= 0 else None
            self.blobs[name] = data if head[1] == b"blob" else None

    def blob(self, name: str) -> bytes | None:
        self.read([name])
        return self.blobs[name]

    def add(self, data: bytes) -> str:
        name = object_id("blob", data)
        self.blobs[name] = data
        return name

    def merge(self, ours: str, old: str, new: str) -> str | None:
        """A three-way merge; None is a conflict."""
        key = (ours, old, new)
        if key not in self.merges:
            self.merges[key] = None
            self.read(key)
            data = [self.blobs[name] for name in key]
            with tempfile.TemporaryDirectory(prefix="fork-") as folder:
                paths = [Path(folder) / name for name in "abc"]
                for path, content in zip(paths, data):
                    path.write_bytes(content or b"")
                done = self.git.raw("merge-file", "-p", "-q",
                                    *map(str, paths))
                found = done.stdout if done.returncode == 0 else None
                if 0 < done.returncode < 128:
                    found = settle(self.git.raw(
                        "merge-file", "-p", "-q", "--diff3",
                        f"--marker-size={MARK}", *map(str, paths)).stdout)
            if found is not None and None not in data:
                self.merges[key] = self.add(found)
        return self.merges[key]

    def write(self, kind: str, objects: Mapping[str, bytes]) -> None:
        """Has git write objects; it looks at their form as well."""
        todo = [name for name in objects if name not in self.written]
        with tempfile.TemporaryDirectory(prefix="fork-") as folder:
            paths = ""
            for name in todo:
                (Path(folder) / name).write_bytes(objects[name])
                paths += f"{folder}/{name}\n"
            found = self.git("hash-object", "-w", "-t", kind, "--no-filters",
                             "--stdin-paths", data=paths.encode()).split()
        self.written |= set(todo)
        if found != todo:
            raise Fail("this git has other ids than SHA-1; the series is for "
                       "a checkout with these")


def object_id(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


class Tree:
    """The tree of a commit, to be changed file by file."""

    def __init__(self, git: Git, commit: str) -> None:
        self.folders: dict[str, dict[str, File]] = {"": {}}
        self.dirty: set[str] = set()
        self.made: dict[str, bytes] = {}
        self.root = git.tree(commit)
        for row in git.bytes("ls-tree", "-r", "-t", "-z", "--full-tree",
                             commit).split(b"\0")[:-1]:
            meta, _, path = row.decode(errors="surrogateescape").partition(
                "\t")
            mode, _, name = meta.split()
            folder, _, leaf = path.rpartition("/")
            self.folders.setdefault(folder, {})[leaf] = (mode, name)

    def get(self, path: str) -> File:
        folder, _, leaf = path.rpartition("/")
        if folder and folder not in self.folders:
            return self.get(folder)  # That may be a file.
        return self.folders[folder].get(leaf, ABSENT)

    def put(self, path: str, file: File) -> None:
        folder, _, leaf = path.rpartition("/")
        entries = self.folders.setdefault(folder, {})
        entries.pop(leaf, None)
        if file != ABSENT:
            entries[leaf] = file
        while folder not in self.dirty:
            self.dirty.add(folder)
            folder = folder.rpartition("/")[0]

    def write(self) -> str:
        """The id of the tree as it is now."""
        for folder in sorted(self.dirty, key=lambda f: -len(f.split("/"))):
            if not folder:
                continue
            above, _, leaf = folder.rpartition("/")
            entries = self.folders[folder]
            self.folders.setdefault(above, {}).pop(leaf, None)
            if entries:
                self.folders[above][leaf] = (FOLDER, self._write(entries))
        if self.dirty:
            self.root = self._write(self.folders[""])
        self.dirty.clear()
        return self.root

    def _write(self, entries: dict[str, File]) -> str:
        rows = sorted(
            (leaf.encode(errors="surrogateescape"), mode, name)
            for leaf, (mode, name) in entries.items())
        # git sorts a folder as if its name ended with a slash.
        rows.sort(key=lambda row: row[0] + b"/" * (row[1] == FOLDER))
        data = b"".join(mode.lstrip("0").encode() + b" " + leaf + b"\0"
                        + bytes.fromhex(name) for leaf, mode, name in rows)
        name = object_id("tree", data)
        self.made[name] = data
        return name


# --- The series -----------------------------------------------------------

class Graft:
    """The series with its files before and after each change."""

    def __init__(self, git: Git, series: Series) -> None:
        self.git = git
        self.series = series
        self.objects = Objects(git)
        self.edits: dict[str, list[Edit]] = {}
        # Of each change, on the files that it was made for
        self.notes: dict[str, list[str]] = {}
        self.faults: dict[str, list[str]] = {}
        now = series.base_blobs()
        self.originals = dict(now)
        self.objects.read(now.values())
        # Files whose original git has not; there are only ids then.
        self.missing = {path for path, name in now.items()
                        if self.objects.blobs[name] is None}
        for change in series.changes:
            self._make(change, now)

    def _make(self, change: Change, now: dict[str, str]) -> None:
        edits = self.edits[change.name] = []
        notes = self.notes[change.name] = []
        faults = self.faults[change.name] = []
        for part in sections(change.hunks):
            old, new = now.get(part.path, ""), part.new
            if part.path in self.missing:
                old = part.old
            elif part.old:
                data = self.objects.blob(old) if old else None
                after = None if data is None else exactly(data, part.text)
                if data is None:
                    faults.append(f"{part.path} does not exist there")
                elif after is None:
                    after, said = by_git(part.path, data, part.text)
                    (faults if after is None else notes).extend(said)
                if after is None:
                    continue
                new = self.objects.add(after) if part.modes[1] else ""
            else:
                new = old  # The mode alone changes.
            now[part.path] = new
            edits.append(Edit(part.path, (part.modes[0], old),
                              (part.modes[1], new), part.text))
        for file in change.files:
            edits.append(Edit(file.path, ABSENT,
                              (file.mode, self.objects.add(file.data))))

    def lacking(self, changes: Iterable[Change]) -> list[str]:
        """The files of these changes whose original is not at hand."""
        return sorted({edit.path for change in changes
                       for edit in self.edits[change.name]} & self.missing)

    def _turn(self, ours: File, old: File, new: File) -> File | None:
        """ours, with what leads from old to new; None if that conflicts."""
        if ours == old:
            return new
        if ours == new:
            return ours
        if ABSENT in (ours, old, new) or ours[0][:3] != "100":
            return None
        mode = ours[0] if old[0] == new[0] else new[0]
        if ours[1] == old[1]:
            return mode, new[1]
        if old[1] == new[1] or ours[1] == new[1]:
            return mode, ours[1]
        name = self.objects.merge(ours[1], old[1], new[1])
        return (mode, name) if name else None

    def _files(self, tree: Tree) -> dict[str, File]:
        return {edit.path: tree.get(edit.path)
                for edits in self.edits.values() for edit in edits}

    def known(self, base: str) -> dict[str, str]:
        """The changes that base has, each with how that was recognised.

        Ours are found from the last to the first: each that can be taken
        back, from each of its files, and then put on again with the same
        result, is there, and is taken back before the next is looked at.
        Those that QEMU has in its own form have probes.
        """
        found: dict[str, str] = {}
        tree = Tree(self.git, base)
        now = self._files(tree)
        for change in reversed(self.series.changes):
            edits = self.edits[change.name]
            back = {}
            for edit in edits:
                ours = now[edit.path]
                without = self._turn(ours, edit.new, edit.old)
                if without is None or without == ours or self._turn(
                        without, edit.old, edit.new) != ours:
                    break
                back[edit.path] = without
            if edits and len(back) == len(edits):
                now |= back
                found[change.name] = ""
        rest = {change.name: origin(change.message)
                for change in self.series.changes if change.name not in found}
        self.objects.read(tree.get(path)[1] for upstream in rest.values()
                          for path, _ in upstream.probes
                          if tree.get(path) != ABSENT)
        for name, upstream in rest.items():
            if upstream.same and upstream.probes and all(
                    what.encode() in (self.objects.blobs.get(
                        tree.get(path)[1]) or b"")
                    for path, what in upstream.probes):
                found[name] = f"in QEMU's own form, {upstream.short()}"
        return found

    def commits(self, base: str, changes: Sequence[Change], *,
                signoff: str = "", known: Mapping[str, str] | None = None,
                dry: bool = False) -> list[Outcome]:
        """Makes one commit per change on top of base; touches no work tree.

        git's environment may send the new objects elsewhere; dry: there are
        none. known: changes that base has already, by name, and why; these
        are left out. After the first that does not fit there are no more
        commits: the rest is tried for the report, without it.
        """
        outcomes = [Outcome(change) for change in changes]
        tree = Tree(self.git, base)
        now = self._files(tree)
        foreign = {path for path, name in self.originals.items()
                   if now.get(path, ABSENT)[1] != name}
        parent = base
        blobs: dict[str, bytes] = {}
        made: dict[str, bytes] = {}
        for number, outcome in enumerate(outcomes, 1):
            change = outcome.change
            if known and change.name in known:
                outcome.status = THERE
                outcome.notes = [n for n in [known[change.name]] if n]
                continue
            after = self._fit(outcome, now)
            outcome.foreign = bool(foreign & {
                edit.path for edit in self.edits[change.name]})
            if outcome.status != OK:
                parent = "" if outcome.status == MISFIT else parent
                continue
            now |= after
            if not parent:
                outcome.status = "would fit"
                continue
            for path, file in after.items():
                tree.put(path, file)
                data = self.objects.blobs.get(file[1])
                if data is not None:
                    blobs[file[1]] = data
            message = change.message
            if signoff:
                message = self.git(
                    "interpret-trailers", "--no-divider", "--if-exists",
                    "addIfDifferent", "--trailer",
                    f"Signed-off-by: {signoff}",
                    data=message.encode()) + "\n"
            who = f"{NAME} <{EMAIL}> {seconds(number)} +0000"
            data = (f"tree {tree.write()}\nparent {parent}\nauthor {who}\n"
                    f"committer {who}\n\n{message}").encode()
            parent = outcome.commit = object_id("commit", data)
            made[parent] = data
        if not dry:
            self.objects.write("blob", blobs)
            self.objects.write("tree", tree.made)
            self.objects.write("commit", made)
        return outcomes

    def _fit(self, outcome: Outcome, now: dict[str, File]
             ) -> dict[str, File]:
        """The files after a change; says in outcome whether it fits."""
        change = outcome.change
        after = {}
        bad = list(self.faults[change.name])
        merged = []
        for edit in self.edits[change.name]:
            ours = now[edit.path]
            file = self._turn(ours, edit.old, edit.new)
            if file is None or edit.path in self.missing and file != ours:
                bad.append(self._why(edit, ours))
                continue
            after[edit.path] = file
            if ours != edit.old:
                merged.append(edit.path)
        if bad:
            outcome.status, outcome.notes = MISFIT, bad
        elif after and all(now[path] == file for path, file in
                           after.items()):
            outcome.status = THERE
        else:
            outcome.status = OK
            outcome.notes = list(self.notes[change.name])
            if merged:
                outcome.notes.append("fits by a three-way merge: "
                                     + ", ".join(merged))
        return after

    def _why(self, edit: Edit, ours: File) -> str:
        if ours == ABSENT:
            return f"{edit.path} does not exist there"
        if edit.old == ABSENT:
            return f"{edit.path} exists"
        if edit.path in self.missing:
            return (f"{edit.path} is another, and the original, for a merge, "
                    "is not at hand")
        old = self.objects.blob(edit.old[1])
        bad = []
        if old is not None and edit.new != ABSENT:
            lines = io.BytesIO(old).readlines()
            for number, (_, start, before, after) in enumerate(
                    hunks(edit.text), 1):
                alone = self.objects.add(b"".join(
                    lines[:start] + after + lines[start + len(before):]))
                if not self.objects.merge(ours[1], edit.old[1], alone):
                    bad.append(number)
        return _misfit(edit.path, edit.text, bad)


def commits(git: Git, base: str, series: Series, topic: str | None = None
            ) -> list[Outcome]:
    """The series, or a topic of it, as commits on base."""
    return Graft(git, series).commits(base, series.select(topic))


def hints(git: Git, base: str, outcomes: Iterable[Outcome]) -> None:
    """Notes: may QEMU's own form be in the way, or there beside ours?"""
    release = _numbers(git.raw("show", f"{base}:VERSION").stdout.decode())
    for outcome in outcomes:
        upstream = origin(outcome.change.message)
        rows = upstream.same or upstream.weaker
        if outcome.status == OK and outcome.foreign and upstream.same \
                and not upstream.probes:
            outcome.notes.append(f"look whether this tree has QEMU's own "
                                 f"form, {upstream.short()}")
        if outcome.status != MISFIT or not rows:
            continue
        seen = upstream.probes and all(holds(git, base, *p)
                                       for p in upstream.probes)
        if seen or release >= min(_numbers(r) for r, _ in rows):
            outcome.notes.append(
                f"{'this tree has' if seen else 'perhaps this tree has'} "
                f"QEMU's own{', weaker' if upstream.weaker else ''} form, "
                + upstream.short())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def holds(git: Git, base: str, path: str, what: str) -> bool:
    return what.encode() in git.raw("show", f"{base}:{path}").stdout


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
