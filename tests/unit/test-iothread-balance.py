#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""The plans of scripts/iothread-balance, without any QEMU"""

import asyncio
import contextlib
import io
from pathlib import Path
import random
import sys
from typing import Any, Awaitable, Callable, Dict, List, Optional, Tuple
import unittest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / 'scripts'), str(ROOT / 'python')]

# pylint: disable=wrong-import-position
from iothread_balance.main import Balancer, parser  # noqa: E402
from iothread_balance.plan import (  # noqa: E402
    Keeper, Limits, Move, Part, Plan, Thread, make_plan, measure)
from iothread_top.load import Json, compare, sample, targets  # noqa: E402
from iothread_top.monitor import REFUSED, UP  # noqa: E402
from iothread_top.text import natural  # noqa: E402
from iothread_top.vm import NotMoved, Vm  # noqa: E402

LIMITS = Limits()
SECOND = 10 ** 9
# A client that reads 4 KiB 1,000 times a second
READS = {'rd_operations': 1000, 'rd_bytes': 4096000,
         'wr_operations': 0, 'wr_bytes': 0}
NOTHING = dict.fromkeys(READS, 0)


def disk(name: str, vqs: Any = (0,)) -> Json:
    """Return a device as query-iothreads tells it."""
    return {'type': 'qom-object', 'device': name, 'vqs': list(vqs),
            'qom-path': f'/machine/peripheral/{name}/virtio-backend'}


def stats(path: Optional[str], busy: float, poll: float) -> Json:
    """Return counters after a second, as query-stats tells them."""
    times = {'busy-time': busy, 'poll-hit-time': poll / 2,
             'poll-miss-time': poll / 2, 'blocked-time': 1 - busy - poll}
    return {'qom-path': path, 'stats': [
        {'name': name, 'value': round(value * SECOND)}
        for name, value in times.items()]}


def zero(result: Json) -> Json:
    """Return the counters from before that second."""
    return {**result, 'stats': [{**each, 'value': 0}
                                for each in result['stats']]}


def measured(loads: Dict[str, Tuple[float, float]],
             holders: Dict[str, List[Json]],
             disks: Dict[str, Json], **facts: Json) -> Dict[str, Thread]:
    """
    Return what is measured between two answers of a QEMU.

    The loads are busy and polling, the disks what each did in the second,
    and the facts what else query-blockstats tells of a disk.
    """
    infos = [{'id': name, 'thread-id': number, 'holders':
              holders.get(name, [])} for number, name in enumerate(loads)]
    results = [stats(f'/objects/{name}', *load)
               for name, load in loads.items()]

    def blockstats(factor: int) -> List[Json]:
        return [{'qdev': f'/machine/peripheral/{name}/virtio-backend',
                 **facts.get(name, {}),
                 'stats': {key: factor * value for key, value in io.items()}}
                for name, io in disks.items()]

    before = sample(infos, [zero(each) for each in results], 0, [], 0,
                    blockstats(1), 0)
    after = sample(infos, results, 1, [], 1, blockstats(2), 1)
    compare(None, before)
    return {thread.name: thread
            for thread in measure(compare(before, after))}


