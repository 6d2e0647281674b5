# SPDX-License-Identifier: GPL-2.0-or-later
"""The view on a terminal, with keys as in top"""

import asyncio
import contextlib
import curses
import os
import signal
import sys
import textwrap
import time
from typing import Iterator, List, Optional, Sequence, TypeVar

from .load import targets
from .text import SHARED, Line, Place, clean, fit, has_shared, header, table
from .vm import NotMoved, Vm

T = TypeVar('T')

STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]
SORTS = {'b': 'busy', 'p': 'poll', 'c': 'cpu', 'e': 'events', 'n': 'name'}
# A QEMU that takes longer to answer does not hold up the others
PATIENCE = 0.3
ESCAPE = 27

HELP = '''\
 b busy   p polling   c CPU   e events   n name: sort by that
 r        the other way round
 h        holders: show them or not
 m        move a device to another IOThread
 space    pause: the figures stay as they are
 + -      a longer or shorter time between samples
 arrows, page up, page down, home, end: scroll
 q        quit        ? this help, and back

 BUSY%    handlers, bottom halves, timers: the thread does its work
 POLL%    it looks for work without sleeping
 IDLE%    it sleeps
 CPU%     CPU time of the thread, at most 100
 EVENTS   handlers, bottom halves and timers that ran
 WAKES    how often others woke the thread
 LOOPS    how often the event loop went round

 A holder is who uses the thread.  IOPS and MB/s are of the whole disk.
 ''' + SHARED


