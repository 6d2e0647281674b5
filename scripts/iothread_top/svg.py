# SPDX-License-Identifier: GPL-2.0-or-later
"""The load over time as a picture: one strip per thread"""

import math
import time
from typing import Dict, List, Optional, Tuple
from xml.sax.saxutils import escape

from .load import Json, Load
from .monitor import UP
from .text import clean, describe, fit, natural
from .vm import Vm

WIDTH, LEFT, RIGHT = 960, 230, 850
TOP, STRIP, GAP, FOOT = 84, 72, 20, 56
# More strips than these are no picture: the busiest are shown
MOST = 24

BUSY, POLL, LINE = '#1f5fa8', '#f0b354', '#24292f'
GREY, GRID, UNKNOWN = '#57606a', '#d8dee4', '#e7ebef'

# Who it is, for as long as the recording goes on
Key = Tuple[str, str, str, Optional[str]]


class Strip:
    """The load of a thread at each of the times."""

    def __init__(self, title: str) -> None:
        self.title = title
        # All that it has had, in the order in which they came
        self.holders: Dict[str, None] = {}
        self.points: List[Tuple[float, float, Optional[Load]]] = []

    def mean(self, name: str) -> float:
        """Return the mean of a share, by time."""
        parts = [(end - start, getattr(load, name))
                 for start, end, load in self.points if load]
        total = sum(length for length, _ in parts)
        weighed: float = sum(length * value for length, value in parts)
        return weighed / total if total else 0.0


class Recording:
    """What the picture will show."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.began = time.strftime('%Y-%m-%d %H:%M:%S')
        self.last = self.start
        self.strips: Dict[Key, Strip] = {}

    def add(self, vms: List[Vm]) -> None:
        """Add a sample: the load since the one before."""
        now = time.monotonic()
        for vm in vms:
            if vm.state != UP:
                continue
            for thread in vm.threads:
                key = vm.address, vm.name, thread.name, thread.path
                strip = self.strips.setdefault(key, Strip(thread.name))
                strip.holders.update(dict.fromkeys(who(
                    [each.facts for each in thread.holders])))
                begin = now - vm.interval if vm.interval else now
                if strip.points and thread.load:
                    # Our clock is read when all have answered
                    end = strip.points[-1][1]
                    if abs(end - begin) < 0.2 * (now - begin):
                        begin = end
                strip.points.append((begin, now, thread.load))
        self.last = now

    @property
    def empty(self) -> bool:
        """Tell whether there is nothing to show."""
        return not any(load for strip in self.strips.values()
                       for _, _, load in strip.points)


def who(holders: List[Json]) -> List[str]:
    """Return the devices, or what else uses the thread."""
    devices = [clean(str(facts['device'])) for facts in holders
               if 'device' in facts]
    return devices or [describe(facts, whole=False) for facts in holders]


def text(x: float, y: float, words: str, more: str = '') -> str:
    """Return words at that place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    """Return a straight line."""
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
            f' stroke="{colour}"/>')


def ticks(seconds: float) -> List[float]:
    """Return where the time has its marks: round, and about ten of them."""
    rough = max(seconds, 1e-3) / 8
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * each for each in (1, 2, 5, 10)
                if size * each >= rough * 0.999)
    return [i * step for i in range(int(seconds / step + 1e-6) + 1)]