class TestMeasure(unittest.TestCase):
    """Whose work it is that a thread does"""

    def loads(self, thread: Thread) -> Dict[str, float]:
        """Return the loads of the devices."""
        return {part.name: round(part.load, 3) for part in thread.parts}

    def test_by_requests(self) -> None:
        """As many requests of the same size are as much work"""
        found = measured(
            {'io0': (0.8, 0.1), 'io1': (0, 0)},
            {'io0': [disk('a'), disk('b'), disk('c')]},
            {'a': READS, 'b': {**NOTHING, 'wr_operations': 3000,
                               'wr_bytes': 3 * 4096000}, 'c': NOTHING})
        self.assertEqual(self.loads(found['io0']),
                         {'a': 20, 'b': 60, 'c': 0})
        self.assertAlmostEqual(found['io0'].busy, 80)
        self.assertEqual(found['io1'].parts, ())

    def test_by_size(self) -> None:
        """64 KiB are as much work as a request"""
        found = measured(
            {'io0': (0.9, 0)}, {'io0': [disk('a'), disk('b')]},
            {'a': {**NOTHING, 'rd_operations': 90, 'rd_bytes': 90 * 65536},
             'b': {**NOTHING, 'rd_operations': 90}})
        self.assertEqual(self.loads(found['io0']), {'a': 60, 'b': 30})

    def test_by_queues(self) -> None:
        """A disk on two threads, with three queues on one of them"""
        found = measured(
            {'io0': (0.5, 0), 'io1': (0.5, 0)},
            {'io0': [disk('a', (0, 1, 2)), disk('b')],
             'io1': [disk('a', (3,))]}, {'a': READS, 'b': READS})
        self.assertEqual(self.loads(found['io0']),
                         {'a': round(50 * 0.75 / 1.75, 3),
                          'b': round(50 / 1.75, 3)})
        self.assertEqual(self.loads(found['io1']), {'a': 50})

    def test_controller(self) -> None:
        """A SCSI controller does what its disks do"""
        hba = disk('hba')
        found = measured(
            {'io0': (0.9, 0)}, {'io0': [hba, disk('a')]},
            {'a': READS, 'd0': READS, 'd1': READS},
            d0={'controller': hba['qom-path'], 'qdev': 'd0'},
            d1={'controller': hba['qom-path'], 'qdev': 'd1'})
        self.assertEqual(self.loads(found['io0']), {'hba': 60, 'a': 30})

    def test_others(self) -> None:
        """An export and a job work as much as the disk; nodes only follow"""
        found = measured(
            {'io0': (0.9, 0)}, {'io0': [
                disk('a'), {'type': 'block-node', 'node-name': 'n'},
                {'type': 'block-export', 'id': 'e', 'node-name': 'n'},
                {'type': 'job', 'id': 'j'}]}, {'a': READS})
        self.assertEqual(self.loads(found['io0']), {'a': 30})
        found = measured({'io0': (0.9, 0)}, {'io0': [
            {'type': 'block-export', 'id': 'e', 'node-name': 'n'}]}, {})
        self.assertEqual(self.loads(found['io0']), {})
        self.assertAlmostEqual(found['io0'].busy, 90)

    def test_unmeasured(self) -> None:
        """Nothing is known of a disk, and nobody does anything"""
        found = measured({'io0': (0.9, 0)}, {'io0': [disk('a')]}, {})
        self.assertEqual(self.loads(found['io0']), {'a': 0})

    def test_whose_thread(self) -> None:
        """QEMU's own threads, new ones, and those without counters"""
        info = {'id': 'io0', 'thread-id': 1, 'holders': []}
        own = stats(None, 1, 0)
        first = sample([info, info], [zero(stats('/objects/io0', .5, 0)),
                                      zero(own)], 0, [], 0, [], 0)
        then = sample([info, {**info, 'id': 'new'}, info],
                      [stats('/objects/io0', .5, 0),
                       stats('/objects/new', .5, 0), own], 1, [], 1, [], 1)
        found = compare(first, then)
        self.assertEqual(len(found), 3)
        self.assertEqual(targets(found, '/machine/x'), ['io0', 'new'])
        self.assertEqual(measure(compare(None, first)), [])
        self.assertEqual(measure(compare(first, then)),
                         [Thread('io0', 50.0)])

    def test_targets(self) -> None:
        """Where a device may go: not where it is"""
        infos = [{'id': name, 'thread-id': 1, 'holders': holders}
                 for name, holders in (('io0', [disk('a')]), ('io1', []))]
        results = [stats(f'/objects/{info["id"]}', 0, 0) for info in infos]
        found = compare(None, sample(infos, results, 0, [], 0, [], 0))
        self.assertEqual(targets(found, disk('a')['qom-path']), ['io1'])
        self.assertEqual(targets(found, disk('b')['qom-path']),
                         ['io0', 'io1'])

    def test_polling(self) -> None:
        """A thread that only polls has all its time left"""
        found = measured(
            {'io0': (0.9, 0.1), 'io1': (0, 1)},
            {'io0': [disk('a'), disk('b')]}, {'a': READS, 'b': READS})
        plan = make_plan(list(found.values()), LIMITS)
        self.assertEqual([move.target for move in plan.moves], ['io1'])

    def test_no_holders(self) -> None:
        """A QEMU that counts, and does not tell who uses a thread"""
        found = measured({'io0': (1, 0), 'io1': (0, 0)}, {}, {'a': READS})
        plan = make_plan(list(found.values()), LIMITS)
        self.assertEqual(plan.moves, [])
        self.assertIn('no move', plan.why)


