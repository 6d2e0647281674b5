# SPDX-License-Identifier: GPL-2.0-or-later
"""
What is moved where, and when

Nothing here asks anybody, or reads a clock: the load and the time come from
the caller.

QEMU tells how busy a thread is, and not for whom.  The work of a thread is
divided by what its disks did meanwhile: a request counts as one, and each
64 KiB of data as one more.  The work of a disk that is on several threads is
divided by its queues.  Polling is no work.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import (Collection, Deque, Dict, Iterable, List, Optional,
                    Sequence, Tuple)

from iothread_top.load import Holder, Thread as TopThread, can_move

# Bytes that cost as much as a request
CHUNK = 65536
# No device is moved for less than that, in percent of a thread's time
LEAST = 2.0
# The time over which moves are counted, in seconds
MINUTE = 60.0


@dataclass(frozen=True)
class Limits:
    """When to move what; the defaults are those of the command line."""
    # A thread that is less busy keeps what it has, in percent
    full: float = 70.0
    # By how much less busy the busier thread has to be afterwards
    gain: float = 15.0
    # So many samples in a row have to ask to relieve a thread
    samples: int = 2
    # Moves of a QEMU per minute
    moves: int = 6
    # How long a device stays after a move, and after a refused one
    rest: float = 30.0
    retry: float = 300.0
    # Devices and threads that are left alone
    keep: Collection[str] = ()


@dataclass(frozen=True)
class Part:
    """What a device has on a thread: all its queues, or some of them."""
    device: str
    name: str
    # In percent of the thread's time
    load: float


@dataclass(frozen=True)
class Thread:
    """A thread, of what is to be known for a plan."""
    name: str
    busy: float
    parts: Tuple[Part, ...] = ()
    # Whether devices may come here
    free: bool = True

    @cached_property
    def devices(self) -> Collection[str]:
        """Who has a part here."""
        return {part.device for part in self.parts}


@dataclass(frozen=True)
class Move:
    """A part of the plan; loads are in percent of a thread's time."""
    device: str
    name: str
    source: str
    target: str
    load: float


@dataclass
class Plan:
    """Moves in their order, and how busy each thread is then."""
    moves: List[Move] = field(default_factory=list)
    before: Dict[str, float] = field(default_factory=dict)
    after: Dict[str, float] = field(default_factory=dict)
    # Why there is nothing to be moved
    why: str = ''


# --- The load of devices ---------------------------------------------------

def work(holder: Holder, queues: Dict[str, int]) -> Optional[float]:
    """Return what a holder did on its thread, None if nobody knows."""
    io = holder.io
    if io is None:
        return None
    done = io.reads + io.writes + (io.read_bytes + io.written_bytes) / CHUNK
    mine = len(holder.facts.get('vqs', ()))
    everywhere = queues.get(holder.facts.get('qom-path', ''), 0)
    return done * mine / everywhere if everywhere else done


def measure(threads: Iterable[TopThread]) -> List[Thread]:
    """
    Divide the load of IOThreads by who makes it.

    Who holds a thread and is no disk of the guest (exports, jobs) is taken
    to work as much as the busiest of the disks there.  A thread of which
    nothing is known yet, or that is QEMU's own, is not listed.
    """
    known = [thread for thread in threads if thread.load and thread.users]
    queues: Dict[str, int] = {}
    for thread in known:
        for holder in thread.holders:
            path = holder.facts.get('qom-path', '')
            queues[path] = queues.get(path, 0) + len(
                holder.facts.get('vqs', ()))
    made = []
    for thread in known:
        assert thread.load
        # Nodes only follow who uses them
        holders = [holder for holder in thread.holders
                   if holder.facts['type'] != 'block-node']
        works = [work(holder, queues) for holder in holders]
        most = max((each for each in works if each is not None), default=0.0)
        shares = [0.0 if each is None and can_move(holder) else
                  most if each is None else each
                  for holder, each in zip(holders, works)]
        total = sum(shares)
        made.append(Thread(thread.name, thread.load.busy, tuple(
            Part(holder.facts['qom-path'],
                 holder.facts.get('device', holder.facts['qom-path']),
                 thread.load.busy * share / total if total else 0.0)
            for holder, share in zip(holders, shares) if can_move(holder))))
    return made


# --- The plan --------------------------------------------------------------

