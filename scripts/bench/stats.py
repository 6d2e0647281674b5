# SPDX-License-Identifier: GPL-2.0-or-later
"""From samples to a figure, its noise, and whether a bound holds."""
from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Sequence

# With fewer rounds nothing can be said with this confidence.
CONFIDENCE = 0.99
LEAST_ROUNDS = 8
# A row that is to be the same as stock's says so only up to its noise, and
# one that is noisier than this says nothing.
SHARP = 0.02

# Verdicts
HOLDS, BROKEN = "holds", "broken"
NOISY, FEW = "too noisy", "too few rounds"


@dataclass(frozen=True)
class Bound:
    """What a row has to prove. A kind is one of
    same: the ratio is 1.00, within noise
    ratio, difference: to stock, at most the limit
    value: the figure of the patched QEMU is at most the limit"""
    kind: str
    limit: float = 1.0
    unit: str = ""

    def __str__(self) -> str:
        if self.kind == "difference":
            return f"+{self.limit:g} {self.unit}"
        return "1.00" if self.kind == "same" else f"<= {self.limit:g}"


@dataclass(frozen=True)
class Samples:
    """One figure per round; `again` is stock a second time."""
    stock: Sequence[float] = ()
    again: Sequence[float] = ()
    patched: Sequence[float] = ()


@dataclass(frozen=True)
class Summary:
    """Medians; low to high is the middle half of the rounds' ratios (of
    the figures, where there is no stock)."""
    patched: float
    stock: float | None
    ratio: float | None
    difference: float | None
    low: float
    high: float
    noise: float | None
    verdict: str


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Where the true median is, with CONFIDENCE: between two of the
    samples, whatever their distribution. Too few of them: their range."""
    ordered = sorted(samples)
    count, rank, below = len(ordered), 0, 0.0
    while rank < (count - 1) // 2:
        below += math.comb(count, rank) / 2 ** count
        if 2 * below > 1 - CONFIDENCE:
            break
        rank += 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[-1 - rank]


def middle_half(samples: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(samples)
    quarter = len(ordered) // 4
    return ordered[quarter], ordered[-1 - quarter]


def spread(samples: Sequence[float], middle: float) -> float:
    """How far the true median may be from there."""
    return max(abs(end - middle) for end in interval(samples))


def judge(bound: Bound | None, middle: float, noise: float | None,
          rounds: int) -> str:
    if bound is None or noise is None:
        return ""
    if rounds < LEAST_ROUNDS:
        return FEW
    if middle - noise > bound.limit:
        return BROKEN
    proved = noise <= SHARP if bound.kind == "same" else \
        middle + noise <= bound.limit
    return HOLDS if proved else NOISY


def summarize(samples: Samples, bound: Bound | None) -> Summary:
    patched = statistics.median(samples.patched)
    if not samples.stock:
        alone = spread(samples.patched, patched)
        return Summary(patched, None, None, None,
                       *middle_half(samples.patched), alone,
                       judge(bound, patched, alone, len(samples.patched)))
    # Each round's patched figure against what stock did around it.
    stocks = [(a + b) / 2 for a, b in zip(samples.stock, samples.again)] \
        or samples.stock
    ratios = [p / s for p, s in zip(samples.patched, stocks)]
    changes = [p - s for p, s in zip(samples.patched, stocks)]
    ratio, change = statistics.median(ratios), statistics.median(changes)
    noise: float | None = None
    if samples.again:
        # Stock against stock is 1; what it is instead is noise, and so is
        # what the ratios leave open.
        pairs = list(zip(samples.again, samples.stock))
        noise = max(spread([a / b for a, b in pairs], 1),
                    spread(ratios, ratio))
        if bound and bound.kind == "difference":
            noise = max(spread([a - b for a, b in pairs], 0),
                        spread(changes, change))
    middle = change if bound and bound.kind == "difference" else ratio
    return Summary(patched, statistics.median(stocks), ratio, change,
                   *middle_half(ratios), noise,
                   judge(bound, middle, noise, len(ratios)))
