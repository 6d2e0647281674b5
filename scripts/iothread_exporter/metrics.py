# SPDX-License-Identifier: GPL-2.0-or-later
"""
What is told: families of metrics from QEMU's answers

A QEMU may be under the control of its guest.  Whatever it answers, the
metrics of the others are told, and its own are not more than the limits here.
"""

import collections
from dataclasses import dataclass
import hashlib
import os
import re
from typing import (Any, Callable, Dict, Iterable, Iterator, List, Optional,
                    Sequence, Tuple, Union)

from prometheus_client.core import (CounterMetricFamily, GaugeMetricFamily,
                                    InfoMetricFamily, Metric)

from iothread_top.load import Counters, Holder, Json, Sample, Thread
from iothread_top.monitor import UP, Monitor
from iothread_top.text import ranges

# Of each QEMU
MOST_THREADS = 256
MOST_DISKS = 256
# Of each IOThread
MOST_HOLDERS = 64
# Characters of a label
LONGEST = 128

HOLDER_TYPES = ('qom-object', 'block-export', 'block-node', 'monitor', 'job')

Labels = Tuple[str, ...]
# One of prometheus_client's, whose values are of different types
Family = Any


@dataclass(frozen=True)
class Kind:
    """A family of metrics."""
    family: Callable[..., Family]
    name: str
    words: str
    labels: Labels = ()
    unit: str = ''

    def make(self) -> Family:
        """Return the family, without metrics."""
        unit = {'unit': self.unit} if self.unit else {}
        return self.family(self.name, self.words, labels=self.labels, **unit)


WHO = 'vm', 'uuid', 'socket'

# From query-stats: the counter, its metric, its unit, and what it is
LOADS = (
    ('busy-time', 'busy', 'seconds',
     'Time in handlers, bottom halves and timers'),
    ('poll-hit-time', 'poll', 'seconds',
     'Time spent polling, by whether there was something to do'),
    ('poll-miss-time', 'poll', 'seconds', ''),
    ('blocked-time', 'blocked', 'seconds', 'Time asleep, waiting for work'),
    ('cpu-time', 'cpu', 'seconds', 'CPU time as the host accounts it'),
    ('events', 'events', '', 'Handlers, bottom halves and timers that ran'),
    ('iterations', 'iterations', '', 'Turns of the event loop'),
    ('wakeups', 'wakeups', '', 'Waits that another thread ended'))
RESULTS = {'poll-hit-time': ('hit',), 'poll-miss-time': ('miss',)}

# For each kind of thread: the counter, its family, its labels, and by what
# it is to be divided
COUNTERS = {thread: [(counter, f'{thread}_{name}', RESULTS.get(counter, ()),
                      1e9 if unit else 1) for counter, name, unit, _ in LOADS]
            for thread in ('iothread', 'main_loop')}

# From query-blockstats.  The names are those that exporters for libvirt use
# behind "libvirt_domain_".
DISKS = (
    ('rd_bytes', 'read', 'bytes', 'Bytes read'),
    ('wr_bytes', 'write', 'bytes', 'Bytes written'),
    ('rd_operations', 'read_requests', '', 'Read requests'),
    ('wr_operations', 'write_requests', '', 'Write requests'),
    ('flush_operations', 'flush_requests', '', 'Flush requests'),
    ('rd_total_time_ns', 'read_time', 'seconds', 'Time of read requests'),
    ('wr_total_time_ns', 'write_time', 'seconds', 'Time of write requests'),
    ('flush_total_time_ns', 'flush_time', 'seconds',
     'Time of flush requests'))

# From query-iothreads
SETTINGS = 'thread-id', 'poll-max-ns', 'poll-grow', 'poll-shrink', \
    'aio-max-batch'