def best(threads: Sequence[Thread], source: Thread,
         resting: Collection[str]) -> Optional[Tuple[Part, Thread]]:
    """Return the part of the source to move first, and where to."""
    found = None
    # How busy the busier one is then, and the target now
    lowest = source.busy - LEAST, 0.0
    # The least busy first; less than a tenth is noise, or rounding
    free = sorted((each for each in threads
                   if each.free and each.name != source.name),
                  key=lambda each: round(each.busy, 1))
    for part in source.parts:
        if part.device in resting or part.load < LEAST:
            continue
        target = next((each for each in free
                       if part.device not in each.devices), None)
        if target:
            cost = (round(max(source.busy - part.load,
                              target.busy + part.load), 1),
                    round(target.busy, 1))
            if cost < lowest:
                lowest, found = cost, (part, target)
    return found


def relieve(threads: Sequence[Thread], name: str, limits: Limits,
            resting: Collection[str]) -> Tuple[List[Move], List[Thread]]:
    """
    Move things away from that thread as long as it helps.

    The target of each move ends up less busy than the source was.
    """
    now = {thread.name: thread for thread in threads}
    before = now[name].busy
    moves: List[Move] = []
    while found := best(list(now.values()), now[name],
                        {*resting, *(move.device for move in moves)}):
        part, target = found
        source = now[name]
        moves.append(Move(part.device, part.name, name, target.name,
                          part.load))
        now[name] = replace(
            source, busy=source.busy - part.load,
            parts=tuple(each for each in source.parts if each != part))
        now[target.name] = replace(target, busy=target.busy + part.load,
                                   parts=(*target.parts, part))
    touched = {name, *(move.target for move in moves)}
    if before - max(now[each].busy for each in touched) < limits.gain:
        return [], list(threads)
    return moves, list(now.values())


def make_plan(threads: Sequence[Thread], limits: Limits,
              resting: Collection[str] = ()) -> Plan:
    """
    Return what to move, so that full threads are less busy.

    A thread that is busier than others is relieved before them.
    """
    # In the order of their names, so that the same load has the same plan
    now = sorted((replace(thread, free=thread.free
                          and thread.name not in limits.keep)
                  for thread in threads), key=lambda thread: thread.name)
    plan = Plan(before={thread.name: thread.busy for thread in threads})
    still = {*resting, *limits.keep, *(
        part.device for thread in threads for part in thread.parts
        if part.name in limits.keep)}
    full = [thread for thread in now if thread.busy >= limits.full]
    for thread in sorted(full, key=lambda thread: -thread.busy):
        if thread.free:
            moves, now = relieve(now, thread.name, limits,
                                 {*still, *(m.device for m in plan.moves)})
            plan.moves += moves
    busy = {thread.name: thread.busy for thread in now}
    plan.after = {name: busy[name] for name in plan.before}
    if not plan.moves:
        if not full:
            plan.why = f'no IOThread is busier than {limits.full:g} %'
        elif any(part.device in resting for thread in full
                 for part in thread.parts):
            plan.why = 'devices rest after a move, or one that was refused'
        else:
            name = max(full, key=lambda thread: thread.busy).name
            plan.why = (f'no move makes {name} less busy by'
                        f' {limits.gain:g} %')
    return plan


# --- The time --------------------------------------------------------------

class Keeper:
    """Has a QEMU not moved too much, and not for a passing load."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        # For each thread: so many samples in a row want it relieved
        self._asked: Dict[str, int] = {}
        self._resting: Dict[str, float] = {}
        self._moved: Deque[float] = deque()
        self._until = 0.0

    def plan(self, threads: Sequence[Thread], now: float) -> Plan:
        """Return the plan for that load; `now` is in seconds."""
        self._resting = {device: until for device, until
                         in self._resting.items() if until > now}
        return make_plan(threads, self.limits, self._resting)

    def due(self, plan: Plan, now: float) -> List[Move]:
        """Return what to move now; to be asked once for each sample."""
        self._asked = {name: self._asked.get(name, 0) + 1
                       for name in {move.source for move in plan.moves}}
        while self._moved and self._moved[0] <= now - MINUTE:
            self._moved.popleft()
        room = 0 if now < self._until else max(
            self.limits.moves - len(self._moved), 0)
        # In the plan's order: what comes later may rely on what is before
        due = []
        for move in plan.moves[:room]:
            if self._asked[move.source] < self.limits.samples:
                break
            due.append(move)
        return due

    def tried(self, move: Move, done: bool, now: float) -> None:
        """Take note of a move, or of one that was refused."""
        if done:
            self._moved.append(now)
        self._resting[move.device] = now + (
            self.limits.rest if done else self.limits.retry)
        self._asked.pop(move.source, None)

    def lost(self, now: float) -> None:
        """QEMU went, or was silent, in a move: leave it alone for longer."""
        self._until = now + self.limits.retry
