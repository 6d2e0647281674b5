# SPDX-License-Identifier: GPL-2.0-or-later
"""The series in the forms in which distributions keep patches."""
from __future__ import annotations

import io
import lzma
import re
import tarfile
import textwrap
from pathlib import Path
from typing import Callable

from .common import Fail, say, write
from .gitrepo import EMAIL, EPOCH, NAME, Git
from .graft import Outcome
from .origin import trailers
from .series import Change, raw_diff

# As patch(1) and git both read them, with the context that both like.
DIFF = ("-p", "--full-index", "-U3", "--no-renames", "--no-color",
        "--no-ext-diff", "--no-textconv", "--diff-algorithm=myers",
        "--indent-heuristic", "--src-prefix=a/", "--dst-prefix=b/")
DEBIAN = "fork"  # the folder below debian/patches


def diffs(git: Git, start: str, outcomes: list[Outcome]
          ) -> list[tuple[Change, bytes]]:
    """Each change with its whole diff, new files and all."""
    found, parent = [], start
    for outcome in outcomes:
        text = git.bytes("diff-tree", *DIFF, parent, outcome.commit)
        if b"\nGIT binary patch\n" in text:
            raise Fail(f"{outcome.change.name} has a binary file; only mails "
                       "can carry it")
        found.append((outcome.change, text))
        parent = outcome.commit
    return found


def split(message: str) -> tuple[str, str]:
    """A message's subject, and its body without trailers."""
    subject, _, rest = message.rstrip("\n").partition("\n")
    if trailers(message):
        rest = rest.rstrip("\n").rpartition("\n\n")[0]
    return subject, rest.strip("\n")


# --- quilt ----------------------------------------------------------------

def quilt(pairs: list[tuple[Change, bytes]], folder: Path) -> str:
    """patches/series and patches/TOPIC/NAME.patch, as quilt reads them."""
    series = ""
    for change, text in pairs:
        head = f"From: {NAME} <{EMAIL}>\nSubject: {change.subject}\n" \
            + change.message.partition("\n")[2]
        write(folder / "patches" / f"{change.name}.patch",
              head.encode() + b"---\n" + text)
        series += f"{change.name}.patch\n"
    write(folder / "patches" / "series", series)
    return "in QEMU's top folder, with patches/ in it: `quilt push -a`"


# --- Debian ---------------------------------------------------------------

def dep3(change: Change) -> str:
    """The header of a patch, as DEP-3 has it."""
    subject, body = split(change.message)
    lines = [f"Description: {subject}"]
    lines += [f" {line}" if line else " ." for line in body.split("\n")]
    lines += [f"Author: {NAME} <{EMAIL}>", "Origin: vendor"]
    known = trailers(change.message)
    # In DEP-3 a field stands once, and what it does not know is prefixed.
    upstream = [v for n, v in known if n == "Applied-Upstream"]
    if upstream:
        lines.append(f"Applied-Upstream: {upstream[0]}")
    for name, value in known:
        if name == "Forwarded":
            lines.append(f"Forwarded: {value}")
        elif name == "Partly-Upstream":
            lines += ["Forwarded: no"] * ("Forwarded: no" not in lines)
            lines.append(f"X-Partly-Upstream: {value}")
        elif name == "Applied-Upstream" and value != upstream[0]:
            lines.append(f"X-Applied-Upstream: {value}")
        elif name == "Link":
            lines.append(f"Bug: {value}")
        elif name in ("Fixes", "Resolves", "Beyond-Upstream",
                      "Probe"):
            lines.append(f"X-{name}: {value}")
    return "\n".join(lines) + "\n---\nThis patch header follows DEP-3.\n\n"


