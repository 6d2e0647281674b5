# SPDX-License-Identifier: GPL-2.0-or-later
"""
Figures from what QEMU tells at two points in time

QEMU only counts.  What a person wants to see is the difference between two
answers, as a share of the time between them.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from .answer import IO, pick_disks, pick_stats, pick_threads

Json = Dict[str, Any]
Counters = Dict[str, int]

BUSY, HIT, MISS, BLOCKED = TIMES = (
    'busy-time', 'poll-hit-time', 'poll-miss-time', 'blocked-time')
CPU = 'cpu-time'
COUNTS = EVENTS, WAKEUPS, ITERATIONS = 'events', 'wakeups', 'iterations'

MAIN_LOOP = 'main loop'


@dataclass
class Load:
    """Shares of the time in percent, and rates per second."""
    busy: float
    poll_hit: float
    poll_miss: float
    idle: float
    cpu: Optional[float]
    events: Optional[float]
    wakeups: Optional[float]
    iterations: Optional[float]

    @property
    def poll(self) -> float:
        """All of the polling."""
        return self.poll_hit + self.poll_miss


@dataclass
class Io:
    """What a disk does, per second."""
    reads: float
    writes: float
    read_bytes: float
    written_bytes: float

    def __add__(self, other: 'Io') -> 'Io':
        return Io(self.reads + other.reads, self.writes + other.writes,
                  self.read_bytes + other.read_bytes,
                  self.written_bytes + other.written_bytes)


@dataclass
class Holder:
    """One who uses an IOThread; the facts are those of query-iothreads."""
    facts: Json
    io: Optional[Io] = None
    # The disk has other IOThreads too, and its figures are of all of them
    shared: bool = False


@dataclass
class Thread:
    """An IOThread, or the main loop."""
    name: str
    path: Optional[str] = None
    thread_id: Optional[int] = None
    main: bool = False
    # QEMU made it for itself
    internal: bool = False
    # What query-iothreads tells of it
    facts: Json = field(default_factory=dict)
    load: Optional[Load] = None
    holders: List[Holder] = field(default_factory=list)

    @property
    def users(self) -> bool:
        """Whether it is an IOThread of the user's, who may put more there."""
        return (self.path or '').startswith('/objects/')


@dataclass
class Sample:
    """What one QEMU has told, and when, in seconds."""
    # For each thread: who it is, and its counters
    threads: List[Tuple[Thread, float, Counters]]
    disks: List[Json]
    disks_at: float


def can_move(holder: Holder) -> bool:
    """Tell whether it is a device that may go to another IOThread."""
    # virtio-blk and virtio-scsi have virtqueues to tell of
    return 'vqs' in holder.facts


def targets(threads: List[Thread], device: str) -> List[str]:
    """Return the IOThreads that a device, by its QOM path, is not on."""
    return [thread.name for thread in threads if thread.users and not any(
        holder.facts.get('qom-path') == device for holder in thread.holders)]


def rate(before: Counters, after: Counters, name: str,
         seconds: float) -> Optional[float]:
    """Return how fast a counter grows, None if that cannot be told."""
    if name not in before or name not in after:
        return None
    return (after[name] - before[name]) / seconds


def load(before: Counters, after: Counters,
         seconds: float) -> Optional[Load]:
    """
    Return the load in between, None if the two do not belong together.

    QEMU's clock was read with its counters, and ours was not: the time is
    what QEMU has counted.  A polling phase counts only when it is over,
    though.  Where that leaves time out, or adds what is older, the time is
    that of our clock, and no share is above 100.
    """
    if any(name not in after or name not in before for name in TIMES):
        return None
    if any(after[name] < value for name, value in before.items()
           if name in after):
        # Another thread, which began at 0
        return None
    spent = [(after[name] - before[name]) / 1e9 for name in TIMES]
    counted = sum(spent)
    if abs(counted - seconds) < 0.1 * seconds + 0.02 and counted > 0:
        seconds = counted
    span = max(counted, seconds)
    if seconds <= 0:
        return None
    busy, hit, miss, blocked = (100 * time / span for time in spent)
    cpu = rate(before, after, CPU, seconds)
    return Load(busy, hit, miss, blocked,
                None if cpu is None else min(cpu / 1e7, 100.0),
                *(rate(before, after, name, seconds) for name in COUNTS))