class TestNonsense(unittest.TestCase):
    """What no QEMU answers"""

    PATH = '/objects/io0'
    THREAD: Json = {'id': 'io0', 'thread-id': 1, 'poll-grow': 0,
                    'internal': False, 'holders': [disk('a')]}
    DISK: Json = {'device': 'a', 'stats': READS}
    # All are wrong for a number, and all but the text for a text
    WRONG: List[Any] = ['1', 5.0, True, -1, 1 << 64, [], ['x'], {}]

    def refused(self, thread: Any, result: Any, blockstats: Any) -> bool:
        """Tell whether these answers are refused."""
        try:
            sample([thread], [result], 0, [], 0, [blockstats], 0)
        except ValueError:
            return True
        return False

    def check(self, wrong: Any, *, thread: Optional[Json] = None,
              result: Optional[Json] = None,
              blockstats: Optional[Json] = None) -> None:
        """Check that the answers are refused with that in them."""
        self.assertTrue(self.refused(
            {**self.THREAD, **(thread or {})},
            {**stats(self.PATH, 1, 0), **(result or {})},
            {**self.DISK, **(blockstats or {})}), wrong)

    def test_types(self) -> None:
        """All that is used is of the type that QEMU has"""
        good: List[Any] = [self.THREAD, stats(self.PATH, 1, 0), self.DISK]
        wrong: Any
        self.assertFalse(self.refused(*good))
        for wrong in (None, 5, 'x', []):
            for i in range(3):
                answers = [*good]
                answers[i] = wrong
                self.assertTrue(self.refused(*answers), (i, wrong))
        for wrong in self.WRONG:
            self.check(wrong, thread={'thread-id': wrong})
            self.check(wrong, thread={'poll-grow': wrong})
            self.check(wrong, result={'stats': [
                {'name': 'events', 'value': wrong}]})
            self.check(wrong, blockstats={
                'stats': {**READS, 'rd_bytes': wrong}})
        for wrong in self.WRONG[1:]:
            self.check(wrong, thread={'id': wrong})
            self.check(wrong, result={'qom-path': wrong})
            self.check(wrong, blockstats={'qdev': wrong})
        for wrong in (5, 'x', {}, [5]):
            self.check(wrong, thread={'internal': wrong})
            self.check(wrong, thread={'holders': wrong})
            self.check(wrong, result={'stats': wrong})
            self.check(wrong, blockstats={'stats': wrong})

    def test_holders(self) -> None:
        """Who has virtqueues has a path too, and not too many of them"""
        path = disk('a')['qom-path']
        wrong: List[Any] = [
            None, {}, {'type': 5}, {'type': 'qom-object'},
            {'type': 'job', 'id': 5}, {'type': 'job', 'vqs': [0]},
            {'type': 'qom-object', 'qom-path': 5, 'vqs': [0]},
            {'type': 'qom-object', 'qom-path': path, 'device': {}}]
        for vqs in (5, '0', {}, ['a', 1], [True], [-1], [1 << 16], [0.0],
                    [None], [0] * 1025):
            wrong.append({**disk('a'), 'vqs': vqs})
        for holder in wrong:
            self.check(holder, thread={'holders': [holder]})

    def test_more(self) -> None:
        """What is new is left out, and of no type that matters"""
        new: Json = {'new': [[{}]]}
        found = sample(
            [{**self.THREAD, **new, 'holders': [{**disk('a'), **new}]}],
            [{'qom-path': self.PATH, 'stats': [
                {'name': 'new', 'value': [1]}]}], 0, [], 0,
            [{**self.DISK, **new, 'stats': {**READS, **new}}], 0)
        self.assertEqual(found, sample(
            [self.THREAD], [{'qom-path': self.PATH, 'stats': []}], 0, [], 0,
            [self.DISK], 0))

    def test_order(self) -> None:
        """Names of more digits than Python has in a number"""
        names = ['io2', 'io10', 'io' + '1' * 5000]
        self.assertEqual(sorted(reversed(names), key=natural), names)


