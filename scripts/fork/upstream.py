# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork test --upstream: QEMU's own tests, on stock and on patched QEMU."""
from __future__ import annotations

import json
import time
from pathlib import Path

from .build import Builder
from .common import Fail, say, write
from .tests import Result, Session, close, meson_test, show

# meson's suites, of those that need no download; the second has the block
# tests for raw images, which QEMU counts as slow.
SUITES = (("--suite=unit", "--suite=qapi-schema", "--suite=qapi-frontend",
           "--suite=func-quick", "--suite=qtest", "--suite=block"),
          ("--setup=qemu:slow", "--suite=block-slow"))
AGAIN = 3  # how often a difference is looked at again


def names(session: Session, folder: Path, words: tuple[str, ...]
          ) -> list[str]:
    """The tests of these suites, as `meson test` takes them."""
    out = session.builder.env.capture(
        ["pyvenv/bin/meson", "test", "--list", *words], cwd=folder).stdout
    found = [line.rsplit(" / ", 1)[-1] for line in out.splitlines()
             if " / " in line]
    return sorted(set(found))


def outcome(session: Session, kind: str, what: str, words: list[str]
            ) -> dict[str, Result]:
    """What became of the tests, by name."""
    found = {result.name: result for result in meson_test(
        session, session.folder(kind), f"upstream-{what}-{kind}", words,
        multiplier="2")}
    if "meson" in found:
        raise Fail(f"meson test, on {kind}: {found['meson'].why}")
    return found


def again(session: Session, name: str, words: tuple[str, ...]
          ) -> dict[str, int]:
    """How often the test fails, alone, on each of them."""
    setup = [word for word in words if word.startswith("--setup")]
    return {kind: sum(
        any(r.status == "failed" for r in outcome(
            session, kind, "again", [*setup, name]).values())
        for _ in range(AGAIN)) for kind in ("stock", "patched")}


def compare(session: Session, stock: dict[str, Result],
            patched: dict[str, Result], words: tuple[str, ...]
            ) -> list[Result]:
    """One result for each test: nothing may pass on stock and fail here."""
    found = []
    for name in sorted(stock):
        before, after = stock[name], patched.get(
            name, Result(name, "failed", "did not run"))
        result = Result(name, after.status, after.why)
        if before.status == "failed" and after.status == "failed":
            result.status = "skipped"
            result.why = "fails on stock too: " + after.why
        elif before.status == "failed":
            result.why = f"fails on stock: {before.why}"
            say(f"  {name}: {after.status}, and {result.why}")
        elif after.status == "failed" or \
                (before.status, after.status) == ("passed", "skipped"):
            counts = again(session, name, words)
            say(f"  {name}: {before.status} on stock, {after.status} here "
                f"({after.why}); of {AGAIN} runs alone, {counts['stock']} "
                f"fail on stock and {counts['patched']} here")
            # Only what fails beside other tests, and never alone, or on
            # stock as well, is put down to the load.
            result.status = "failed"
            if counts["stock"] or not counts["patched"] \
                    and after.status == "failed":
                result.status = "skipped"
                result.why = f"not reliable: {after.why}"
        found.append(result)
    return found


def run(builder: Builder, wanted: list[str]) -> int:
    """All tests, or those whose name has one of these parts."""
    session = Session(builder)
    session.build("stock", "patched")
    found: list[Result] = []
    record: dict[str, dict[str, str]] = {}
    for number, words in enumerate(SUITES, 1):
        tests = [name for name in
                 names(session, session.folder("stock"), words)
                 if not wanted or any(part in name for part in wanted)]
        if not tests:
            continue
        outcomes = {}
        for kind in "stock", "patched":
            start = time.monotonic()
            outcomes[kind] = outcome(
                session, kind, str(number),
                [w for w in words if w.startswith("--setup")] + tests)
            say(f"{kind}: {len(outcomes[kind])} tests "
                f"({time.monotonic() - start:.0f} s)")
        for name, result in outcomes["stock"].items():
            record[name] = {"stock": result.status}
        for name, result in outcomes["patched"].items():
            record.setdefault(name, {})["patched"] = result.status
        found += compare(session, outcomes["stock"], outcomes["patched"],
                         words)
    if not found:
        raise Fail("no test of QEMU has a name with " + " or ".join(wanted))
    show(found)
    write(builder.repo.build / "upstream.json",
          json.dumps(record, indent=1) + "\n")
    return close(found)