def pair(threads: List[Json], results: List[Json]) \
        -> List[Tuple[Optional[Json], Optional[Json]]]:
    """
    Bring together what query-iothreads and query-stats tell of a thread.

    The last part of the QOM path is the ID.  An IOThread of QEMU's own may
    have an ID that the user's has too, and no path: then the order tells.
    IOThreads come and go between the two commands.
    """
    left: Dict[Optional[str], List[Json]] = {}
    for result in results:
        path = result.get('qom-path')
        left.setdefault(path.rpartition('/')[2] if path else None,
                        []).append(result)

    def take(ident: Optional[str]) -> Optional[Json]:
        found = left.get(ident)
        return found.pop(0) if found else None

    pairs: List[Tuple[Optional[Json], Optional[Json]]] = [
        (thread, take(thread['id'])) for thread in threads]
    pairs = [(thread, result or take(None)) for thread, result in pairs]
    return pairs + [(None, result) for found in left.values()
                    for result in found]


def sample(threads: List[Json], results: List[Json], at: float,
           main: List[Json], main_at: float, disks: List[Json],
           disks_at: float) -> Sample:
    """
    Put together what QEMU has answered.

    :raise ValueError: it makes no sense
    """
    found: List[Tuple[Thread, float, Counters]] = []
    for result in pick_stats(main)[:1]:
        found.append((Thread(MAIN_LOOP, main=True), main_at,
                      result['stats']))
    for info, told in pair(pick_threads(threads), pick_stats(results)):
        path = told.get('qom-path') if told else None
        if info:
            thread = Thread(info['id'], path, info['thread-id'],
                            internal=info.get('internal', False), facts=info,
                            holders=[Holder(facts) for facts
                                     in info['holders']])
        else:
            thread = Thread((path or '?').rpartition('/')[2], path)
        found.append((thread, at, told['stats'] if told else {}))
    return Sample(found, pick_disks(disks), disks_at)


def keys(facts: Json) -> List[Tuple[str, str]]:
    """Return the names by which query-blockstats may know a holder."""
    names = []
    if facts['type'] == 'qom-object':
        names = [(key, facts['qom-path']) for key in ('controller', 'qdev')]
        if 'device' in facts:
            names.append(('qdev', facts['device']))
    elif 'node-name' in facts:
        names = [('node-name', facts['node-name'])]
    return names


def disk_io(before: List[Json], after: List[Json],
            seconds: float) -> Dict[Tuple[str, str], Io]:
    """Return what each disk did in between, by each of its names."""
    def name(disk: Json) -> Tuple[Any, ...]:
        return tuple(disk.get(key) for key in ('device', 'qdev', 'node-name'))

    found: Dict[Tuple[str, str], Io] = {}
    old = {name(disk): disk['stats'] for disk in before}
    for disk in after:
        was, now = old.get(name(disk)), disk['stats']
        if was is None or seconds <= 0 or any(now[key] < was[key]
                                              for key in IO):
            continue
        made = Io(*((now[key] - was[key]) / seconds for key in IO))
        for key in ('qdev', 'node-name'):
            if disk.get(key):
                found[key, disk[key]] = made
        if disk.get('controller'):
            # It does what its disks do
            bus = 'controller', disk['controller']
            found[bus] = found[bus] + made if bus in found else made
    return found


def compare(before: Optional[Sample], after: Sample) -> List[Thread]:
    """Return the threads with their load since the sample before."""
    # A thread of the same name is another one if its number is
    old = {}
    if before:
        old = {(thread.name, thread.path, thread.thread_id): (at, values)
               for thread, at, values in before.threads}
        disks = disk_io(before.disks, after.disks,
                        after.disks_at - before.disks_at)
    users: Dict[Tuple[str, str], int] = {}
    for thread, _, _ in after.threads:
        for key in {key for holder in thread.holders
                    for key in keys(holder.facts)}:
            users[key] = users.get(key, 0) + 1
    for thread, at, values in after.threads:
        was = old.get((thread.name, thread.path, thread.thread_id))
        if was:
            thread.load = load(was[1], values, at - was[0])
        for holder in thread.holders:
            for key in keys(holder.facts):
                if before and key in disks:
                    holder.io = disks[key]
                    holder.shared = users[key] > 1
    return [thread for thread, _, _ in after.threads]
