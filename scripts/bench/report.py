# SPDX-License-Identifier: GPL-2.0-or-later
"""The results as lines of a terminal, as Markdown and as JSON."""
from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Iterable, Mapping, Sequence

from .measure import Result
from .stats import BROKEN

HEAD = ("", "stock", "patched", "unit", "ratio", "middle half", "noise",
        "bound", "")
WIDTHS = 40, 9, 9, 5, 7, 15, 8, 8, 0


def number(value: float | None) -> str:
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else \
        2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def cells(result: Result) -> tuple[str, ...]:
    """What stands in the columns of HEAD."""
    row, found = result.row, result.summary()
    bound = str(row.bound or "")
    if found is None:
        why = f"left out: {result.missing}" if result.missing else \
            f"FAILED: {result.failed or 'not measured'}"
        return row.name, "", "", row.unit, "", "", "", bound, why
    noise, verdict = "", found.verdict
    if verdict == BROKEN:
        verdict = verdict.upper()
    if row.bound and row.bound.kind == "difference":
        assert found.difference is not None
        verdict += f" ({found.difference:+.2f} {row.bound.unit})"
        noise = f"{found.noise:.2f}" if found.noise is not None else ""
    elif found.noise is not None:
        # As a part of the figure, which is 1 where it is a ratio.
        middle = found.patched if found.ratio is None else 1
        noise = f"{found.noise / (middle or 1) * 100:.1f} %"
    several = len(result.samples["patched"]) > 1
    ends = [number(end) if found.ratio is None else f"{end:.3f}"
            for end in (found.low, found.high)]
    return (row.name, number(found.stock), number(found.patched), row.unit,
            "" if found.ratio is None else f"{found.ratio:.3f}",
            " to ".join(ends) if several else "", noise, bound, verdict)


def line(words: Sequence[str]) -> str:
    """Names and verdicts to the left, figures to the right."""
    return " ".join(
        word.ljust(width) if index in (0, 3, 8) else word.rjust(width)
        for index, (word, width) in enumerate(zip(words, WIDTHS))).rstrip()


def terminal(results: Iterable[Result]) -> Iterable[str]:
    """Lines as soon as there are results; above each group of rows, what
    they mean."""
    yield line(HEAD)
    meaning = ""
    for result in results:
        if result.row.meaning != meaning:
            meaning = result.row.meaning
            yield f"- {meaning}"
        yield line(cells(result))


def markdown(results: Sequence[Result], note: str) -> str:
    lines = [note, "", "| " + " | ".join(HEAD[:-1]) + " | verdict |",
             "|---" + "|--:" * 2 + "|---" + "|--:" * 4 + "|---|"]
    meaning = ""
    for result in results:
        if result.row.meaning != meaning:
            meaning = result.row.meaning
            lines.append(f"| *{meaning}* |" + " |" * (len(HEAD) - 1))
        lines.append("| " + " | ".join(cells(result)) + " |")
    return "\n".join(lines) + "\n"


def state(result: Result) -> str:
    if found := result.summary():
        return found.verdict or "without a bound"
    return "left out" if result.missing else "failed"


def tally(results: Sequence[Result]) -> str:
    return "rows: " + ", ".join(
        f"{count} {what}" for what, count in
        Counter(map(state, results)).most_common())


def as_json(results: Sequence[Result], about: Mapping[str, object]
            ) -> dict[str, object]:
    rows = []
    for result in results:
        row, found = result.row, result.summary()
        rows.append({
            "name": row.name, "meaning": row.meaning, "unit": row.unit,
            "bound": str(row.bound) if row.bound else None,
            **(dataclasses.asdict(found) if found else {}),
            "samples": result.samples, "left out": result.missing or None,
            "failed": result.failed or None})
    return {**about, "rows": rows}
