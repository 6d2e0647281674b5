# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a change stands with QEMU itself, as trailers of its message say.

Each change has one of

    Forwarded: no                    not upstream
    Forwarded: not-needed            not for upstream
    Applied-Upstream: 11.1.0, commit:30fad722ce
    Partly-Upstream: 11.0.0, commit:4611333538
    Beyond-Upstream: what ours does more

The first three are fields of DEP-3. Partly-Upstream is for what QEMU has in
a weaker form, and needs a Beyond-Upstream. The lines with a release may come
several times, one for each commit; where the commit is not known, the release
stands alone. `Probe: FILE: TEXT` names a text that the upstream form has in
a file, and the base has not: so `apply` recognises it.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping

from .common import write

TRAILER = re.compile(r"([A-Z][A-Za-z-]*): (\S.*)")
RELEASE = re.compile(r"(\d+\.\d+(?:\.\d+)?)(?:, commit:([0-9a-f]{10,40}))?")
PROBE = re.compile(r"([\w./-]+): (\S.*)")
FATES = ("Forwarded", "Applied-Upstream", "Partly-Upstream")
NAMES = (*FATES, "Beyond-Upstream", "Probe", "Fixes", "Resolves",
         "Link")
NOT_UPSTREAM, NOT_FOR_UPSTREAM = "no", "not for it"


def trailers(message: str) -> list[tuple[str, str]]:
    """The trailers of a commit message: names and values."""
    last = message.rstrip("\n").split("\n\n")[-1].split("\n")
    found = [TRAILER.fullmatch(line) for line in last]
    return [(m[1], m[2]) for m in found if m] if all(found) else []


@dataclass
class Origin:
    """What the trailers of one change say."""
    forwarded: str = ""
    same: list[tuple[str, str]] = field(default_factory=list)
    weaker: list[tuple[str, str]] = field(default_factory=list)
    beyond: str = ""
    probes: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def words(self) -> str:
        """The column `upstream` of docs/changes.md."""
        if self.errors:
            return "?"
        if self.forwarded:
            return NOT_UPSTREAM if self.forwarded == "no" \
                else NOT_FOR_UPSTREAM
        if self.same:
            return _releases(self.same)
        return f"weaker, {_releases(self.weaker)}: {self.beyond}"

    def short(self) -> str:
        """For the report of apply."""
        known = self.same or self.weaker
        return f"upstream since {_releases(known).replace('`', '')}" \
            if known else ""


def _releases(rows: list[tuple[str, str]]) -> str:
    """`11.0.0 (1234567890, abcdef1234), 11.1.0`"""
    texts = []
    for release in dict.fromkeys(r for r, _ in rows):
        ids = [f"`{c[:10]}`" for r, c in rows if r == release and c]
        texts.append(release + (f" ({', '.join(ids)})" if ids else ""))
    return ", ".join(texts)


def origin(message: str) -> Origin:
    """Reads the trailers; what is wrong with them is in errors."""
    found = Origin()
    beyond = []
    for name, value in trailers(message):
        if name == "Forwarded":
            if value not in ("no", "not-needed"):
                found.errors.append("Forwarded is `no` or `not-needed`")
            found.forwarded = value
        elif name in ("Applied-Upstream", "Partly-Upstream"):
            match = RELEASE.fullmatch(value)
            if not match:
                found.errors.append(f"{name} is `RELEASE` or `RELEASE, "
                                    f"commit:ID`, not `{value}`")
                continue
            rows = found.same if name == "Applied-Upstream" else found.weaker
            rows.append((match[1], match[2] or ""))
        elif name == "Beyond-Upstream":
            beyond.append(value)
        elif name == "Probe":
            match = PROBE.fullmatch(value)
            if match:
                found.probes.append((match[1], match[2]))
            else:
                found.errors.append("Probe is `FILE: TEXT`")
    found.beyond = " ".join(beyond)
    kinds = [k for k in (found.forwarded, found.same, found.weaker) if k]
    if not found.errors and len(kinds) != 1:
        found.errors.append("one of Forwarded, Applied-Upstream and "
                            "Partly-Upstream says where it is"
                            + (", not several" if kinds else ""))
    if bool(found.weaker) != bool(found.beyond):
        found.errors.append("Partly-Upstream and Beyond-Upstream, what ours "
                            "does more, come together")
    if found.probes and not found.same and not found.weaker:
        found.errors.append("Probe needs something upstream")
    return found


# --- The column of docs/changes.md ----------------------------------------

HEAD = "| change | what | why | state |"
RULE = "|---|---|---|---|"
ROW = re.compile(r"\| `([a-z0-9.-]+/[a-z0-9.-]+)` \|(?: [^|]* \|){3}"
                 r"(?: [^|]* \|)?")


def column(text: str, messages: Mapping[str, str]) -> tuple[str, list[str]]:
    """docs/changes.md with the column `upstream` as the messages of the
    changes say; and the changes that have no row of their own."""
    rows: list[str] = []
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line == HEAD and lines[number + 1:number + 2] == [RULE]:
            lines[number] += " upstream |"
            lines[number + 1] += "---|"
        elif (match := ROW.fullmatch(line)) and match[1] in messages:
            rows.append(match[1])
            cells = line.split(" |")[:4]
            words = origin(messages[match[1]]).words()
            lines[number] = " |".join([*cells, f" {words}", ""])
    return "\n".join(lines), [name for name in messages
                              if rows.count(name) != 1]


def refresh_column(root: Path, messages: Mapping[str, str]) -> bool:
    """Writes the column; tells whether it was another."""
    path = root / "docs" / "changes.md"
    if not path.exists():
        return False
    old = path.read_text()
    new, _ = column(old, messages)
    if new != old:
        write(path, new)
    return new != old
