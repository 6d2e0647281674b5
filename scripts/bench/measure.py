# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes the samples: each round all sides, in changing order."""
from __future__ import annotations

import contextlib
import itertools
import statistics
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from .qemu import Missing
from .rows import Row, Setup
from .stats import Samples, Summary, summarize


@dataclass
class Result:
    row: Row
    samples: dict[str, list[float]] = field(default_factory=dict)
    missing: str = ""
    failed: str = ""

    def summary(self) -> Summary | None:
        if self.missing or self.failed or not self.samples:
            return None
        return summarize(Samples(**self.samples), self.row.bound)


def order(sides: Sequence[str], number: int) -> tuple[str, ...]:
    """Each side is first, and last, as often as the others."""
    ways = list(itertools.permutations(sides))
    return ways[number % len(ways)]


def sample(result: Result, targets: Mapping[str, Any], first: int,
           rounds: int, warm_up: bool) -> None:
    row = result.row
    if warm_up:
        for target in targets.values():
            row.sample(target)
    for number in range(first, first + rounds):
        for side in order(row.setup.sides, number):
            result.samples.setdefault(side, []).append(
                row.sample(targets[side]))


def group(setup: Setup, results: list[Result], builds: Mapping[str, Path],
          rounds: int, show: Callable[[str], None]) -> None:
    """Measures rows of one setup: starts it, takes some rounds of each row,
    and starts it again.  A row that fails does not end the others."""
    rounds = min(rounds * setup.weight, setup.most)
    done = 0
    while done < rounds:
        now = min(setup.rounds, rounds - done)
        left = [each for each in results
                if not each.failed and not each.missing]
        current: Result | None = None
        try:
            with contextlib.ExitStack() as stack:
                if left:
                    show(f"{left[0].row.name}: {done}/{rounds}")
                targets = {side: stack.enter_context(setup.start(
                    builds[side])) for side in setup.sides if left}
                for target in targets.values():
                    setup.ready(target)
                for current in left:
                    show(f"{current.row.name}: {done}/{rounds}")
                    # What runs on between rounds is warm after the first.
                    sample(current, targets, done, now, setup.rounds > 1)
        except Missing as error:
            for each in [current] if current else left:
                each.missing = str(error)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            for each in [current] if current else left:
                each.failed = str(error) or type(error).__name__
        done += now


def together(results: Sequence[Result]) -> Iterator[Result]:
    """One more row for rows that are to be as on stock: the geometric mean
    of each round's figures.  What each of them is off by chance evens out,
    so that it is sharper than they are."""
    whole = [each for each in results if each.summary()
             and each.row.bound and each.row.bound.kind == "same"]
    if len(whole) < 2:
        return
    first = whole[0].row
    yield Result(
        replace(first, name=f"{first.area}: all together", meaning="the "
                "geometric mean of these rows, round by round"),
        {side: [statistics.geometric_mean(figures) for figures in
                zip(*(each.samples[side] for each in whole))]
         for side in first.setup.sides})


def measure(rows: Sequence[Row], builds: Mapping[str, Path], rounds: int,
            show: Callable[[str], None]) -> Iterator[Result]:
    area: list[Result] = []
    for setup, same in itertools.groupby(rows, lambda row: row.setup):
        results = [Result(row) for row in same]
        group(setup, results, builds, rounds, show)
        for each in results:
            if area and each.row.area != area[0].row.area:
                yield from together(area)
                area = []
            area.append(each)
            yield each
    yield from together(area)