class Picture:
    """The picture of a recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        starts = [start for strip in recording.strips.values()
                  for start, _, load in strip.points if load]
        self.start = min(starts, default=recording.start)
        self.seconds = max(recording.last - self.start, 1e-3)
        self.y = float(TOP)
        self.body: List[str] = []

    def x(self, when: float) -> float:
        """Return where that time is."""
        share = (when - self.start) / self.seconds
        return LEFT + min(max(share, 0), 1) * (RIGHT - LEFT)

    def areas(self, strip: Strip) -> None:
        """Draw busy, and polling on top of it, as steps without gaps."""
        bottom = self.y + STRIP
        busy, poll, edge = [], [], []
        end: Optional[float] = None
        for start, until, load in strip.points:
            if not load:
                end = None
                continue
            x1, x2 = self.x(start), self.x(until)
            y1 = bottom - min(load.busy, 100) * STRIP / 100
            y2 = bottom - min(load.busy + load.poll, 100) * STRIP / 100
            busy.append(f'M{x1:.1f} {bottom:.1f}V{y1:.1f}H{x2:.1f}'
                        f'V{bottom:.1f}z')
            poll.append(f'M{x1:.1f} {y1:.1f}V{y2:.1f}H{x2:.1f}V{y1:.1f}z')
            joined = end is not None and abs(end - x1) < 0.1
            edge.append(f'{"V" if joined else f"M{x1:.1f} "}{y1:.1f}'
                        f'H{x2:.1f}')
            end = x2
        for path, colour in ((busy, BUSY), (poll, POLL)):
            if path:
                self.body.append(f'<path d="{"".join(path)}" fill="{colour}"'
                                 ' shape-rendering="crispEdges"/>')
        if edge:
            self.body.append(f'<path d="{"".join(edge)}" fill="none"'
                             f' stroke="{LINE}" stroke-width="1"/>')

    def unknown(self, strip: Strip) -> str:
        """Return the outline of all the time but that with a load."""
        boxes = [(float(LEFT), float(RIGHT))]
        for start, until, load in strip.points:
            if load:
                left, right = self.x(start), self.x(until)
                # Overlaps would count as unknown again
                left = max(left, boxes[-1][1] if len(boxes) > 1 else left)
                if right > left:
                    boxes.append((left, right))
        return ''.join(f'M{left:.2f} {self.y:.1f}H{right:.2f}v{STRIP}'
                       f'H{left:.2f}z' for left, right in boxes)

    def strip(self, strip: Strip) -> None:
        """Draw a thread."""
        self.body.append(f'<path d="{self.unknown(strip)}" fill="{UNKNOWN}"'
                         ' fill-rule="evenodd"/>')
        for share in (0, 50, 100):
            y = self.y + STRIP - share * STRIP / 100
            self.body += [
                line(LEFT, y, RIGHT, y, GRID),
                text(LEFT - 6, y + 4, f'{share} %',
                     f'text-anchor="end" font-size="10" fill="{GREY}"')]
        self.areas(strip)
        self.body.append(line(LEFT, self.y + STRIP, RIGHT, self.y + STRIP,
                              LINE))
        middle = self.y + STRIP / 2
        self.body += [
            text(16, middle - 4, fit(clean(strip.title), 22).rstrip(),
                 'font-weight="bold"'),
            text(16, middle + 12, fit(', '.join(strip.holders), 28).rstrip(),
                 f'font-size="10" fill="{GREY}"'),
            text(RIGHT + 12, middle - 4, f'busy {strip.mean("busy"):.0f} %',
                 f'fill="{BUSY}"'),
            text(RIGHT + 12, middle + 12,
                 f'polling {strip.mean("poll"):.0f} %', 'fill="#8a5a00"')]
        self.y += STRIP + GAP

    def axis(self, top: float) -> List[str]:
        """Return the time below all strips, with its lines behind them."""
        made = []
        bottom = self.y - GAP
        for tick in ticks(self.seconds):
            x = self.x(self.start + tick)
            made += [line(x, top, x, bottom + 4, GRID),
                     text(x, bottom + 18, f'{tick:g}',
                          f'text-anchor="middle" fill="{GREY}"')]
        made.append(text((LEFT + RIGHT) / 2, bottom + 36, 'time in seconds',
                         f'text-anchor="middle" fill="{GREY}"'))
        return made

    @staticmethod
    def legend() -> List[str]:
        """Return what the colours mean."""
        made = []
        for x, colour, words in (
                (LEFT, BUSY, 'busy: it does its work'),
                (LEFT + 200, POLL, 'polling: it looks for work, awake'),
                (LEFT + 430, '#ffffff', 'idle: it sleeps'),
                (LEFT + 570, UNKNOWN, 'not known')):
            made += [f'<rect x="{x}" y="56" width="14" height="12"'
                     f' fill="{colour}" stroke="{GREY}"/>',
                     text(x + 20, 66, words)]
        return made

    def draw(self) -> str:
        """Return the picture."""
        strips = [(key, strip) for key, strip
                  in self.recording.strips.items()
                  if any(load for _, _, load in strip.points)]
        busiest = sorted(strips, key=lambda each: -each[1].mean('busy')
                         - each[1].mean('poll'))[:MOST]
        left_out = len(strips) - len(busiest)
        by_vm: Dict[str, List[Tuple[Key, Strip]]] = {}
        for key, strip in strips:
            if any(strip is each for _, each in busiest):
                by_vm.setdefault(key[0], []).append((key, strip))
        for address, group in by_vm.items():
            if len(by_vm) > 1:
                name = group[-1][0][1]
                self.body.append(text(
                    16, self.y + 4, clean(name if name == address
                                          else f'{name} ({address})'),
                    'font-weight="bold" font-size="13"'))
                self.y += 18
            for _, strip in sorted(
                    group, key=lambda each: natural(each[1].title)):
                self.strip(strip)
        grid = self.axis(TOP - 4)
        height = self.y - GAP + FOOT
        note = f'Share of the time, over {self.seconds:.0f} s' \
            f' from {self.recording.began} on.'
        if len(by_vm) == 1:
            (group,) = by_vm.values()
            note = f'{clean(group[-1][0][1])}. {note}'
        if left_out:
            note += f' {left_out} less loaded threads are left out.'
        return '\n'.join([
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
            f'height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}" '
            'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
            text(16, 26, 'Load of the event loops',
                 'font-size="17" font-weight="bold"'),
            text(16, 44, note, f'fill="{GREY}"'),
            *self.legend(), *grid, *self.body, '</svg>']) + '\n'


def picture(recording: Recording) -> str:
    """Return the recording as an SVG."""
    return Picture(recording).draw()
