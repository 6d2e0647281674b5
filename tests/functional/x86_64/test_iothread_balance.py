#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
scripts/iothread-balance, on a real Linux guest, and on QEMUs that fail

What happens when a QEMU refuses a move, hangs or goes in the middle of one
comes from a fake monitor; its plans have a unit test.  $QEMU_STOCK_BINARY may
name a QEMU that does not count what its event loops do.
"""

import json
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from qemu_test import QemuSystemTest
from qemu_test.fakemonitor import Fails, FakeMonitor, Hangs, HangsUp
from qemu_test.linuxguest import GuestConsole, GuestMissing, guest_args

Json = Dict[str, Any]

TOOL = Path(__file__).resolve().parents[3] / 'scripts/iothread-balance'
# How long one test may take, in seconds
TEST_TIMEOUT = 120
COMMAND = 'set-iothread-vq-mapping'


class Simulation:
    """A QEMU whose disks always have as much to do."""

    def __init__(self, path: str, disks: Dict[str, Tuple[int, Json]],
                 failure: Optional[Exception] = None) -> None:
        """
        A disk has a load in percent, and its mapping.

        With the failure each first move ends.
        """
        self.disks, self.failure = disks, failure
        self.tried: List[Json] = []
        # So many samples have been taken
        self.turn = 0
        self.threads = ('io0', 'io1', 'io2')
        self.spent = {name: [0, 0] for name in self.threads}
        self.monitor = FakeMonitor(path, {
            'query-name': [{'name': os.path.basename(path)}],
            'query-stats-schemas': [[{'provider': 'event-loop'}]],
            'query-iothreads': self.query_iothreads,
            'query-stats iothread': self.query_stats,
            'query-blockstats': self.query_blockstats,
            'qom-get': self.qom_get, COMMAND: self.move})

    def query_iothreads(self, _arguments: Json) -> List[Json]:
        """Tell who is where."""
        return [{'id': name, 'thread-id': 7, 'holders': [
            {'type': 'qom-object', 'device': disk, 'qom-path': f'/{disk}',
             'vqs': each.get('vqs', [0])}
            for disk, (_, mapping) in self.disks.items()
            for each in mapping if each['iothread'] == name]}
            for name in self.threads]

    def query_stats(self, _arguments: Json) -> List[Json]:
        """Count more than a second, so that the time does not matter."""
        self.turn += 1
        for name, spent in self.spent.items():
            busy = sum(load for load, mapping in self.disks.values()
                       for each in mapping if each['iothread'] == name)
            spent[0] += busy * 10 ** 9
            spent[1] += (100 - busy) * 10 ** 9
        return [{'qom-path': f'/objects/{name}', 'stats': [
            {'name': each, 'value': value} for each, value in zip(
                ('busy-time', 'blocked-time', 'poll-hit-time',
                 'poll-miss-time'), (*spent, 0, 0))]}
            for name, spent in self.spent.items()]

    def query_blockstats(self, _arguments: Json) -> List[Json]:
        """Tell what the disks have done."""
        return [{'qdev': f'/{disk}', 'stats': {
            'rd_operations': self.turn * load * len(mapping),
            'wr_operations': 0, 'rd_bytes': 0, 'wr_bytes': 0}}
            for disk, (load, mapping) in self.disks.items()]

    def qom_get(self, arguments: Json) -> Any:
        """Tell the mapping, or the IOThread of a disk without."""
        _, mapping = self.disks[arguments['path'][1:]]
        simple = len(mapping) == 1
        if arguments['property'] == 'iothread':
            return f'/objects/{mapping[0]["iothread"]}'
        return [] if simple else mapping

    def move(self, arguments: Json) -> Json:
        """Move a disk, or fail."""
        self.tried.append(arguments)
        if self.failure:
            raise self.failure
        disk = arguments['device'][1:]
        self.disks[disk] = (self.disks[disk][0],
                            arguments['iothread-vq-mapping'])
        return {}

    def places(self) -> Dict[str, List[str]]:
        """Return the IOThreads of each disk."""
        return {disk: [each['iothread'] for each in mapping]
                for disk, (_, mapping) in self.disks.items()}


class IOThreadBalance(QemuSystemTest):
    """Runs the tool as a user does."""

    def setUp(self) -> None:
        super().setUp()
        signal.signal(signal.SIGALRM, self._out_of_time)
        signal.alarm(TEST_TIMEOUT)

    def tearDown(self) -> None:
        signal.alarm(0)
        super().tearDown()

    def _out_of_time(self, _number: int, _frame: Any) -> None:
        self.fail(f'not done after {TEST_TIMEOUT} s')

    def path(self, name: str) -> str:
        """Return a path for a socket."""
        return os.path.join(self.socket_dir().name, name)

    def simulate(self, name: str, failure: Optional[Exception] = None,
                 **disks: Tuple[int, Json]) -> Simulation:
        """Have a QEMU, by default with two busy disks on a thread."""
        made = Simulation(self.path(name), disks or {
            'disk0': (50, [{'iothread': 'io0'}]),
            'disk1': (45, [{'iothread': 'io0'}])}, failure)
        self.addCleanup(made.monitor.close)
        return made

    def run_tool(self, *args: str, code: int = 0) -> str:
        """Run the tool to its end; return what it says."""
        done = subprocess.run(
            [sys.executable, TOOL, '-d', '0.2', *args], capture_output=True,
            text=True, stdin=subprocess.DEVNULL, check=False, timeout=60)
        self.log.debug('%s: %s\n%s', args, done.stdout, done.stderr)
        self.assertNotIn('Traceback', done.stderr)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout + done.stderr

    def events(self, *args: str,
               until: Callable[[List[Json]], bool]) -> List[Json]:
        """Run it until it has told that; return what it has told."""
        found: List[Json] = []
        with subprocess.Popen(
                [sys.executable, TOOL, '-d', '0.2', '--json', *args],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True) as process:
            assert process.stdout and process.stderr
            reader = threading.Thread(target=lambda: found.extend(map(
                json.loads, process.stdout or ())))
            reader.start()
            while not (found and until(found)) and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
            reader.join()
            self.assertEqual(process.stderr.read(), '')
        self.log.debug('%s', found)
        self.assertEqual(code, 128 + signal.SIGTERM)
        return found

    def test_once(self) -> None:
        """A plan only, and then the move"""
        vm = self.simulate('vm')
        said = self.run_tool('--dry-run', self.path('vm'))
        self.assertIn('move disk0 (50.0 %) from io0 to io1\n', said)
        self.assertRegex(said, r'(?m)^  io0 +95\.0 +45\.0$')
        self.assertRegex(said, r'(?m)^  io1 +0\.0 +50\.0$')
        self.assertEqual(vm.tried, [])
        (found,) = json.loads(self.run_tool('--once', '--json',
                                            self.path('vm')))['vms']
        self.assertEqual(
            [(each['device'], each['from'], each['to'], each['done'])
             for each in found['moves']], [('disk0', 'io0', 'io1', True)])
        self.assertEqual(
            [[each[key] for key in ('id', 'busy-percent', 'expected-percent',
                                    'measured-percent')]
             for each in found['threads']],
            [['io0', 95, 45, 45], ['io1', 0, 50, 50], ['io2', 0, 0, 0]])
        self.assertEqual(vm.places(), {'disk0': ['io1'], 'disk1': ['io0']})
        # And that is it
        said = self.run_tool('--once', self.path('vm'))
        self.assertIn('nothing to be moved: no IOThread is busier', said)
        self.assertEqual(len(vm.tried), 1)

    def test_watch(self) -> None:
        """A disk is moved when two samples ask for it, and only that"""
        vm = self.simulate('vm')
        found = self.events(self.path('vm'), until=lambda found: found[-1][
            'event'] == 'load')
        self.assertEqual([each['event'] for each in found],
                         ['state', 'moved', 'load'])
        self.assertEqual(found[2]['threads'],
                         {'io0': 45, 'io1': 50, 'io2': 0})
        self.assertEqual(len(vm.tried), 1)

    def test_mapping(self) -> None:
        """A disk on two threads has as many, and its queues, after it"""
        mapping = [{'iothread': 'io0', 'vqs': [0, 3]},
                   {'iothread': 'io1', 'vqs': [1, 2]}]
        vm = self.simulate('vm', both=(40, mapping),
                           one=(50, [{'iothread': 'io0'}]))
        self.run_tool('--once', '--keep', 'one', '--timeout', '9',
                      self.path('vm'))
        self.assertEqual(vm.tried, [{
            'device': '/both', 'timeout': 4500, 'iothread-vq-mapping': [
                {'iothread': 'io2', 'vqs': [0, 3]}, mapping[1]]}])

    def test_refused(self) -> None:
        """QEMU refuses: another disk goes, and nothing is tried again"""
        vm = self.simulate('vm', Fails('GenericError', "'e' holds it"))
        found = self.events('--samples', '1', self.path('vm'),
                            until=lambda _: vm.turn >= 10)
        self.assertEqual([each['event'] for each in found],
                         ['state', 'refused', 'refused'])
        self.assertEqual({each['device'] for each in found[1:]},
                         {'disk0', 'disk1'})
        self.assertIn("'e' holds it", found[1]['message'])
        self.assertEqual(len(vm.tried), 2)
        vm.tried.clear()
        said = self.run_tool('--once', self.path('vm'), code=1)
        self.assertIn("QEMU says: 'e' holds it", said)
        self.assertEqual(vm.places(), {'disk0': ['io0'], 'disk1': ['io0']})

    def test_lacks_command(self) -> None:
        """A QEMU that counts, and cannot move devices"""
        self.simulate('vm', Fails('CommandNotFound', 'The command ...'))
        said = self.run_tool('--once', self.path('vm'), code=1)
        self.assertIn(f'it lacks the command {COMMAND}', said)

    def test_moved_by_others(self) -> None:
        """Somebody else is faster"""
        vm = self.simulate('vm')
        # pylint: disable-next=attribute-defined-outside-init
        vm.monitor.answers['qom-get'] = lambda arguments: \
            '/objects/io2' if arguments['property'] == 'iothread' else []
        said = self.run_tool('--once', self.path('vm'), code=1)
        self.assertIn('it uses io2', said)
        self.assertEqual(vm.tried, [])

    def test_hang(self) -> None:
        """A QEMU hangs in a move, one goes: others do not wait"""
        hanging = self.simulate('hanging', Hangs())
        going = self.simulate('going', HangsUp())
        good = self.simulate('good')

        def all_told(found: List[Json]) -> bool:
            return {('good', 'load'), ('going', 'refused'),
                    ('hanging', 'refused')} <= {
                        (each['name'], each['event']) for each in found}

        found = self.events('--timeout', '2', *(
            self.path(name) for name in ('hanging', 'going', 'good', 'none')),
            until=all_told)
        when = {(each['name'], each['event']): each for each in found}
        self.assertLess(when['good', 'moved']['time'],
                        when['hanging', 'refused']['time'] - 1)
        for name in ('hanging', 'going'):
            self.assertIn('may have moved', when[name, 'refused']['message'])
        for vm in (hanging, going):
            self.assertEqual(len(vm.tried), 1)
        self.assertEqual(good.places()['disk0'], ['io1'])

    def test_hostile(self) -> None:
        """QEMUs answer nonsense: the others are balanced all the same"""
        bad = []
        for command, answer in (
                ('query-name', {'name': 5}),
                *(('query-iothreads', [
                    {'id': 'io0', 'thread-id': 7, 'holders': [holder]}])
                  for holder in (
                      {'type': 'job', 'id': 'x', 'vqs': [0]},
                      {'type': 'qom-object', 'qom-path': '/x', 'vqs': 5},
                      {'type': 'qom-object', 'qom-path': 5, 'vqs': [0]}))):
            bad.append(f'bad{len(bad)}')
            self.simulate(bad[-1]).monitor.answers[command] = [answer]
        # This one does when it is asked to move
        bad.append('late')
        late = self.simulate('late')
        late.monitor.answers['qom-get'] = [[{'iothread': 5}]]
        good = self.simulate('good')
        said = self.run_tool('--dry-run', *map(self.path, [*bad, 'good']),
                             code=1)
        self.assertEqual(said.count('move disk0 (50.0 %) from io0'), 2)
        found = self.events(
            *map(self.path, [*bad, 'good']), until=lambda found: {
                'unsuitable', 'load'} <= {
                    each.get('state', each['event']) for each in found} and
            ('late', 'unsuitable') in [(each['name'], each.get('state'))
                                       for each in found])
        states = {os.path.basename(each['address']): each for each in found
                  if each['event'] == 'state'}
        for name in bad:
            self.assertEqual(states[name]['state'], 'unsuitable')
            self.assertIn('makes no sense', states[name]['message'])
        self.assertEqual(late.tried, [])
        self.assertEqual(good.places()['disk0'], ['io1'])

    def test_stock(self) -> None:
        """A QEMU that does not count is refused"""
        stock = os.environ.get('QEMU_STOCK_BINARY') or \
            os.environ.get('QTEST_QEMU_STOCK_BINARY')
        if not stock:
            self.skipTest('QEMU_STOCK_BINARY names no stock QEMU')
        path = self.path('stock')
        with subprocess.Popen([
                stock, '-machine', 'none', '-accel', 'qtest', '-display',
                'none', '-nodefaults', '-object', 'iothread,id=io0', '-qmp',
                f'unix:{path},server=on,wait=off']) as process:
            try:
                while not os.path.exists(path):
                    time.sleep(0.05)
                for how in (['--once'], []):
                    said = self.run_tool(*how, path, code=1)
                    self.assertIn('cannot tell the load', said)
            finally:
                process.kill()

    def test_guest(self) -> None:
        """Two disks that a real guest reads from: one goes"""
        self.require_accelerator('tcg')
        try:
            args = list(guest_args(self.workdir))
        except GuestMissing as missing:
            self.skipTest(str(missing))
        # Reading makes QEMU work: it compares copies of the data
        copy = {'driver': 'null-co', 'size': 1 << 30, 'read-zeroes': True}
        for thread in ('io0', 'io1'):
            args += ['-object', f'iothread,id={thread}']
        for disk in ('disk0', 'disk1'):
            args += ['-blockdev', json.dumps({
                'driver': 'quorum', 'node-name': disk, 'vote-threshold': 2,
                'children': [copy] * 3}), '-device', json.dumps({
                    'driver': 'virtio-blk-pci', 'id': disk, 'drive': disk,
                    'serial': disk, 'iothread': 'io0'})]
        path = self.path('vm')
        vm = self.get_vm(name='vm')
        vm.set_machine('pc')
        vm.set_console()
        vm.add_args('-nodefaults', '-qmp', f'unix:{path},server=on,wait=off',
                    *args)
        vm.launch()
        if not any(each['name'] == COMMAND
                   for each in vm.cmd('query-commands')):
            self.skipTest(f'this QEMU has no {COMMAND}')
        console = GuestConsole(vm.console_socket,
                               logging.getLogger('console').debug)
        console.wait_ready()
        for disk in ('disk0', 'disk1'):
            console.run(f'dev=/dev/$(disk {disk})')
            console.run('while dd if=/proc/self/fd/3 of=/dev/null bs=1M'
                        ' iflag=direct; do :; done 3<$dev 2>/dev/null &')
        (found,) = json.loads(self.run_tool(
            '--once', '--json', '-d', '2', '--full', '10', '--gain', '2',
            path))['vms']
        (move,) = found['moves']
        self.assertEqual((move['from'], move['to'], move['done']),
                         ('io0', 'io1', True))
        for thread in found['threads']:
            self.assertGreater(thread['measured-percent'], 1)
        self.assertEqual(sorted(
            (info['id'], holder['device'])
            for info in vm.cmd('query-iothreads')
            for holder in info['holders'] if 'device' in holder),
            sorted([('io1', move['device']),
                    ('io0', {'disk0': 'disk1', 'disk1': 'disk0'}[
                        move['device']])]))

    def test_wrong(self) -> None:
        """Options that make no sense"""
        for args in (['--full', '0'], ['--gain', '101'], ['--moves', '0'],
                     ['--once', '--dry-run'], ['--delay', 'x'], []):
            self.run_tool(*args, *(['x'] if args else []), code=2)


if __name__ == '__main__':
    QemuSystemTest.main()