def kinds() -> Iterator[Tuple[str, Kind]]:
    """Yield all families that there are, by their names without "qemu_"."""
    def named(name: str, family: Callable[..., Family], words: str,
              *labels: str, unit: str = '') -> Tuple[str, Kind]:
        return name, Kind(family, f'qemu_{name}', words, labels, unit)

    gauge, info = GaugeMetricFamily, InfoMetricFamily
    yield named('up', gauge, 'Whether the QEMU has answered', 'socket')
    yield named('monitor_state', gauge, 'How it is with the monitor: 1 for'
                ' the state that it is in', 'socket', 'state')
    yield named('vm', info, 'A QEMU or storage daemon that has told its name',
                *WHO)
    yield named('omitted', gauge, 'Threads, holders and disks above the'
                ' limits, which are not told', *WHO)
    yield named('iothread', info, 'The settings of an IOThread', *WHO,
                'iothread')
    yield named('iothread_holders', gauge, 'Who uses the IOThread: how many',
                *WHO, 'iothread', 'type')
    yield named('iothread_holder', info, 'Who uses the IOThread', *WHO,
                'iothread')
    for thread, labels in (('iothread', ('iothread',)), ('main_loop', ())):
        for counter, name, unit, words in LOADS:
            if words:
                result = ('result',) if counter in RESULTS else ()
                yield named(f'{thread}_{name}', CounterMetricFamily, words,
                            *WHO, *labels, *result, unit=unit)
    for _, name, unit, words in DISKS:
        yield named(f'block_stats_{name}', CounterMetricFamily,
                    f'{words} of a disk', *WHO, 'device', 'node', unit=unit)
    yield named('exporter_ask', gauge, 'How long it took to ask all QEMUs',
                unit='seconds')


KINDS = dict(kinds())


def label(value: Union[str, int]) -> str:
    """Return what can be a label: UTF-8, and not too long."""
    text = str(value).encode('utf-8', 'backslashreplace').decode('utf-8')
    if len(text) > LONGEST:
        digest = hashlib.sha256(text.encode('utf-8')).hexdigest()[:8]
        text = f'{text[:LONGEST - 9]}~{digest}'
    return text


def device_name(path: str) -> str:
    """Return the ID that the user gave to the device, else its path."""
    found = re.match('/machine/peripheral/([^/]+)', path)
    return found[1] if found else path


def automatic(name: str) -> bool:
    """Tell whether QEMU made up the name: there is no end of these."""
    return name.startswith('#')


Values = Dict[str, Dict[Labels, Any]]


class Rows:
    """Metrics of one QEMU: families, their labels, and values."""

    def __init__(self, who: Labels) -> None:
        self.who = who
        self.values: Values = {}
        self.omitted = 0

    def add(self, kind: str, labels: Sequence[str], value: Any) -> None:
        """Add one; a second one of the same labels replaces it."""
        self.values.setdefault(kind, {})[(*self.who, *labels)] = value

    def most(self, found: List[Any], limit: int) -> List[Any]:
        """Return what is within the limit, and count the rest."""
        self.omitted += max(len(found) - limit, 0)
        return found[:limit]

    def merge(self, other: 'Rows') -> None:
        """Add those of others."""
        for kind, values in other.values.items():
            self.values.setdefault(kind, {}).update(values)
        self.omitted += other.omitted

    def load(self, thread: str, labels: Labels, counters: Counters) -> None:
        """Add what query-stats tells of a thread."""
        for counter, kind, result, divisor in COUNTERS[thread]:
            if counter in counters:
                self.add(kind, labels + result, counters[counter] / divisor)

    def holders(self, name: str, holders: List[Holder]) -> None:
        """Add who uses an IOThread."""
        # One of these is there for each thread, and may be 0
        counts = collections.Counter({} if holders else {HOLDER_TYPES[0]: 0})
        for holder in holders:
            kind = holder.facts['type']
            counts[kind if kind in HOLDER_TYPES else 'other'] += 1
        for kind, count in counts.items():
            self.add('iothread_holders', (name, kind), count)
        for holder in self.most(holders, MOST_HOLDERS):
            facts = holder.facts
            device = facts.get('device') or facts.get('id') or device_name(
                facts.get('qom-path', ''))
            node = facts.get('node-name', '')
            found = {'type': label(facts['type']),
                     'device': '' if automatic(device) else label(device),
                     'node': '' if automatic(node) else label(node),
                     'vqs': label(ranges(facts.get('vqs', [])))}
            if found['device'] or found['node']:
                # Only the thread is a label in the sense of the library
                self.add('iothread_holder', (name, *found.values()), found)

    def iothread(self, name: str, thread: Thread) -> None:
        """Add what query-iothreads tells."""
        self.add('iothread', (name,), {
            key.replace('-', '_'): label(thread.facts[key])
            for key in SETTINGS if key in thread.facts})
        self.holders(name, thread.holders)

    def disk(self, disk: Json) -> None:
        """Add what query-blockstats tells of a disk."""
        device = device_name(disk.get('qdev') or disk.get('device') or '')
        node = disk.get('node-name') or ''
        labels = label(device), '' if automatic(node) else label(node)
        for key, name, unit, _ in DISKS:
            value = disk['stats'][key]
            self.add(f'block_stats_{name}', labels,
                     value / 1e9 if unit == 'seconds' else float(value))


