# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables for people, and JSON for programs"""

from dataclasses import dataclass
import re
import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple
import unicodedata

from .load import Holder, Io, Json, Load, Thread, can_move
from .monitor import UP
from .vm import Vm


def clean(text: str) -> str:
    """Return the text with nothing in it that would steer a terminal."""
    return ''.join(each if each.isprintable() else
                   each.encode('unicode_escape').decode('ascii')
                   for each in text)


def cells(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    return sum(0 if unicodedata.combining(each) else
               2 if unicodedata.east_asian_width(each) in 'WF' else 1
               for each in text)


def fit(text: str, width: int) -> str:
    """Return the text as wide as that: filled up, or cut with a '~'."""
    if cells(text) > width:
        used = 0
        for i, each in enumerate(text):
            used += cells(each)
            if used >= width:
                text = text[:i]
                break
        text += '~' if width > 0 else ''
    return text + ' ' * (width - cells(text))


def percent(value: Optional[float]) -> str:
    """Return a share of the time."""
    return '-' if value is None else f'{value:.1f}'


def number(value: Optional[float]) -> str:
    """Return a figure in at most six columns."""
    if value is None:
        return '-'
    for unit in ('', 'k', 'M', 'G'):
        if value < (99999.5 if not unit else 9999.5):
            return f'{value:.0f}{unit}' if value >= 99.95 or not unit \
                else f'{value:.1f}{unit}'
        value /= 1000
    return f'{value:.0f}T'


@dataclass
class Column:
    """A column of the table; those that matter least give way first."""
    title: str
    width: int
    matters: int
    show: Callable[[Thread], str]


def shown(name: str, how: Callable[[Optional[float]], str]) \
        -> Callable[[Thread], str]:
    """Return what shows that figure of a thread's load."""
    return lambda thread: how(
        getattr(thread.load, name) if thread.load else None)


COLUMNS = [
    Column('TID', 9, 4, lambda thread: str(thread.thread_id or '-')),
    Column('BUSY%', 7, 9, shown('busy', percent)),
    Column('POLL%', 7, 8, shown('poll', percent)),
    Column('IDLE%', 7, 6, shown('idle', percent)),
    Column('CPU%', 7, 7, shown('cpu', percent)),
    Column('EVENTS/s', 10, 5, shown('events', number)),
    Column('WAKES/s', 9, 3, shown('wakeups', number)),
    Column('LOOPS/s', 9, 2, shown('iterations', number)),
]
NAME_WIDTH = 12
# Nobody can follow a line from one end of a wider table to the other
MOST_WIDTH = 132


@dataclass(frozen=True)
class Place:
    """A device that may be moved, and the IOThread that it is on."""
    address: str
    thread: str
    path: str
    name: str


@dataclass
class Line:
    """A line of the table."""
    text: str
    bold: bool = False
    place: Optional[Place] = None


def columns(width: int) -> Tuple[int, List[Column]]:
    """Return what has room: the width of the names, and the columns."""
    chosen = list(COLUMNS)

    def left() -> int:
        return width - sum(column.width for column in chosen)

    while chosen and left() < NAME_WIDTH:
        chosen.remove(min(chosen, key=lambda column: column.matters))
    return left(), chosen


def header(width: int) -> Line:
    """Return the names of the columns."""
    room, chosen = columns(min(width, MOST_WIDTH))
    return Line(fit(' THREAD', room) + ''.join(
        column.title.rjust(column.width) for column in chosen), bold=True)


def thread_line(thread: Thread, width: int) -> Line:
    """Return the line of a thread."""
    room, chosen = columns(width)
    return Line(fit(' ' + clean(thread.name), room) + ''.join(
        column.show(thread).rjust(column.width) for column in chosen))


def ranges(numbers: Iterable[int]) -> str:
    """Return 0-2,5 for 0, 1, 2, 5."""
    runs: List[List[int]] = []
    for each in sorted(numbers):
        if runs and each == runs[-1][1] + 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    return ','.join(str(first) if first == last else f'{first}-{last}'
                    for first, last in runs)


def describe(facts: Json, whole: bool = True) -> str:
    """
    Return who the holder is, in the words of "info iothreads".

    The QOM path of a device that has an ID says little more, and is long.
    """
    words = [facts['type']]
    for key in ('device', 'id', 'node-name'):
        if key in facts:
            words.append(f'{key}={facts[key]}')
    if 'vqs' in facts:
        words.append(f'vqs={ranges(facts["vqs"])}')
    if 'qom-path' in facts and (whole or 'device' not in facts):
        words.append(f'qom-path={facts["qom-path"]}')
    if facts['type'] == 'qom-object':
        # Next to all of them are devices: leave the room to their names
        del words[0]
    return clean(' '.join(words))


def io_text(io: Io, shared: bool) -> str:
    """Return what the disk does."""
    megabytes = (io.read_bytes + io.written_bytes) / 1e6
    star = '*' if shared else ' '
    return f'{number(io.reads + io.writes)} IOPS {megabytes:.1f} MB/s{star}'


def holder_line(holder: Holder, width: int,
                place: Optional[Place] = None) -> Line:
    """Return the line of a holder."""
    said = io_text(holder.io, holder.shared) if holder.io else ''
    text = '   ' + describe(holder.facts, whole=width >= 120)
    if said and width >= 40:
        text = fit(text, width - len(said) - 1) + ' ' + said
    return Line(fit(text, width).rstrip(), place=place)


def natural(name: str) -> List[Tuple[int, str]]:
    """Return a key that puts io2 in front of io10."""
    # Python makes no number of thousands of digits
    return [(int(part), '') if part.isdecimal() else (-1, part)
            for part in re.split(r'(\d{1,99})', name)]


SORTS: Dict[str, Callable[[Load], Optional[float]]] = {
    'busy': lambda load: load.busy,
    'poll': lambda load: load.poll,
    'cpu': lambda load: load.cpu,
    'events': lambda load: load.events,
}


def arrange(threads: List[Thread], sort: str, backwards: bool) \
        -> List[Thread]:
    """Return the threads in order: the largest first, or by their names."""
    named = sorted(threads, key=lambda thread: natural(thread.name))
    if sort == 'name':
        return named[::-1] if backwards else named

    def value(thread: Thread) -> float:
        found = SORTS[sort](thread.load) if thread.load else None
        return -1 if found is None else found

    return sorted(named, key=value, reverse=not backwards)


def vm_line(vm: Vm) -> Line:
    """Return the line above the threads of a QEMU."""
    text = clean(vm.name)
    if vm.name != vm.address:
        text += f' ({clean(vm.address)})'
    if vm.state != UP:
        text += f': {vm.state}'
        if vm.why:
            text += f' - {clean(vm.why)}'
    elif vm.silent >= 1:
        text += f': no answer for {vm.silent:.0f} s'
    return Line(text, bold=True)


def table(vms: List[Vm], width: int, sort: str = 'busy',
          backwards: bool = False, holders: bool = True) -> List[Line]:
    """Return all but the names of the columns."""
    width = min(width, MOST_WIDTH)
    lines = []
    for vm in vms:
        lines.append(vm_line(vm))
        for thread in arrange(vm.threads, sort, backwards):
            lines.append(thread_line(thread, width))
            if holders:
                lines += [holder_line(each, width, place(vm, thread, each))
                          for each in thread.holders]
    return lines


def place(vm: Vm, thread: Thread, holder: Holder) -> Optional[Place]:
    """Return where the holder is, None if it has to stay there."""
    if not can_move(holder):
        return None
    path = holder.facts['qom-path']
    return Place(vm.address, thread.name, path,
                 holder.facts.get('device', path))


def has_shared(vms: List[Vm]) -> bool:
    """Tell whether there is a '*' to explain."""
    return any(holder.io and holder.shared for vm in vms
               for thread in vm.threads for holder in thread.holders)


SHARED = '* of a disk that is on several threads: the sum of them'


def report(vms: List[Vm], width: int, **how: Any) -> str:
    """Return the table as text."""
    lines = [header(width), *table(vms, width, **how)]
    if how.get('holders', True) and has_shared(vms):
        lines.append(Line(SHARED))
    return '\n'.join(line.text.rstrip() for line in lines)


def rounded(value: Optional[float]) -> Optional[float]:
    """Return it without digits that mean nothing."""
    return None if value is None else round(value, 3)


def holder_json(holder: Holder) -> Json:
    """Return the facts, and what the disk does."""
    io = holder.io
    return {**holder.facts,
            'shared': holder.shared,
            'reads-per-second': rounded(io.reads if io else None),
            'writes-per-second': rounded(io.writes if io else None),
            'read-bytes-per-second': rounded(io.read_bytes if io else None),
            'written-bytes-per-second':
                rounded(io.written_bytes if io else None)}


def thread_json(thread: Thread) -> Json:
    """Return a thread; null stands for what is not known."""
    load = thread.load

    def figure(name: str) -> Optional[float]:
        return rounded(getattr(load, name)) if load else None

    return {'id': thread.name, 'qom-path': thread.path,
            'thread-id': thread.thread_id, 'main-loop': thread.main,
            'busy-percent': figure('busy'),
            'poll-hit-percent': figure('poll_hit'),
            'poll-miss-percent': figure('poll_miss'),
            'idle-percent': figure('idle'),
            'cpu-percent': figure('cpu'),
            'events-per-second': figure('events'),
            'wakeups-per-second': figure('wakeups'),
            'iterations-per-second': figure('iterations'),
            'holders': [holder_json(each) for each in thread.holders]}


def as_json(vms: List[Vm]) -> Json:
    """Return a sample of all."""
    return {'time': round(time.time(), 3),
            'vms': [{'name': vm.name, 'address': vm.address,
                     'state': vm.state, 'message': vm.why or None,
                     'interval': rounded(vm.interval),
                     'threads': [thread_json(each) for each in vm.threads]}
                    for vm in vms]}
