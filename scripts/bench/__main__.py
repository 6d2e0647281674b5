# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures the patched QEMU against stock, in turn."""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Iterator

from . import report
from .chart import chart
from .measure import Result, measure
from .rows import Row, table

ROUNDS, QUICK = 30, 2


def show(text: str) -> None:
    """What is at work, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def pick(rows: list[Row], parts: list[str]) -> list[Row]:
    for part in parts:
        if not any(part in row.name for row in rows):
            names = "\n  ".join(row.name for row in rows)
            sys.exit(f"bench: no row has {part!r} in its name; rows:\n"
                     f"  {names}")
    return [row for row in rows
            if not parts or any(part in row.name for part in parts)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true",
                        help="few rounds: do all rows work?")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("builds", nargs=2, type=Path, metavar="BUILD",
                        help="the build folders of stock and patched QEMU")
    parser.add_argument("rows", nargs="*", metavar="ROW",
                        help="part of a row's name")
    args = parser.parse_args()
    stock, patched = args.builds
    rounds = QUICK if args.quick else args.rounds
    rows = pick(table(patched), args.rows)
    load, start = os.getloadavg()[0], time.monotonic()
    results: list[Result] = []

    def kept() -> Iterator[Result]:
        for result in measure(rows, {"stock": stock, "again": stock,
                                     "patched": patched}, rounds, show):
            results.append(result)
            yield result

    for line in report.terminal(kept()):
        show("")
        print(line, flush=True)
    minutes = (time.monotonic() - start) / 60
    note = (f"{rounds} rounds on {os.cpu_count()} CPUs, load {load:.1f} at "
            f"the start; {minutes:.0f} minutes.")
    print(f"{report.tally(results)}; {note}")
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"rounds": rounds, "cpus": os.cpu_count(), "load": load,
             "minutes": round(minutes, 1)}
    for name, text in (
            ("bench.json", json.dumps(report.as_json(results, about),
                                      indent=1) + "\n"),
            ("table.md", report.markdown(results, note)),
            ("chart.svg", chart(results, note))):
        (args.out / name).write_text(text)
        print(args.out / name)
    return 1 if any(report.state(each) == "failed"
                    for each in results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # All QEMUs have ended with the blocks that they belong to.
        print("\nbench: interrupted", file=sys.stderr)
        sys.exit(130)