class Qemu(Monitor):
    """A QEMU, and its metrics as of its last answers."""

    def __init__(self, address: str, timeout: Optional[float]) -> None:
        super().__init__(address, timeout)
        self.socket = label(address)
        self.rows: Optional[Rows] = None
        # What query-iothreads has told of each thread, and its metrics: it
        # hardly ever changes
        self._known: Dict[str, Tuple[Json, Rows]] = {}

    @property
    def who(self) -> Labels:
        """Its name, its UUID, and its address."""
        name = self.name
        if name == self.address:
            # It has none, as storage daemons do
            name = os.path.basename(name)
            name = name[:-5] if name.endswith('.sock') else name
        return label(name), label(self.uuid), self.socket

    def note(self, now: Optional[Sample]) -> None:
        super().note(now)
        known, self._known, self.rows = self._known, {}, None
        if not now:
            return
        rows = Rows(self.who)
        for thread, _, counters in rows.most(now.threads, MOST_THREADS):
            if thread.main:
                rows.load('main_loop', (), counters)
                continue
            # A user's ID has no slash
            name = label(f'internal/{thread.name}' if thread.internal
                         else thread.name)
            rows.load('iothread', (name,), counters)
            if thread.facts:
                facts, part = known.get(name, ({}, rows))
                if facts != thread.facts:
                    part = Rows(rows.who)
                    part.iothread(name, thread)
                self._known[name] = thread.facts, part
                rows.merge(part)
        for disk in rows.most(now.disks, MOST_DISKS):
            rows.disk(disk)
        rows.add('omitted', (), rows.omitted)
        self.rows = rows


@dataclass(frozen=True)
class Report:
    """How it is with a monitor, and what was told there."""
    socket: str
    state: str
    # None: it has never told who it is
    who: Optional[Labels]
    about: Dict[str, str]
    values: Values


def report(qemu: Qemu, state: str) -> Report:
    """Return the report of a QEMU; it does not change any more."""
    return Report(
        qemu.socket, state, qemu.who if qemu.named else None,
        {'program': qemu.program, 'version': label(qemu.version)},
        qemu.rows.values if qemu.rows and state == UP else {})


def metrics(reports: Iterable[Report], seconds: float) -> List[Metric]:
    """Return all metrics; it took so long to ask for them."""
    families = {key: kind.make() for key, kind in KINDS.items()}
    for each in reports:
        families['up'].add_metric((each.socket,), float(each.state == UP))
        families['monitor_state'].add_metric((each.socket, each.state), 1.0)
        if each.who:
            families['vm'].add_metric(each.who, each.about)
        for key, found in each.values.items():
            add = families[key].add_metric
            for labels, value in found.items():
                add(labels, value)
    families['exporter_ask'].add_metric((), seconds)
    return list(families.values())
