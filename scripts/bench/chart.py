# SPDX-License-Identifier: GPL-2.0-or-later
"""The ratios as a picture: a plain SVG, one line per row."""
from __future__ import annotations

from typing import Sequence
from xml.sax.saxutils import escape

from .measure import Result
from .rows import AREAS
from .stats import BROKEN, FEW, HOLDS, NOISY, Summary

LOW, HIGH = 0.90, 1.10  # what is beyond is an arrow at the edge
LEFT, RIGHT, WIDTH = 300, 760, 1010
STEP, TOP = 19, 92
COLOURS = {HOLDS: "#1a7f37", BROKEN: "#cf222e", NOISY: "#9a6700",
           FEW: "#9a6700", "": "#57606a"}
LEGEND = ((HOLDS, "the bound holds"), (BROKEN, "it is broken"),
          (NOISY, "cannot be told for noise"), ("", "no bound"))


def x(ratio: float) -> float:
    kept = min(max(ratio, LOW), HIGH)
    return LEFT + (kept - LOW) / (HIGH - LOW) * (RIGHT - LEFT)


def text(left: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{left:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def bar(low: float, high: float, y: float, height: float, colour: str,
        opacity: float = 1) -> str:
    return (f'<rect x="{x(low):.1f}" y="{y - height / 2:.1f}" '
            f'width="{max(x(high) - x(low), 1):.1f}" height="{height}" '
            f'fill="{colour}" fill-opacity="{opacity}"/>')


def stroke(ratio: float, top: float, bottom: float, colour: str,
           more: str = "") -> str:
    return (f'<line x1="{x(ratio):.1f}" x2="{x(ratio):.1f}" y1="{top:.1f}" '
            f'y2="{bottom:.1f}" stroke="{colour}" {more}/>')


def dot(ratio: float, y: float, colour: str) -> str:
    if LOW <= ratio <= HIGH:
        return f'<circle cx="{x(ratio):.1f}" cy="{y}" r="4" fill="{colour}"/>'
    way = 1 if ratio > HIGH else -1
    tip = x(ratio)
    return (f'<path d="M{tip:.1f} {y} l{-9 * way} -5 v10 z" '
            f'fill="{colour}"/>')


def limit(result: Result, found: Summary) -> float | None:
    """The bound as a ratio."""
    bound = result.row.bound
    if bound is None:
        return None
    if bound.kind == "difference":
        return 1 + bound.limit / found.stock if found.stock else None
    return bound.limit


def row(result: Result, found: Summary, y: float) -> list[str]:
    assert found.ratio is not None
    colour = COLOURS[found.verdict]
    made = []
    bound = result.row.bound
    if found.noise is not None:
        noise = found.noise
        if bound and bound.kind == "difference" and found.stock:
            noise /= found.stock
        made.append(bar(1 - noise, 1 + noise, y, 13, "#57606a", 0.18))
    if len(result.samples["patched"]) > 1:
        made.append(bar(found.low, found.high, y, 5, colour, 0.55))
    top = limit(result, found)
    if top is not None and top != 1 and top <= HIGH:
        made.append(stroke(top, y - 8, y + 8, "#cf222e",
                           'stroke-width="1.5"'))
    name = result.row.name.partition(": ")[2]
    said = [(RIGHT + 24, f"{found.ratio:.3f}")]
    if bound:
        said += [(RIGHT + 74, str(bound)), (RIGHT + 138, found.verdict)]
    return made + [
        dot(found.ratio, y, colour),
        text(LEFT - 12, y + 4, name, 'text-anchor="end"'),
        *(text(left, y + 4, words, f'fill="{colour}"')
          for left, words in said)]


def legend(y: float) -> list[str]:
    made = []
    for index, (verdict, words) in enumerate(LEGEND):
        left = 40 + index * 210
        made += [f'<circle cx="{left}" cy="{y}" r="4" '
                 f'fill="{COLOURS[verdict]}"/>',
                 text(left + 12, y + 4, words)]
    y += 24
    made += [f'<rect x="34" y="{y - 2.5}" width="26" height="5" '
             'fill="#57606a" fill-opacity="0.55"/>',
             text(68, y + 4, "middle half of the rounds"),
             f'<rect x="244" y="{y - 6.5}" width="26" height="13" '
             'fill="#57606a" fill-opacity="0.18"/>',
             text(278, y + 4, "noise, around 1.00"),
             f'<line x1="470" x2="470" y1="{y - 8}" y2="{y + 8}" '
             'stroke="#cf222e" stroke-width="1.5"/>',
             text(482, y + 4, "bound, where it is not 1.00"),
             f'<path d="M694 {y} l-9 -5 v10 z" fill="#57606a"/>',
             text(702, y + 4, "beyond the scale: see the figure")]
    return made


def chart(results: Sequence[Result], note: str) -> str:
    shown = [(each, found) for each in results
             if (found := each.summary()) and found.ratio is not None]
    body: list[str] = []
    y, area = float(TOP), ""
    for result, found in shown:
        name = result.row.area
        if name != area:
            y += STEP * 1.4 if area else STEP * 0.6
            area = name
            body.append(text(16, y - STEP * 0.1, AREAS.get(name, name),
                             'font-weight="bold"'))
            y += STEP * 0.8
        body += row(result, found, y)
        y += STEP
    bottom = y - STEP * 0.4
    grid = [text(left, TOP - 12, words, 'fill="#57606a"') for left, words in (
        (RIGHT + 24, "ratio"), (RIGHT + 74, "bound"))]
    for step in range(round((HIGH - LOW) / 0.02) + 1):
        ratio = LOW + step * 0.02
        one = abs(ratio - 1) < 1e-9
        grid.append(stroke(ratio, TOP - 6, bottom,
                           "#24292f" if one else "#d0d7de"))
        for at in TOP - 12, bottom + 16:
            grid.append(text(x(ratio), at, f"{ratio:.2f}",
                             'text-anchor="middle" fill="#57606a"'))
    height = bottom + 86
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
        f'height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        text(16, 28, "What the series costs: patched QEMU to stock QEMU",
             'font-size="18" font-weight="bold"'),
        text(16, 48, "Ratio of time or size, median of the rounds; right of "
             "1.00 the patched QEMU takes more. " + note, 'fill="#57606a"'),
        *grid, *body, *legend(bottom + 42), "</svg>"]) + "\n"
