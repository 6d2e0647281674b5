# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork check: what the house rules say, one item per rule."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable

from . import mirror
from .build import Builder
from .common import Fail, Repo, remove, say
from .gitrepo import Git
from .graft import Graft, Outcome, tip
from .origin import column, origin, trailers
from .series import COVER, Series, from_commit

# All that is tracked here belongs to QEMU: a change has to name it.
IN_TREE = re.compile(r"[^/]+\.(cc|hh|c|h)$|(block|hw|monitor|net|qapi|include|"
                     r"stats|stubs|util|tests/unit|tests/qtest|"
                     r"tests/functional|tests/bench|tests/qemu-iotests|"
                     r"docs/devel|docs/tools)/|scripts/iothread")
CODE = re.compile(r"\.(c|h|cc|hh|py)$")
NO_SPDX = re.compile(r"\.(out|txt|bin|gitignore)$|/?LICENSE$")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|"
                     r"'(?:\\.|[^'\\\n])'", re.S)
CXX_WORDS = re.compile(r"\b(throw|try|catch|dynamic_cast|typeid)\b")
# What a C++ file includes outside of the block of C headers
CXX_BLOCK = re.compile(r'#include "qemu/cxx-begin\.h".*?'
                       r'#include "qemu/cxx-end\.h"', re.S)
CXX_INCLUDES = re.compile(r'#include "([^"]+)"')
# Python is not counted: it is what QEMU's tests and tools are written in
CXX = (".cc", ".hh")
COUNTED = (*CXX, ".c", ".h")
SUBJECT = re.compile(r"[^\s:][^:]*: \S.*[^.]")


@dataclass
class Item:
    name: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    note: str = ""


def tracked(repo: Repo) -> list[str]:
    """The files of the repository that git knows."""
    out = Git(repo.root)("ls-files", "-z")
    return [p for p in out.split("\0") if p and (repo.root / p).is_file()]


def text(path: Path) -> str:
    return path.read_text(errors="replace")


# --- Rules for the files --------------------------------------------------

def files_agree(repo: Repo, series: Series) -> Item:
    """patches/series names everything, once, and nothing else."""
    item = Item("series")
    listed: dict[str, str] = {}
    for change in series.changes:
        for path in change.paths:
            if path in listed:
                item.errors.append(f"{path} is added by {listed[path]} and "
                                   f"by {change.name}")
            listed[path] = change.name
        for path in change.touched():
            if path in listed:
                item.errors.append(f"{change.name} has hunks for {path}, "
                                   f"which {listed[path]} adds")
    names = {f"{c.name}.patch" for c in series.changes} | {"series"} | {
        f"{topic}/{COVER}" for topic in series.topics}
    for file in sorted(repo.patches.rglob("*")):
        name = str(file.relative_to(repo.patches))
        if file.is_file() and name not in names:
            item.errors.append(f"patches/{name} is not in patches/series")
    for path in tracked(repo):
        if IN_TREE.match(path) and path not in listed:
            item.errors.append(f"{path} is not named in patches/series")
    for topic in series.topics:
        cover = repo.patches / topic / COVER
        if any(len(line) > 72 for line in
               (text(cover) if cover.exists() else "").split("\n")):
            item.errors.append(f"patches/{topic}/{COVER} has a line of more "
                               "than 72 columns, too long for a mail")
    return item


def messages(series: Series) -> Item:
    item = Item("messages")
    subjects: set[str] = set()
    for change in series.changes:
        lines = change.message.split("\n")
        bad = []
        if not SUBJECT.fullmatch(lines[0]):
            bad.append("the subject is not `area: summary` (no full stop)")
        if lines[0] in subjects:
            bad.append("another change has the same subject")
        subjects.add(lines[0])
        if len(lines) < 4 or lines[1] or not lines[2].strip() \
                or trailers(f"\n\n{lines[2]}"):
            bad.append("no blank line and body after the subject")
        bad += [f"line {number} is longer than 76 columns"
                for number, line in enumerate(lines, 1) if len(line) > 76]
        if re.search(r"(?mi)^signed-off-by:", change.message):
            bad.append("has a Signed-off-by; apply --signoff adds it")
        if change.message != change.message.rstrip("\n") + "\n":
            bad.append("has blank lines at its end")
        item.errors += [f"{change.name}: {what}" for what in bad]
    return item


def origins(repo: Repo, series: Series) -> Item:
    """Each change says whether QEMU has it, and docs/changes.md agrees."""
    item = Item("upstream")
    for change in series.changes:
        item.errors += [f"{change.name}: {what}"
                        for what in origin(change.message).errors]
    table = repo.root / "docs" / "changes.md"
    if table.exists():
        old = text(table)
        new, missing = column(old, {c.name: c.message
                                    for c in series.changes})
        item.errors += [f"docs/changes.md has not one row for {name}"
                        for name in missing]
        item.errors += [
            f"docs/changes.md:{number}: the column upstream is not as the "
            "patch says; ./fork refresh writes it"
            for number, pair in enumerate(zip(old.split("\n"),
                                              new.split("\n")), 1)
            if pair[0] != pair[1]]
    return item