class FakeVm(Vm):
    """Has such threads for three samples"""

    def __init__(self, name: str, found: Any) -> None:
        super().__init__(name, 1)
        self.found, self.asked = found, 0

    async def update(self) -> None:
        self.asked += 1
        self.state, self.threads = UP, self.found
        if self.asked > 3:
            self.state = REFUSED


class TestAlone(unittest.TestCase):
    """This program fails, on one QEMU's account: not all's"""

    def setUp(self) -> None:
        self.vms = FakeVm('bad', [None]), FakeVm('good', [])
        args = parser().parse_args(['-d', '0.05', 'x'])
        self.balancers = [Balancer(vm, args) for vm in self.vms]

    def check(self, work: Callable[[Balancer], Awaitable[Any]]) -> str:
        """Have both work; return what they print."""
        async def both() -> None:
            await asyncio.gather(*map(work, self.balancers))

        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            asyncio.run(both())
        self.assertEqual(self.vms[0].state, REFUSED)
        self.assertIn('AttributeError', self.vms[0].why)
        self.assertEqual(self.vms[1].why, '')
        return said.getvalue()

    def test_watch(self) -> None:
        """The other one is watched until its end"""
        self.assertIn('bad: unsuitable AttributeError',
                      self.check(Balancer.watch))
        self.assertEqual([vm.asked for vm in self.vms], [1, 4])

    def test_once(self) -> None:
        """The other one has its plan"""
        async def work(balancer: Balancer) -> None:
            await balancer.vm.update()
            await balancer.once(True)

        self.check(work)
        self.assertIn('no IOThread', self.balancers[1].plan.why)


class TestRecorded(unittest.TestCase):
    """
    Loads that iothread-top has shown

    Guests read 512 KiB or 1 MiB at a time from two disks.
    """

    # For each IOThread busy and polling, and the IOPS and MB/s of its disks
    LIGHT = {'io0': (.216, .001, {'disk0': (0, 0), 'busy0': (201, 105.2),
                                  'busy1': (239, 125.2)}),
             'io1': (0, 0, {})}
    FULL = {'io0': (1, 0, {'disk0': (0, 0), 'busy0': (5, 4.9),
                           'busy1': (5, 4.9)}),
            'io1': (0, 0, {})}
    AFTER = {'io0': (1, 0, {'disk0': (0, 0), 'busy1': (6, 6.5)}),
             'io1': (.993, 0, {'busy0': (6, 6.2)})}

    @staticmethod
    def plan(load: Any, limits: Limits = LIMITS) -> Plan:
        """Return the plan for such a load."""
        disks = {name: {**NOTHING, 'rd_operations': iops,
                        'rd_bytes': round(megabytes * 1e6)}
                 for _, _, each in load.values()
                 for name, (iops, megabytes) in each.items()}
        return make_plan(list(measured(
            {name: each[:2] for name, each in load.items()},
            {name: [disk(one) for one in each[2]]
             for name, each in load.items()}, disks).values()), limits)

    def test_plans(self) -> None:
        """One that is full, one that is not, and the first after that"""
        plan = self.plan(self.FULL)
        self.assertEqual([(move.name, move.target) for move in plan.moves],
                         [('busy0', 'io1')])
        self.assertAlmostEqual(plan.after['io1'], 50)
        self.assertEqual(self.plan(self.AFTER).moves, [])
        self.assertEqual(self.plan(self.LIGHT).moves, [])
        plan = self.plan(self.LIGHT, Limits(full=10, gain=3))
        self.assertEqual([move.name for move in plan.moves], ['busy0'])
        self.assertAlmostEqual(plan.after['io1'], 9.86, 1)


def threads(**loads: List[float]) -> List[Thread]:
    """Return threads: for each, what does not move and what disks do."""
    return [Thread(name, sum(each), tuple(
        Part(f'{name}-{i}', f'{name}-{i}', load)
        for i, load in enumerate(each[1:])))
        for name, each in loads.items()]


