# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMUs: who is there, and asking all of them at once"""

import asyncio
import glob
import os
import stat
import time
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple

from iothread_top.monitor import (BUSY, GONE, NEW, REFUSED, TAKEN,
                                  parse_address)

from .metrics import Qemu, Report, report

# A connection over TCP that is silent for so long is given up; the end of a
# UNIX socket is never missed
TCP_TIMEOUT = 60.0
# A monitor that cannot be used is tried again after so long
REFUSED_RETRY = 60.0

Stamp = Tuple[int, ...]


def stamp(path: str) -> Optional[Stamp]:
    """Return what changes with each new socket there, None if none is."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISSOCK(found.st_mode):
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


class Target:
    """A monitor that is asked again and again."""

    def __init__(self, address: str, mark: Optional[Stamp]) -> None:
        self.mark = mark
        path = isinstance(parse_address(address), str)
        self.qemu = Qemu(address, None if path else TCP_TIMEOUT)
        self.state, self.why = NEW, ''
        self._task: Optional['asyncio.Task[None]'] = None
        self._refused = 0.0

    def ask(self) -> Optional['asyncio.Task[None]']:
        """
        Begin to ask; return what to wait for.

        There is nothing to wait for if it has not answered the last time:
        it is not asked again before it has.
        """
        if self._task and not self._task.done():
            return None
        now = time.monotonic()
        if self.state == REFUSED and now - self._refused > REFUSED_RETRY:
            self._refused = now
            self.qemu.state = NEW
        self._task = asyncio.get_running_loop().create_task(
            self.qemu.update())
        return self._task

    def judge(self) -> bool:
        """Note what has come of it; return whether that is news."""
        was = self.state
        if not self._task or not self._task.done():
            if was not in (BUSY, TAKEN):
                self.state, self.why = self.qemu.doubt()
        elif self._task.exception():
            # This program's fault, on one QEMU's account: not all's
            self.state, self.why = REFUSED, repr(self._task.exception())
        else:
            self.state, self.why = self.qemu.state, self.qemu.why
        if self.state == REFUSED and was != REFUSED:
            self._refused = time.monotonic()
        return self.state != was

    async def close(self) -> None:
        """Let go of the monitor."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.qemu.close()


class Fleet:
    """All QEMUs.  Its methods are for one event loop."""

    def __init__(self, patterns: Sequence[str], limit: float,
                 news: Callable[[str, str, str], None]) -> None:
        """
        The limit is how long to wait for answers, in seconds.

        The news are an address, its state and why, when the state changes.
        """
        self.targets: Dict[str, Target] = {}
        self.seconds = 0.0
        self._patterns = patterns
        self._limit = limit
        self._news = news
        self._asking: Optional['asyncio.Task[List[Report]]'] = None
        self._closing: Set['asyncio.Task[None]'] = set()

    def find(self) -> Dict[str, Optional[Stamp]]:
        """Return the addresses as of now; sockets have a stamp."""
        found: Dict[str, Optional[Stamp]] = {}
        # A socket with two names is one socket
        known = set()
        for pattern in self._patterns:
            where = parse_address(pattern)
            if not isinstance(where, str):
                found[pattern] = None
                continue
            paths = [where]
            if glob.has_magic(where) and not os.path.exists(where):
                paths = sorted(path for path in glob.iglob(where)
                               if stamp(path))
            for path in paths:
                mark = stamp(path)
                if mark not in known:
                    found.setdefault(path, mark)
                if mark:
                    known.add(mark)
        return found

    def refresh(self) -> None:
        """Let go of those that are not there any more, and take new ones."""
        found = self.find()
        left = [address for address, target in self.targets.items()
                if address not in found or target.mark != found[address]]
        for address in left:
            target = self.targets.pop(address)
            if address not in found:
                self._news(address, GONE, 'its socket has gone')
            # That may take a while; others do not wait for it
            task = asyncio.get_running_loop().create_task(target.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        for address, mark in found.items():
            if address not in self.targets:
                self.targets[address] = Target(address, mark)

    async def ask(self) -> List[Report]:
        """
        Ask all, and return what they have told, by their addresses.

        Who asks while this goes on gets the same answers: there is never
        more than one connection to a monitor.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(
                self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> List[Report]:
        start = time.monotonic()
        self.refresh()
        targets = [self.targets[key] for key in sorted(self.targets)]
        tasks = [task for task in [each.ask() for each in targets] if task]
        if tasks:
            await asyncio.wait(tasks, timeout=self._limit)
        for target in targets:
            if target.judge():
                self._news(target.qemu.address, target.state, target.why)
        self.seconds = time.monotonic() - start
        return [report(each.qemu, each.state) for each in targets]

    async def close(self) -> None:
        """Let go of all."""
        if self._asking:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await asyncio.gather(*self._closing, *(
            each.close() for each in self.targets.values()))
        self.targets = {}