def unusable() -> Optional[str]:
    """Return why there can be no view here, None if there can."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return 'this is no terminal'
    kind = os.environ.get('TERM', '')
    try:
        curses.setupterm(kind or 'dumb', sys.stdout.fileno())
        if curses.tigetstr('cup') and curses.tigetstr('clear'):
            return None
    except curses.error:
        return f"the terminal's kind (TERM={clean(kind)}) is not known"
    return f'the terminal (TERM={clean(kind)}) cannot move its cursor'


@contextlib.contextmanager
def screen() -> Iterator['curses.window']:
    """Have the terminal for the view, and leave it as it was."""
    window = curses.initscr()
    try:
        curses.noecho()
        curses.cbreak()
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        curses.set_escdelay(25)
        window.keypad(True)
        window.nodelay(True)
        yield window
    finally:
        with contextlib.suppress(curses.error):
            curses.curs_set(1)
        # It fails where the terminal has gone
        with contextlib.suppress(curses.error):
            curses.endwin()


def turn(choices: Sequence[T], now: Optional[T], way: int) -> Optional[T]:
    """Return the choice that is so many places further, if there is any."""
    if now in choices:
        return choices[(choices.index(now) + way) % len(choices)]
    return choices[0] if choices else None


class Picking:
    """What is to be moved where, while the user decides on that."""

    def __init__(self) -> None:
        self.place: Optional[Place] = None
        # The device is clear, and the question is where to
        self.where = False
        self.target: Optional[str] = None

    def turn(self, way: int, places: List[Place], threads: List[str]) -> str:
        """
        Go so far through the choices that there are now.

        Return why there are none, or nothing.
        """
        if not self.where:
            self.place = turn(places, self.place, way)
            return '' if self.place else 'there is no device to be moved'
        assert self.place
        if self.place not in places:
            return f'{self.place.name} has left {self.place.thread}'
        self.target = turn(threads, self.target, way)
        return '' if self.target else (
            f'there is no other IOThread for {self.place.name}')

    def text(self) -> str:
        """Return the question."""
        assert self.place
        what = f'Move {self.place.name} from {self.place.thread}'
        if self.where:
            return f'{what} to {self.target}?  enter: do it, arrows: another' \
                ' IOThread, esc: leave'
        return f'{what}?  enter: yes, arrows: another device, esc: leave'


class Live:
    """The view: what is shown of the QEMUs, and how."""

    def __init__(self, window: 'curses.window', vms: List[Vm],
                 interval: float, sort: str, holders: bool) -> None:
        self.window = window
        self.vms = vms
        self.frozen: Optional[List[Vm]] = None
        self.interval = interval
        self.sort = sort
        self.backwards = False
        self.holders = holders
        self.help = False
        self.top = 0
        self.lines: List[Line] = []
        self.picking: Optional[Picking] = None
        self.moving: Optional['asyncio.Task[None]'] = None
        # How a move went; until the next key
        self.said = ''
        self.done = asyncio.Event()
        # The interval has been changed: do not wait for the end of the old
        self.changed = asyncio.Event()

    def write(self, row: int, line: Line) -> None:
        """Write a line; one that does not fit is cut."""
        height, width = self.window.getmaxyx()
        if row >= height or width < 1:
            return
        text = fit(line.text, width).rstrip()
        # What the terminal's character set lacks stays readable
        text = text.encode(self.window.encoding, 'backslashreplace') \
            .decode(self.window.encoding)
        with contextlib.suppress(curses.error):
            # The last place of the last line is an error, and is written
            self.window.addnstr(
                row, 0, text, width,
                curses.A_REVERSE if self.picking and line.place and
                line.place == self.picking.place else
                curses.A_BOLD if line.bold else curses.A_NORMAL)

    def title(self, width: int) -> Line:
        """Return the first line: what is shown, and since when."""
        how = f'{self.interval:g} s, by {self.sort}'
        if self.backwards:
            how += ' (reverse)'
        if self.frozen is not None:
            how += ', PAUSED'
        text = f'iothread-top  {how}'
        clock = time.strftime('%H:%M:%S')
        hint = '? help  q quit  '
        if len(text) + len(hint + clock) + 2 <= width:
            text = text.ljust(width - len(hint + clock)) + hint + clock
        elif width < len(text):
            text = how if self.frozen is None else 'PAUSED'
        return Line(text)

    def draw(self) -> None:
        """Show it all."""
        self.window.erase()
        height, width = self.window.getmaxyx()
        self.write(0, self.title(width))
        if self.help:
            for row, text in enumerate(HELP.splitlines(), 1):
                self.write(row, Line(text))
            self.show()
            return
        vms = self.vms if self.frozen is None else self.frozen
        lines = table(vms, width, self.sort, self.backwards, self.holders)
        if self.holders and has_shared(vms):
            lines.append(Line(SHARED))
        self.lines = lines
        if self.picking:
            self.pick(0)
        # The reason of a refusal may be long
        bottom = textwrap.wrap(clean(
            self.picking.text() if self.picking else self.said),
            max(width, 20))[:3]
        room = max(height - 2 - len(bottom), 1)
        if self.picking:
            # What is asked for has to be seen
            row = [line.place for line in lines].index(self.picking.place)
            self.top = min(max(self.top, row - room + 1), row)
        self.top = max(0, min(self.top, len(lines) - room))
        self.write(1, header(width))
        for row, line in enumerate(lines[self.top:self.top + room], 2):
            self.write(row, line)
        for row, text in enumerate(bottom, max(height - len(bottom), 0)):
            self.write(row, Line(text, bold=True))
        self.show()

    def show(self) -> None:
        """Have the terminal show what has been written."""
        try:
            self.window.refresh()
        except curses.error:
            # There is no terminal any more
            self.done.set()

    def step(self, way: int) -> None:
        """Take the next longer or shorter interval."""
        steps = STEPS if way > 0 else STEPS[::-1]
        for each in steps:
            if (each - self.interval) * way > 1e-9:
                self.interval = each
                self.changed.set()
                break

    def vm(self, place: Place) -> Vm:
        """Return the QEMU of a device."""
        return next(vm for vm in self.vms if vm.address == place.address)

    def pick(self, way: int) -> None:
        """Go on in the choices, or leave where there are none."""
        assert self.picking
        place = self.picking.place
        why = self.picking.turn(
            way, [line.place for line in self.lines if line.place],
            targets(self.vm(place).threads, place.path) if place else [])
        if why:
            self.picking, self.said = None, why

    def pick_key(self, key: int) -> None:
        """Do what the key stands for in a choice."""
        assert self.picking
        ways = {curses.KEY_UP: -1, curses.KEY_LEFT: -1, curses.KEY_DOWN: 1,
                curses.KEY_RIGHT: 1, ord('\t'): 1}
        if key in ways:
            self.pick(ways[key])
        elif key in (ESCAPE, ord('q')):
            self.picking = None
        elif key in (ord('\r'), ord('\n'), curses.KEY_ENTER):
            place, target = self.picking.place, self.picking.target
            if self.picking.where and place and target:
                self.picking = None
                self.moving = asyncio.get_running_loop().create_task(
                    self.move(place, target))
            else:
                self.picking.where = True
                self.pick(0)

    async def move(self, place: Place, target: str) -> None:
        """Move a device, and say how that went."""
        self.said = f'Moving {place.name} to {target} ...'
        try:
            await self.vm(place).move(place.path, place.thread, target)
            self.said = f'{place.name} has moved from {place.thread} to' \
                f' {target}'
            # Show that
            self.changed.set()
        except NotMoved as error:
            self.said = f'{place.name} not moved to {target}: {error}'
        self.draw()

    def key(self, key: int) -> None:
        """Do what the key stands for."""
        self.said = ''
        if self.picking:
            self.pick_key(key)
            return
        page = max(self.window.getmaxyx()[0] - 3, 1)
        scroll = {curses.KEY_UP: -1, curses.KEY_DOWN: 1,
                  curses.KEY_PPAGE: -page, curses.KEY_NPAGE: page,
                  curses.KEY_HOME: -self.top, curses.KEY_END: 1 << 30}
        name = chr(key) if 0 <= key < 128 else ''
        if name == 'q':
            self.done.set()
        elif name == '?' or self.help:
            self.help = not self.help
        elif name in SORTS:
            self.sort = SORTS[name]
        elif name == 'r':
            self.backwards = not self.backwards
        elif name == 'h':
            self.holders = not self.holders
        elif name == 'm' and not (self.moving and not self.moving.done()):
            self.holders, self.picking = True, Picking()
            self.draw()
        elif name == ' ':
            self.frozen = None if self.frozen is not None else [
                vm.snapshot() for vm in self.vms]
        elif name in ('+', '-'):
            self.step(1 if name == '+' else -1)
        elif key in scroll:
            self.top += scroll[key]

    def keys(self) -> None:
        """Take all keys that there are."""
        try:
            while (key := self.window.getch()) != curses.ERR:
                self.key(key)
            if not os.isatty(0):
                raise OSError
        except OSError:
            self.done.set()
        self.draw()

    def resized(self) -> None:
        """Follow the terminal's size."""
        with contextlib.suppress(OSError, curses.error):
            size = os.get_terminal_size(sys.stdout.fileno())
            if size.lines > 0 and size.columns > 0:
                curses.resizeterm(size.lines, size.columns)
        # What another size has left behind
        self.window.clear()
        self.draw()

    async def pause(self, until: float) -> None:
        """Wait until then, until the interval is another, or for the end."""
        waits = [asyncio.ensure_future(event.wait())
                 for event in (self.done, self.changed)]
        try:
            await asyncio.wait(waits, timeout=max(until - time.monotonic(),
                                                  0),
                               return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def run(self, count: Optional[int]) -> None:
        """Show it until the user has enough, or so many samples."""
        loop = asyncio.get_running_loop()
        loop.add_reader(0, self.keys)
        loop.add_signal_handler(signal.SIGWINCH, self.resized)
        asking: List[Optional['asyncio.Task[None]']] = [None] * len(self.vms)
        try:
            while not self.done.is_set():
                start = time.monotonic()
                for i, vm in enumerate(self.vms):
                    task = asking[i]
                    if task is None or task.done():
                        asking[i] = loop.create_task(vm.update())
                tasks = [task for task in asking if task]
                await asyncio.wait(tasks, timeout=min(PATIENCE,
                                                      self.interval))
                for task in tasks:
                    if task.done():
                        # It only fails where this program does
                        task.result()
                if self.moving and self.moving.done():
                    self.moving.result()
                self.draw()
                if count is not None:
                    if count == 0:
                        return
                    count -= 1
                self.changed.clear()
                await self.pause(start + self.interval)
        finally:
            loop.remove_reader(0)
            loop.remove_signal_handler(signal.SIGWINCH)
            left = [task for task in (*asking, self.moving) if task]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