class TestPlan(unittest.TestCase):
    """What is moved where"""

    def moves(self, found: List[Thread], limits: Limits = LIMITS,
              resting: Tuple[str, ...] = ()) -> List[Tuple[str, str, str]]:
        """Return the moves; check what is true of each plan."""
        plan = make_plan(found, limits, resting)
        self.check(found, plan)
        return [(move.name, move.source, move.target)
                for move in plan.moves]

    def check(self, found: List[Thread], plan: Plan) -> None:
        """Check that the plan makes nothing worse, and adds up."""
        busy = {thread.name: thread.busy for thread in found}
        self.assertEqual(plan.before, busy)
        where = {thread.name: {part.device for part in thread.parts}
                 for thread in found}
        for move in plan.moves:
            self.assertNotIn(move.device, where[move.target])
            source = busy[move.source]
            busy[move.source] -= move.load
            busy[move.target] += move.load
            self.assertLess(busy[move.target], source)
            where[move.source].remove(move.device)
            where[move.target].add(move.device)
        for name, load in plan.after.items():
            self.assertAlmostEqual(load, busy[name])
        self.assertEqual(len({move.device for move in plan.moves}),
                         len(plan.moves))
        if plan.moves:
            self.assertEqual(plan.why, '')
        else:
            self.assertNotEqual(plan.why, '')
            self.assertEqual(plan.after, plan.before)

    def test_two_on_one(self) -> None:
        """Two busy disks on a thread, and one that is free"""
        found = threads(io0=[0, 50, 48], io1=[0])
        self.assertEqual(self.moves(found), [('io0-0', 'io0', 'io1')])
        plan = make_plan(found, LIMITS)
        self.assertEqual(plan.after, {'io0': 48, 'io1': 50})

    def test_small_to_half_full(self) -> None:
        """The disk that evens it out best, to the thread with room for it"""
        self.assertEqual(
            self.moves(threads(io0=[5, 60, 30], io1=[40], io2=[50])),
            [('io0-1', 'io0', 'io1')])

    def test_many(self) -> None:
        """Eight disks on one of four threads, each of which is little"""
        found = threads(io0=[0, *[12.0] * 8], io1=[0], io2=[0], io3=[0])
        plan = make_plan(found, LIMITS)
        self.check(found, plan)
        self.assertEqual(plan.after, dict.fromkeys(plan.after, 24))

    def test_two_full(self) -> None:
        """The busiest first, and then the other"""
        self.assertEqual(
            self.moves(threads(io0=[0, 40, 40], io1=[0, 49, 49], io2=[0],
                               io3=[0])),
            [('io1-0', 'io1', 'io2'), ('io0-0', 'io0', 'io3')])
        # The busiest cannot be helped, and the other can
        self.assertEqual(
            self.moves(threads(io0=[100], io1=[0, 45, 45], io2=[0])),
            [('io1-0', 'io1', 'io2')])

    def test_nothing(self) -> None:
        """What is to stay as it is"""
        cases: Dict[str, List[Thread]] = {
            'all idle': threads(io0=[0, 0, 0], io1=[0, 0]),
            'all full': threads(io0=[0, 50, 50], io1=[0, 99],
                                io2=[0, 50, 48]),
            'alone': threads(io0=[0, 99], io1=[0]),
            'alone, the other half full': threads(io0=[0, 99], io1=[40]),
            'no disk': threads(io0=[99], io1=[0]),
            'nowhere to go': threads(io0=[0, 50, 50]),
            'not full': threads(io0=[0, 34, 34], io1=[0]),
            'too little gain': threads(io0=[70, 14], io1=[0]),
            'would swap': threads(io0=[0, 80, 1], io1=[5]),
            'even': threads(io0=[0, 45, 45], io1=[0, 45, 35]),
            'disks do nothing': threads(io0=[90, 0, 0], io1=[0]),
            'no thread': []}
        for name, found in cases.items():
            with self.subTest(name):
                self.assertEqual(self.moves(found), [])

    def test_limits(self) -> None:
        """Just below and just above each limit"""
        found = threads(io0=[0, 35, 35], io1=[0])
        self.assertEqual(len(self.moves(found)), 1)
        self.assertEqual(self.moves(found, Limits(full=70.1)), [])
        found = threads(io0=[70, 15], io1=[0])
        self.assertEqual(len(self.moves(found)), 1)
        self.assertEqual(self.moves(found, Limits(gain=15.1)), [])

    def test_keep(self) -> None:
        """Devices and threads that are to be left alone, or rest"""
        found = threads(io0=[0, 50, 45], io1=[0], io2=[5])
        for keep, wanted in (
                (['io1'], [('io0-1', 'io0', 'io2')]),
                (['io0-0'], [('io0-1', 'io0', 'io1')]),
                (['io0'], []), (['io1', 'io2'], []),
                (['io0-0', 'io0-1'], [])):
            self.assertEqual(self.moves(found, Limits(keep=keep)), wanted)
        self.assertEqual(self.moves(found, resting=('io0-0',)),
                         [('io0-1', 'io0', 'io1')])
        self.assertEqual(self.moves(found, resting=('io0-0', 'io0-1')), [])
        self.assertIn('rest', make_plan(found, LIMITS,
                                        ('io0-0', 'io0-1')).why)

    def test_mapping(self) -> None:
        """A disk goes nowhere where it is already"""
        both = Part('a', 'a', 45)
        found = [Thread('io0', 90, (both, Part('b', 'b', 45))),
                 Thread('io1', 10, (Part('a', 'a', 10),))]
        self.assertEqual(self.moves(found), [('b', 'io0', 'io1')])
        found[0] = Thread('io0', 90, (both, Part('b', 'b', 1)))
        self.assertEqual(self.moves(found), [])
        # And it goes with one of its parts at a time
        found = [Thread('io0', 90, (Part('a', 'a', 60),)),
                 Thread('io1', 85, (Part('a', 'a', 60),)),
                 Thread('io2', 0), Thread('io3', 0)]
        self.assertEqual(self.moves(found), [('a', 'io0', 'io2')])

    def test_random(self) -> None:
        """Whatever the load is: never worse, and it comes to rest"""
        chance = random.Random(1)
        moved = 0
        for _ in range(2000):
            found = [Thread(f'io{i}', 0) for i in range(
                chance.randint(1, 6))]
            for device in range(chance.randint(0, 12)):
                on = chance.sample(range(len(found)), chance.randint(
                    1, min(2, len(found))))
                for i in on:
                    load = chance.choice([0, 1, 5, 20, 50]) * chance.random()
                    if found[i].busy + load <= 100:
                        found[i] = Thread(
                            f'io{i}', found[i].busy + load,
                            (*found[i].parts,
                             Part(str(device), str(device), load)))
            most = max(thread.busy for thread in found)
            for _ in range(20):
                plan = make_plan(found, LIMITS)
                self.check(found, plan)
                moved += len(plan.moves)
                if not plan.moves:
                    break
                self.assertLessEqual(max(plan.after.values()), most)
                most = max(plan.after.values())
                found = self.done(found, plan)
            else:
                self.fail('it goes on and on')
        self.assertGreater(moved, 200)

    @staticmethod
    def done(found: List[Thread], plan: Plan) -> List[Thread]:
        """Return the threads as the plan has them."""
        parts = {thread.name: {part.device: part for part in thread.parts}
                 for thread in found}
        for move in plan.moves:
            parts[move.target][move.device] = \
                parts[move.source].pop(move.device)
        return [Thread(name, plan.after[name], tuple(each.values()))
                for name, each in parts.items()]


