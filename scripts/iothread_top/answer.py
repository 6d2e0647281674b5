# SPDX-License-Identifier: GPL-2.0-or-later
"""
What is used of QEMU's answers, if it is what QEMU's schema has there

A QEMU may be under the control of its guest, and answer anything.  What is
returned here can be used without further ado.  All else is a ValueError.
"""

from typing import Any, Callable, Dict, List, Mapping

Json = Dict[str, Any]
# The members that are used, and what tells whether a value can be there
Checks = Mapping[str, Callable[[Any], bool]]

# No virtio device has more queues
MOST_QUEUES = 1024


def text(value: Any) -> bool:
    """Tell whether it is a text."""
    return isinstance(value, str)


def number(value: Any) -> bool:
    """Tell whether it is a counter, or another number that QEMU can tell."""
    return isinstance(value, int) and not isinstance(value, bool) and \
        0 <= value < 1 << 64


def flag(value: Any) -> bool:
    """Tell whether it is true or false."""
    return isinstance(value, bool)


def queues(value: Any) -> bool:
    """Tell whether these are virtqueues."""
    return isinstance(value, list) and len(value) <= MOST_QUEUES and all(
        number(each) and each < 1 << 16 for each in value)


def some(value: Any) -> bool:
    """Tell whether it is a list."""
    return isinstance(value, list)


def anything(_value: Any) -> bool:
    """Have somebody else look at it."""
    return True


NAME = {'name': text}
UUID = {'UUID': text}
VERSION = dict.fromkeys(('major', 'minor', 'micro'), number)
STATS = {'qom-path': text, 'stats': some}
STAT = {'name': text, 'value': anything}
COUNTERS = dict.fromkeys((
    'busy-time', 'poll-hit-time', 'poll-miss-time', 'blocked-time',
    'cpu-time', 'events', 'wakeups', 'iterations'), number)
IOTHREAD = {'id': text, 'thread-id': number, 'internal': flag,
            'poll-max-ns': number, 'poll-grow': number,
            'poll-shrink': number, 'aio-max-batch': number,
            'holders': some}
HOLDER = {'type': text, 'qom-path': text, 'device': text, 'id': text,
          'node-name': text, 'vqs': queues}
DISK = {'device': text, 'qdev': text, 'node-name': text, 'stats': anything,
        # This one is not of QEMU, but of Vm
        'controller': text}
IO = 'rd_operations', 'wr_operations', 'rd_bytes', 'wr_bytes'
DISK_STATS = dict.fromkeys((
    *IO, 'flush_operations', 'rd_total_time_ns', 'wr_total_time_ns',
    'flush_total_time_ns'), number)
MAPPING = {'iothread': text, 'vqs': queues}


def pick(answer: Any, checks: Checks, *needed: str) -> Json:
    """Return a copy with the members that are used."""
    if not isinstance(answer, dict):
        raise ValueError('an object is missing')
    found = {key: answer[key] for key in checks
             if answer.get(key) is not None}
    for key, value in found.items():
        if not checks[key](value):
            raise ValueError(f"'{key}' has a wrong value")
    for key in needed:
        if key not in found:
            raise ValueError(f"'{key}' is missing")
    return found


def pick_all(answers: Any, checks: Checks, *needed: str) -> List[Json]:
    """Return copies of all in a list."""
    if not isinstance(answers, list):
        raise ValueError('a list is missing')
    return [pick(each, checks, *needed) for each in answers]


def pick_holder(answer: Any) -> Json:
    """Return one that uses an IOThread."""
    found = pick(answer, HOLDER, 'type')
    if found['type'] == 'qom-object' or 'vqs' in found:
        pick(found, HOLDER, 'qom-path')
    return found


def pick_threads(answers: Any) -> List[Json]:
    """Return what query-iothreads tells."""
    found = pick_all(answers, IOTHREAD, 'id', 'thread-id')
    for each in found:
        each['holders'] = [pick_holder(holder)
                           for holder in each.get('holders', [])]
    return found


def pick_stats(answers: Any) -> List[Json]:
    """Return what query-stats tells: the counters by their names."""
    found = pick_all(answers, STATS, 'stats')
    for each in found:
        each['stats'] = pick({
            stat['name']: stat['value'] for stat
            in pick_all(each['stats'], STAT, 'name', 'value')}, COUNTERS)
    return found


def pick_disks(answers: Any) -> List[Json]:
    """Return what query-blockstats tells."""
    found = pick_all(answers, DISK, 'stats')
    for each in found:
        each['stats'] = pick(each['stats'], DISK_STATS, *IO)
    return found