def debian(pairs: list[tuple[Change, bytes]], folder: Path) -> str:
    """What goes into debian/ of a source package: patches with DEP-3
    headers, the lines for debian/patches/series, a changelog entry."""
    series = ""
    for change, text in pairs:
        path = f"{DEBIAN}/{change.name}.patch"
        write(folder / "debian" / "patches" / path,
              dep3(change).encode() + text)
        series += f"{path}\n"
    write(folder / "debian" / "patches" / f"series.{DEBIAN}", series)
    write(folder / f"changelog.{DEBIAN}", entry(pairs))
    return ("in an unpacked source package: copy debian/ over it, then "
            f"`cat debian/patches/series.{DEBIAN} >> debian/patches/series` "
            f"and `dch` with what changelog.{DEBIAN} says")


def entry(pairs: list[tuple[Change, bytes]]) -> str:
    """The text of a changelog entry, without version and name."""
    topics: dict[str, int] = {}
    holes: list[str] = []
    for change, _ in pairs:
        topics[change.topic] = topics.get(change.topic, 0) + 1
        holes += re.findall(r"(?m)^Resolves: (CVE-\d+-\d+)$", change.message)
    lines = [f"add {len(pairs)} patches of the fork series:"]
    text = "; ".join(f"{name} ({count})" for name, count in topics.items())
    body = textwrap.fill(f"  * {lines[0]} {text}.", 76,
                         subsequent_indent="    ",
                         break_on_hyphens=False) + "\n"
    for name in sorted(set(holes)):
        body += f"    Closes: {name}\n"
    return body


# --- RPM ------------------------------------------------------------------

def rpm(pairs: list[tuple[Change, bytes]], folder: Path) -> str:
    """Patches with flat names, and the Patch: lines for a spec."""
    width, lines = len(str(len(pairs))), ""
    for number, (change, text) in enumerate(pairs, 1):
        name = f"{number:0{max(width, 4)}}-" \
            f"{change.name.replace('/', '-')}.patch"
        head = f"From: {NAME} <{EMAIL}>\nSubject: {change.subject}\n" \
            + change.message.partition("\n")[2]
        write(folder / name, head.encode() + b"---\n" + text)
        lines += f"Patch{5000 + number}: {name}\n"
    write(folder / "patches.inc", lines)
    return ("copy the patches beside the spec, put the lines of patches.inc "
            "into it (or `%include`), and `%autosetup -p1`")


# --- overlay --------------------------------------------------------------

def overlay(git: Git, start: str, end: str, folder: Path, version: str
            ) -> str:
    """A tarball of each file that differs, as it is in the end."""
    out = io.BytesIO()
    gone = []
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) \
            as tar:
        for status, mode, blob, path in sorted(raw_diff(git, start, end),
                                               key=lambda row: row[3]):
            if status == "D":
                gone.append(path)
                continue
            data = git.bytes("cat-file", "blob", blob)
            info = tarfile.TarInfo(path)
            info.size, info.mtime = len(data), EPOCH
            info.mode = 0o755 if mode == "100755" else 0o644
            tar.addfile(info, io.BytesIO(data))
    if gone:
        raise Fail(f"the series removes {gone[0]}; a tarball cannot")
    name = f"qemu-{version}-fork.tar.xz"
    write(folder / name, lzma.compress(out.getvalue(), preset=6))
    return f"in QEMU {version}'s top folder: `tar -xf {name}`"


WRITERS: dict[str, Callable[[list[tuple[Change, bytes]], Path], str]] = {
    "quilt": quilt, "debian": debian, "rpm": rpm}
FORMATS = ("mbox", *WRITERS, "overlay")


def write_format(form: str, git: Git, start: str, outcomes: list[Outcome],
                 folder: Path, version: str) -> str:
    """Writes one format into an empty folder; returns how to use it."""
    if form == "overlay":
        return overlay(git, start, outcomes[-1].commit, folder, version)
    pairs = diffs(git, start, outcomes)
    how = WRITERS[form](pairs, folder)
    say(f"{len(pairs)} changes for QEMU {version}, as {form}")
    return how