class TestAct(unittest.TestCase):
    """A plan is carried out, and QEMU refuses a part of it"""

    def test_refused(self) -> None:
        """What relied on the refused move is not tried"""
        found = threads(io0=[0, 90, 10], io1=[0, 40, 40], io2=[0])
        balancer = Balancer(FakeVm('vm', []),
                            parser().parse_args(['--samples', '1', 'x']))
        tried: List[str] = []

        async def move(device: str, *_: str) -> None:
            tried.append(device)
            if device == 'io0-0':
                raise NotMoved('held')

        balancer.vm.state = UP
        balancer.vm.move = move  # type: ignore[method-assign]
        balancer.plan = Plan(
            [Move('io0-0', 'io0-0', 'io0', 'io2', 90),
             Move('io1-0', 'io1-0', 'io1', 'io0', 40),
             Move('io1-1', 'io1-1', 'io1', 'io2', 40)],
            {thread.name: thread.busy for thread in found},
            {'io0': 50, 'io1': 0, 'io2': 130})
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertTrue(asyncio.run(balancer.act()))
        self.assertEqual(tried, ['io0-0', 'io1-1'])


class TestKeeper(unittest.TestCase):
    """When it is moved"""

    FULL = threads(io0=[0, 50, 45], io1=[0])
    IDLE = threads(io0=[0, 5, 5], io1=[0])

    @staticmethod
    def ask(keeper: Keeper, found: List[Thread], now: float) -> List[str]:
        """Have a sample; return what is to be moved, and note it as done."""
        due = keeper.due(keeper.plan(found, now), now)
        for move in due:
            keeper.tried(move, True, now)
        return [move.name for move in due]

    def test_passing(self) -> None:
        """A load that passes moves nothing, one that stays does"""
        keeper = Keeper(Limits(samples=3))
        for found, wanted in ((self.FULL, 0), (self.FULL, 0), (self.IDLE, 0),
                              (self.FULL, 0), (self.FULL, 0), (self.FULL, 1)):
            self.assertEqual(len(self.ask(keeper, found, 0)), wanted)

    def test_rest(self) -> None:
        """What has moved stays for a while, whatever the load is"""
        keeper = Keeper(Limits(samples=1, rest=30, moves=100))
        there, back = self.FULL, [
            Thread('io0', 5), Thread('io1', 95, self.FULL[0].parts)]
        self.assertEqual(self.ask(keeper, there, 0), ['io0-0'])
        self.assertEqual(self.ask(keeper, back, 10), ['io0-1'])
        self.assertEqual(self.ask(keeper, there, 29), [])
        self.assertEqual(self.ask(keeper, there, 31), ['io0-0'])

    def test_refused(self) -> None:
        """What was refused is not tried again for longer"""
        keeper = Keeper(Limits(samples=1, retry=300))
        (move,) = keeper.due(keeper.plan(self.FULL, 0), 0)
        keeper.tried(move, False, 0)
        # The other disk does as well
        (other,) = keeper.due(keeper.plan(self.FULL, 5), 5)
        self.assertEqual((move.name, other.name), ('io0-0', 'io0-1'))
        keeper.tried(other, False, 5)
        for now in (6, 299):
            plan = keeper.plan(self.FULL, now)
            self.assertEqual(keeper.due(plan, now), [])
            self.assertIn('rest', plan.why)
        self.assertEqual(self.ask(keeper, self.FULL, 301), ['io0-0'])

    def test_moves_per_minute(self) -> None:
        """A minute has so many moves; what is left comes later"""
        keeper = Keeper(Limits(samples=1, moves=2, rest=1))
        found = threads(io0=[0, *[12.0] * 8], io1=[0], io2=[0], io3=[0])
        self.assertEqual(len(self.ask(keeper, found, 0)), 2)
        self.assertEqual(self.ask(keeper, found, 30), [])
        self.assertEqual(self.ask(keeper, found, 59), [])
        self.assertEqual(len(self.ask(keeper, found, 60)), 2)

    def test_lost(self) -> None:
        """A QEMU that hung in a move is left alone"""
        keeper = Keeper(Limits(samples=1, retry=300))
        keeper.tried(keeper.plan(self.FULL, 0).moves[0], False, 0)
        keeper.lost(0)
        self.assertEqual(self.ask(keeper, self.FULL, 299), [])
        self.assertEqual(len(self.ask(keeper, self.FULL, 301)), 1)

    def test_noise(self) -> None:
        """Which of two equal disks it is may change with each sample"""
        keeper = Keeper(Limits(samples=2))
        one, other = (threads(io0=[0, *loads], io1=[5])
                      for loads in ([50, 45], [45, 50]))
        self.assertEqual(self.ask(keeper, one, 0), [])
        self.assertEqual(self.ask(keeper, other, 5), ['io0-0'])
        # Another thread has to ask as often
        keeper = Keeper(Limits(samples=2))
        another = threads(io0=[0], io1=[0, 50, 45])
        for found, wanted in ((one, []), (another, []), (one, []),
                              (one, ['io0-1'])):
            self.assertEqual(self.ask(keeper, found, 0), wanted)


if __name__ == '__main__':
    unittest.main()