def probes(git: Git, base: str, outcomes: list[Outcome]) -> Item:
    """What a probe looks for is in neither the base nor the series."""
    item = Item("probes")
    for outcome in outcomes:
        name = outcome.change.name
        for path, what in origin(outcome.change.message).probes:
            for commit, where in ((base, "the base"),
                                  (outcomes[-1].commit, "the series")):
                done = git.raw("show", f"{commit}:{path}")
                if done.returncode:
                    item.errors.append(f"{name}: its probe names {path}, "
                                       f"which is not in {where}")
                elif what.encode() in done.stdout:
                    item.errors.append(f"{name}: {where} has what its probe "
                                       f"looks for in {path}")
    return item


def style(repo: Repo, series: Series) -> Item:
    """Lines, blanks and licence of the files that are new."""
    item = Item("style")
    ours = [p for p in tracked(repo)
            if p.startswith(("scripts/", "tests/")) and CODE.search(p)]
    new = [path for change in series.changes for path in change.paths]
    for path in sorted({*ours, *new}):
        body = text(repo.root / path)
        if not NO_SPDX.search(path) and \
                "SPDX-License-Identifier:" not in body[:2000]:
            item.errors.append(f"{path}: no SPDX-License-Identifier line")
        for number, line in enumerate(body.split("\n"), 1):
            if CODE.search(path) and len(line) > 80:
                item.errors.append(f"{path}:{number}: longer than 80 columns")
            if CODE.search(path) and "\t" in line:
                item.errors.append(f"{path}:{number}: has a tab")
            if line != line.rstrip():
                item.errors.append(f"{path}:{number}: blanks at its end")
    return item


def cxx(repo: Repo, series: Series) -> Item:
    """C++ inside QEMU: no exceptions, no RTTI, C headers where they may be."""
    item = Item("c++")
    new = {path for change in series.changes for path in change.paths}
    for path in sorted({p for p in {*tracked(repo), *new}
                        if p.endswith(CXX)}):
        body = text(repo.root / path)
        if not CXX_BLOCK.search(body):
            item.errors.append(f"{path}: does not include qemu/cxx-begin.h")
        for match in CXX_INCLUDES.finditer(CXX_BLOCK.sub("", body)):
            if not match[1].endswith(CXX):
                item.errors.append(f"{path}: includes {match[1]} outside of "
                                   "qemu/cxx-begin.h and qemu/cxx-end.h")
        code = COMMENT.sub(lambda m: "\n" * m[0].count("\n"), body)
        for number, line in enumerate(code.split("\n"), 1):
            if match := CXX_WORDS.search(line):
                item.errors.append(f"{path}:{number}: {match[1]}")
    item.note = share(repo, series)
    return item


def share(repo: Repo, series: Series) -> str:
    """Files and lines that are new, by language."""
    counts = {f"{what}, {language}": [0, 0] for what in ("product", "tests")
              for language in ("C++", "C headers", "C")}
    for path in {path for change in series.changes for path in change.paths}:
        file = repo.root / path
        if file.suffix in COUNTED:
            what = "tests" if path.startswith("tests/") else "product"
            language = "C++" if file.suffix in CXX else \
                "C headers" if file.suffix == ".h" else "C"
            counts[f"{what}, {language}"][0] += 1
            counts[f"{what}, {language}"][1] += text(file).count("\n")
    return "; ".join(f"{name}: {files} files, {lines} lines"
                     for name, (files, lines) in counts.items())


def hosts(repo: Repo) -> Item:
    """No file names a package mirror: it is the host's apt that knows."""
    item = Item("mirrors")
    names = {h.split(":")[0] for h in mirror.hosts()}
    names = {h for h in names if re.search(r"\.[a-z]+$", h)}
    for path in tracked(repo):
        for host in sorted(names):
            if host in text(repo.root / path):
                item.errors.append(f"{path} names {host}")
    return item


def python(repo: Repo) -> Item:
    item = Item("python")
    for path in tracked(repo):
        if path.endswith(".py") or path == "fork":
            try:
                compile(text(repo.root / path), path, "exec")
            except SyntaxError as error:
                item.errors.append(f"{path}:{error.lineno}: {error.msg}")
    return item


# --- Rules for the series on its base -------------------------------------

def exact(outcomes: Iterable[Outcome]) -> Item:
    item = Item("no offsets")
    for outcome in outcomes:
        item.errors += [f"{outcome.change.name}: {note}"
                        for note in outcome.notes]
    return item


def round_trip(git: Git, base: str, series: Series,
               outcomes: list[Outcome]) -> Item:
    """Commits made of the patches give the same patches, byte by byte."""
    item = Item("round trip")
    parent = base
    for outcome in outcomes:
        change = outcome.change
        again = from_commit(git, change.name, parent, outcome.commit)
        if again.patch() != change.patch():
            item.errors.append(f"patches/{change.name}.patch is not as git "
                               "writes it" + _first_difference(
                                   change.patch(), again.patch()))
        if sorted(again.paths) != sorted(change.paths):
            item.errors.append(f"{change.name}: its new files differ")
        parent = outcome.commit
    if series.path.exists() and series.path.read_text() != series.text():
        item.errors.append("patches/series is not as the command writes it")
    return item


def _first_difference(one: bytes, two: bytes) -> str:
    pairs = zip(one.split(b"\n"), two.split(b"\n"))
    for number, (mine, theirs) in enumerate(pairs, 1):
        if mine != theirs:
            return (f" (line {number} is {mine.decode(errors='replace')!r}, "
                    f"git writes {theirs.decode(errors='replace')!r})")
    return " (its length)"


def topics(graft: Graft, base: str) -> Item:
    """Each topic applies with no more than what it comes after."""
    series = graft.series
    item = Item("topics")
    for topic in series.topics:
        try:
            tip(graft.commits(base, series.select(topic), dry=True), base)
        except Fail as error:
            item.errors.append(f"{topic} alone: {error}")
    return item


# --- Rules that tools of the environment know -----------------------------

def checkpatch(builder: Builder, git: Git, outcomes: list[Outcome]) -> Item:
    item = Item("checkpatch")
    folder = builder.repo.build / "check.partial"
    remove(folder)
    folder.mkdir(parents=True)
    mails = []
    try:
        for outcome in outcomes:
            name = outcome.change.name.replace("/", "-") + ".patch"
            (folder / name).write_bytes(git.bytes(
                "format-patch", "--stdout", "--no-renames", "-1",
                outcome.commit))
            mails.append(name)
        done = builder.env.capture(
            ["perl", builder.repo.stock / "scripts/checkpatch.pl",
             "--no-signoff", "--terse", "--no-summary", "--color=never",
             "--root", builder.repo.stock, *mails], cwd=folder, timeout=600)
    finally:
        remove(folder)
    for line in done.stdout.splitlines():
        if "ERROR:" in line:
            item.errors.append(line)
        elif "WARNING:" in line \
                and "added, moved or deleted" not in line:
            item.warnings.append(line)
    if done.returncode > 1 or done.returncode and not item.errors \
            and not done.stdout:
        item.errors.append(f"checkpatch.pl failed: {done.stderr.strip()}")
    return item


def formatting(builder: Builder) -> Item:
    item = Item("clang-format")
    units = [p for p in tracked(builder.repo) if p.endswith(CXX)]
    if units:
        done = builder.env.capture(["clang-format", "--dry-run", *units],
                                   timeout=120)
        item.errors += [line for line in done.stderr.splitlines()
                        if "clang-format" in line or done.returncode]
    return item


# --- All of it ------------------------------------------------------------

def guard(name: str, rule: Callable[[], Item]) -> Item:
    try:
        return rule()
    except Fail as error:
        return Item(name, [str(error)])


def static(repo: Repo, series: Series) -> list[Item]:
    """The rules that need neither base nor environment."""
    return [files_agree(repo, series), messages(series),
            origins(repo, series), style(repo, series), cxx(repo, series),
            hosts(repo), python(repo)]


def on_base(git: Git, base: str, series: Series
            ) -> tuple[list[Item], list[Outcome]]:
    graft = Graft(git, series)
    outcomes = graft.commits(base, series.changes)
    applies = guard("applies", lambda: Item(
        "applies", [] if tip(outcomes, base) else []))
    if applies.errors:
        return [applies], []
    return [applies, exact(outcomes),
            round_trip(git, base, series, outcomes),
            topics(graft, base),
            probes(git, base, outcomes)], outcomes


def run(builder: Builder) -> list[Item]:
    try:
        series = Series.load(builder.repo)
    except Fail as error:
        return [Item("series", [str(error)])]
    git, base = builder.base.git(), builder.base.commit()
    items = static(builder.repo, series)
    more, outcomes = on_base(git, base, series)
    items += more
    items.append(guard("checkpatch", lambda: checkpatch(
        builder, git, outcomes)))
    items.append(guard("clang-format", lambda: formatting(builder)))
    return items


def report(items: list[Item]) -> int:
    for item in items:
        say(f"{item.name}: " + (f"{len(item.errors)} errors" if item.errors
                                else "ok")
            + (f" ({item.note})" if item.note else ""))
        for line in item.errors:
            say(f"  {line}")
        for line in item.warnings:
            say(f"  {line}")
    bad = [item.name for item in items if item.errors]
    say("check: " + (f"failed: {', '.join(bad)}" if bad else "all is well"))
    return 1 if bad else 0
