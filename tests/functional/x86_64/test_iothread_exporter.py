#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
scripts/iothread-exporter, on QEMUs with load, on fakes, and with Prometheus

Needs prometheus_client, and for some tests promtool and prometheus.
$QEMU_STOCK_BINARY may name a QEMU that does not count what its event loops
do.
"""

import contextlib
import json
import os
from pathlib import Path
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Dict, Iterator, List, Optional
import urllib.parse
import urllib.request

from qemu_test import QemuSystemTest
from qemu_test.fakemonitor import FakeMonitor
from qemu_test.iothreadtool import IOThreadToolTest
from qemu_test.qmpprogram import Program, programs

try:
    from prometheus_client.openmetrics.parser import \
        text_string_to_metric_families
except ImportError:
    text_string_to_metric_families = None

Json = Dict[str, Any]
# The samples of a scrape, by their names
Samples = Dict[str, List[Any]]

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / 'scripts/iothread-exporter'
CONTRIB = ROOT / 'contrib/iothread-exporter'
# Things that happen at once, on a host that is busy
PATIENCE = 60

# All that the tool may send
QUERIES = {'query-name', 'query-uuid', 'query-stats-schemas', 'query-stats',
           'query-iothreads', 'query-blockstats'}


class Exporter:
    """The tool, as a server."""

    def __init__(self, test: QemuSystemTest, *args: str) -> None:
        # pylint: disable-next=consider-using-with
        self.process = subprocess.Popen(
            [sys.executable, TOOL, '--listen', '0', *args], text=True,
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        test.addCleanup(self.close)
        self.test = test
        self.said = ''
        assert self.process.stderr
        line = self.process.stderr.readline()
        found = re.search(r'(http://127\.0\.0\.1:(\d+))/metrics', line)
        test.assertTrue(found, line)
        assert found
        self.url, self.port = found[1], int(found[2])

    def text(self, accept: str = 'application/openmetrics-text',
             path: str = '/metrics') -> str:
        """Return what it serves."""
        request = urllib.request.Request(self.url + path,
                                         headers={'Accept': accept})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
        return text

    def scrape(self) -> Samples:
        """Return the samples by their names."""
        return samples(self.text())

    def close(self) -> str:
        """End it, and return what it has said besides."""
        if self.process.poll() is None:
            self.process.terminate()
            _, self.said = self.process.communicate(timeout=PATIENCE)
            self.test.assertEqual(self.process.returncode, 0)
            self.test.assertNotIn('Traceback', self.said)
        return self.said


def samples(text: str) -> Samples:
    """Return the samples by their names; the text is OpenMetrics."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def value(found: Samples, name: str, **labels: str) -> Optional[float]:
    """Return the value of the one sample with these labels, if any."""
    values = [each.value for each in found.get(name, [])
              if labels.items() <= each.labels.items()]
    assert len(values) <= 1, values
    return values[0] if values else None


class IOThreadExporter(IOThreadToolTest):
    """Runs the tool as a user does."""

    maxDiff = None

    tool = TOOL

    def setUp(self) -> None:
        super().setUp()
        if text_string_to_metric_families is None:
            self.skipTest('there is no prometheus_client')

    def need(self, program: str) -> str:
        """Return where the program is, or skip the test."""
        found = shutil.which(program)
        if not found:
            self.skipTest(f'there is no {program}')
        return found

    def once(self, *args: str) -> str:
        """Return what it prints, once."""
        return self.run_tool('--once', *args).stdout

    def states(self, found: Samples) -> Dict[str, str]:
        """Return the states of all monitors, by the names of the sockets."""
        up = {os.path.basename(each.labels['socket']): each.value
              for each in found['qemu_up']}
        states = {os.path.basename(each.labels['socket']):
                  each.labels['state']
                  for each in found['qemu_monitor_state']}
        self.assertEqual(up, {name: float(state == 'up')
                              for name, state in states.items()})
        return states

    # --- What no QEMU would answer ----------------------------------------

    def test_queries(self) -> None:
        """Nothing is sent but queries"""
        path = self.path('spy')
        fake = FakeMonitor(path, {
            'query-name': [{'name': 'spy'}],
            'query-stats-schemas': [[{'provider': 'event-loop'}]],
            'query-stats iothread': [[self.fake_stats(*range(8))]],
            'query-iothreads': [[{'id': 'io0', 'thread-id': 7,
                                  'holders': []}]]})
        self.addCleanup(fake.close)
        exporter = Exporter(self, path)
        for _ in range(3):
            exporter.scrape()
        self.assertEqual({each.split()[0] for each in fake.commands},
                         QUERIES)

    def test_values(self) -> None:
        """Seconds, not nanoseconds; names, types and units"""
        second = 10 ** 9
        disk = {'device': '', 'qdev': '/machine/peripheral/d0/virtio-backend',
                'node-name': '#block123', 'stats': {
                    'rd_bytes': 1, 'wr_bytes': 2, 'rd_operations': 3,
                    'wr_operations': 4, 'flush_operations': 5,
                    'rd_total_time_ns': 6 * second,
                    'wr_total_time_ns': 7 * second,
                    'flush_total_time_ns': 8 * second}}
        uuid = '12345678-9abc-def0-1234-56789abcdef0'
        holders = [{'type': 'qom-object', 'device': 'd0', 'vqs': [0, 1, 2, 5],
                    'qom-path': '/machine/peripheral/d0/virtio-backend'},
                   {'type': 'qom-object',
                    'qom-path': '/machine/peripheral-anon/device[0]'},
                   {'type': 'block-node', 'node-name': '#block123'},
                   {'type': 'block-export', 'id': 'e0', 'node-name': 'n0'},
                   {'type': 'cup-holder', 'id': 'c0'}]
        with self.fake({
                'query-name': [{'name': 'a "name"\n\\'}],
                'query-uuid': [{'UUID': uuid}],
                'query-stats iothread': [[self.fake_stats(
                    second, 2 * second, 3 * second, 4 * second, 5 * second,
                    6, 7, 8)]],
                'query-stats vm': [[{**self.fake_stats(second // 2),
                                     'qom-path': None}]],
                'query-iothreads': [[
                    {'id': 'io0', 'thread-id': 7, 'poll-max-ns': 32768,
                     'poll-grow': 0, 'poll-shrink': 1, 'aio-max-batch': 2,
                     'internal': False, 'holders': holders},
                    {'id': 'io0', 'thread-id': 8, 'internal': True,
                     'holders': []}]],
                'query-blockstats': [[disk]]}) as path:
            exporter = Exporter(self, path)
            text = exporter.text()
            found = samples(text)
            plain = exporter.text('text/plain')
        who = {'vm': 'a "name"\n\\', 'uuid': uuid, 'socket': path}
        io0 = {**who, 'iothread': 'io0'}
        d0 = {**who, 'device': 'd0', 'node': ''}
        for name, labels, wanted in (
                ('iothread_busy_seconds_total', io0, 1),
                ('iothread_poll_seconds_total', {**io0, 'result': 'hit'}, 2),
                ('iothread_poll_seconds_total', {**io0, 'result': 'miss'}, 3),
                ('iothread_blocked_seconds_total', io0, 4),
                ('iothread_cpu_seconds_total', io0, 5),
                ('iothread_events_total', io0, 6),
                ('iothread_wakeups_total', io0, 7),
                ('iothread_iterations_total', io0, 8),
                ('main_loop_busy_seconds_total', who, 0.5),
                ('iothread_holders', {**io0, 'type': 'qom-object'}, 2),
                ('iothread_holders', {**io0, 'type': 'other'}, 1),
                ('iothread_holders', {**who, 'iothread': 'internal/io0',
                                      'type': 'qom-object'}, 0),
                ('iothread_info', {**io0, 'thread_id': '7', 'poll_grow': '0',
                                   'poll_max_ns': '32768', 'poll_shrink': '1',
                                   'aio_max_batch': '2'}, 1),
                ('block_stats_read_bytes_total', d0, 1),
                ('block_stats_write_bytes_total', d0, 2),
                ('block_stats_read_requests_total', d0, 3),
                ('block_stats_write_requests_total', d0, 4),
                ('block_stats_flush_requests_total', d0, 5),
                ('block_stats_read_time_seconds_total', d0, 6),
                ('block_stats_write_time_seconds_total', d0, 7),
                ('block_stats_flush_time_seconds_total', d0, 8),
                ('vm_info', {**who, 'program': 'QEMU', 'version': '10.2.2'},
                 1)):
            self.assertEqual(value(found, f'qemu_{name}', **labels), wanted,
                             name)
        self.assertEqual(
            sorted(tuple(each.labels[key] for key in ('type', 'device',
                                                      'node', 'vqs'))
                   for each in found['qemu_iothread_holder_info']),
            # A name that QEMU has made up would be another one each time
            [('block-export', 'e0', 'n0', ''), ('cup-holder', 'c0', '', ''),
             ('qom-object', '/machine/peripheral-anon/device[0]', '', ''),
             ('qom-object', 'd0', '', '0-2,5')])
        self.assertIn('# UNIT qemu_iothread_busy_seconds seconds\n', text)
        self.assertTrue(text.endswith('# EOF\n'))
        self.assertIn('# TYPE qemu_iothread_busy_seconds_total counter\n',
                      plain)

    def test_hostile(self) -> None:
        """One QEMU answers nonsense: the others are told all the same"""
        thread = {'id': 'io0', 'thread-id': 7}
        bad = []
        with contextlib.ExitStack() as stack:
            def fake(**answers: List[Any]) -> str:
                return stack.enter_context(self.fake({
                    'query-stats iothread': [[self.fake_stats(*range(8))]],
                    **answers}))

            for command, answer in (
                    ('query-stats iothread', 17),
                    ('query-stats iothread', [self.fake_stats(10 ** 400)]),
                    ('query-iothreads', [{'id': 'io0'}]),
                    ('query-iothreads', [{**thread, 'holders': [{}]}]),
                    ('query-iothreads', [{**thread, 'holders': [
                        {'type': 'job', 'id': 4}]}]),
                    ('query-blockstats', [{'stats': {'rd_bytes': None}}]),
                    ('query-uuid', [None])):
                bad.append(fake(**{command: [answer]}))
            good = fake()
            done = self.run_tool('--once', '--timeout', '20', *bad, good)
        for path in bad:
            self.assertRegex(done.stderr, rf'{path}: unsuitable: .*no sense')
        self.assertEqual(re.findall('(?m)^qemu_up.*1.0$', done.stdout),
                         [f'qemu_up{{socket="{good}"}} 1.0'])
        self.assertEqual(done.stdout.count('events_total{'), 1)

    def test_limits(self) -> None:
        """Too much of everything, twice the same, and odd characters"""
        many = [{'type': 'job', 'id': f'job{i}'} for i in range(1000)]
        odd = 'x\ud800\x00\x07"\\\n' + 'y' * 300
        threads = [{'id': f'io{i}', 'thread-id': i, 'holders': []}
                   for i in range(1000)]
        threads[0]['holders'] = many
        threads[1] = {**threads[1], 'id': odd, 'holders': [
            {'type': odd, 'id': odd}]}
        disk = {'stats': dict.fromkeys((
            'rd_bytes', 'wr_bytes', 'rd_operations', 'wr_operations',
            'flush_operations', 'rd_total_time_ns', 'wr_total_time_ns',
            'flush_total_time_ns'), 3)}
        with self.fake({
                'query-name': [{'name': odd}],
                'query-stats iothread': [[
                    {**self.fake_stats(*range(8)), 'qom-path': f'/o/io{i}'}
                    for i in (0, 0, 2, 3)]],
                'query-iothreads': [threads],
                'query-blockstats': [[
                    {**disk, 'device': f'd{i // 2}'} for i in range(600)]]
                }) as path:
            found = Exporter(self, path).scrape()
        self.assertEqual(self.states(found), {'fake1': 'up'})
        self.assertLessEqual(len(found['qemu_iothread_info']), 256)
        self.assertLessEqual(len(found['qemu_iothread_holder_info']), 65)
        self.assertEqual(value(found, 'qemu_iothread_holders', iothread='io0',
                               type='job'), 1000)
        self.assertEqual(len(found['qemu_block_stats_read_bytes_total']), 128)
        # Of 1000 threads and one that only has counters 256 are told, and 64
        # of 1000 holders, and 256 of 600 disks
        self.assertEqual(value(found, 'qemu_omitted'), 745 + 936 + 344)
        for each in found['qemu_iothread_holder_info']:
            for text in each.labels.values():
                self.assertLessEqual(len(text), 128)
        # The parser would refuse what is there twice
        self.assertTrue(found['qemu_vm_info'][0].labels['vm'].startswith(
            'x\\ud800\x00\x07"\\\n'))

    def test_options(self) -> None:
        """What is asked for must make sense"""
        for args in (['/x'], ['--listen', '127.0.0.1:99999', '/x'],
                     ['--once', 'localhost:99999']):
            self.run_tool(*args, code=2)
        with socket.socket() as server:
            server.bind(('127.0.0.1', 0))
            server.listen()
            done = self.run_tool('--listen', str(server.getsockname()[1]),
                                 '/x', code=1)
            self.assertIn('in use', done.stderr)

    # --- QEMUs ------------------------------------------------------------

    def test_counters(self) -> None:
        """What is told is what query-stats tells"""
        path = self.one()
        vm = self.get_vm(name='vm')

        def asked() -> Dict[str, int]:
            (found,) = [each for each in vm.cmd(
                'query-stats', target='iothread',
                providers=[{'provider': 'event-loop'}])
                if each['qom-path'] == '/objects/busy']
            return {each['name']: each['value'] for each in found['stats']}

        exporter = Exporter(self, path)
        for _ in range(3):
            before, found, after = asked(), exporter.scrape(), asked()
            for name, metric, labels, unit in (
                    ('busy-time', 'busy_seconds', {}, 1e9),
                    ('poll-hit-time', 'poll_seconds', {'result': 'hit'}, 1e9),
                    ('poll-miss-time', 'poll_seconds', {'result': 'miss'},
                     1e9),
                    ('blocked-time', 'blocked_seconds', {}, 1e9),
                    ('cpu-time', 'cpu_seconds', {}, 1e9),
                    ('events', 'events', {}, 1),
                    ('iterations', 'iterations', {}, 1),
                    ('wakeups', 'wakeups', {}, 1)):
                told = value(found, f'qemu_iothread_{metric}_total',
                             vm='vm', iothread='busy', **labels)
                assert told is not None
                self.assertLessEqual(before[name], told * unit + 1)
                self.assertLessEqual(told * unit, after[name] + 1)
        self.assertEqual(value(found, 'qemu_iothread_holders',
                               iothread='busy', type='block-export'), 1)
        self.assertEqual(value(found, 'qemu_iothread_holder_info',
                               iothread='busy', type='block-export',
                               device='export', node='disk'), 1)
        self.assertGreater(value(found, 'qemu_main_loop_iterations_total'), 0)

    def test_come_and_go(self) -> None:
        """Sockets that match a pattern, files that are none, and names"""
        Path(self.path('a-file')).touch()
        pattern = self.path('a-*')
        exporter = Exporter(self, pattern, self.path('b'))
        self.assertEqual(self.states(exporter.scrape()), {'b': 'absent'})
        self.launch('a-1')
        os.symlink(self.path('a-1'), self.path('a-link'))
        states = self.states(exporter.scrape())
        self.assertEqual(states, {'b': 'absent', 'a-1': 'up',
                                  'a-12': 'up'})
        self.launch('b')
        self.assertEqual(self.states(exporter.scrape()),
                         {'b': 'up', 'a-1': 'up', 'a-12': 'up'})
        # Another QEMU at the same sockets is there at once
        vm = self.get_vm(name='a-1')
        vm.kill()
        self.assertEqual(self.states(exporter.scrape())['a-1'], 'gone')
        for name in ('a-1', 'a-12'):
            os.unlink(self.path(name))
        vm.launch()
        states = self.states(exporter.scrape())
        self.assertEqual((states['a-1'], states['a-12']), ('up', 'up'))
        vm.kill()
        for name in ('a-1', 'a-12', 'a-link'):
            os.unlink(self.path(name))
        self.assertEqual(self.states(exporter.scrape()), {'b': 'up'})
        self.assertRegex(exporter.close(), r'a-1: gone')

    def test_taken(self) -> None:
        """Another client has the monitor, and then lets go of it"""
        path = self.launch('vm')
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.recv(10)
            exporter = Exporter(self, '--timeout', '0.5', path, f'{path}2')
            self.assertEqual(self.states(exporter.scrape()),
                             {'vm': 'taken', 'vm2': 'up'})
            # Nobody waits for it any more
            start = time.monotonic()
            exporter.scrape()
            self.assertLess(time.monotonic() - start, 0.45)
        for _ in range(PATIENCE * 10):
            if self.states(exporter.scrape())['vm'] == 'up':
                break
            time.sleep(0.1)
        else:
            self.fail('the monitor is not taken')
        self.assertIn('another client has this monitor', exporter.close())

    def test_one_connection(self) -> None:
        """Scrapes at the same time share one connection"""
        path = self.launch('vm')
        exporter = Exporter(self, '--timeout', '10', path)
        requests = [socket.create_connection(('127.0.0.1', exporter.port))
                    for _ in range(20)]
        for request in requests:
            request.sendall(b'GET /metrics HTTP/1.0\r\n\r\n')
        for request in requests:
            with request, request.makefile() as stream:
                self.assertRegex(stream.read(), 'qemu_up.* 1.0')
        with open('/proc/net/unix', encoding='utf-8') as stream:
            clients = [line for line in stream
                       if line.split()[5:6] == ['03']
                       and line.rstrip().endswith(f' {path}')]
        self.assertEqual(len(clients), 1)

    def test_textfile(self) -> None:
        """A file, never half of one, and none at the end"""
        path = self.launch('vm', '-object', 'iothread,id=io0')
        file = Path(self.scratch_file('load.prom'))
        with subprocess.Popen(
                [sys.executable, TOOL, '--textfile', file, '--interval',
                 '0.05', path]) as process:
            try:
                seen = set()
                for _ in range(PATIENCE * 100):
                    with contextlib.suppress(FileNotFoundError):
                        seen.add(os.stat(file).st_ino)
                        self.assertIn('process_open_fds', file.read_text())
                    if len(seen) > 3:
                        break
                    time.sleep(0.01)
                self.assertGreater(len(seen), 3)
                self.assertIn('qemu_iothread_busy_seconds_total{',
                              file.read_text())
                process.terminate()
                self.assertEqual(process.wait(PATIENCE), 0)
            finally:
                process.kill()
        self.assertEqual(list(file.parent.glob('load.prom*')), [])

    def test_unprivileged(self) -> None:
        """It needs to connect to the sockets, and no more"""
        if os.geteuid():
            self.skipTest('it is unprivileged anyway')
        path = self.launch('vm')
        # The way there, for nobody
        folder = Path(path).parent
        if not all(each.stat().st_mode & 1 for each in folder.parents):
            self.skipTest('nobody may not come near the sockets')
        folder.chmod(0o711)
        os.chmod(path, 0o666)
        os.chmod(f'{path}2', 0o600)
        done = subprocess.run(
            [sys.executable, TOOL, '--once', path, f'{path}2'],
            capture_output=True, text=True, check=False, timeout=PATIENCE,
            user=65534, group=65534, extra_groups=[])
        if "can't open file" in done.stderr:
            self.skipTest('nobody may not read the tool')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('vm2: absent: cannot connect: Permission denied',
                      done.stderr)
        self.assertRegex(done.stdout, r'(?m)^qemu_up.*vm"} 1\.0')
        self.assertRegex(done.stdout, r'(?m)^qemu_up.*vm2"} 0\.0')

    def test_stock(self) -> None:
        """QEMUs and daemons that do not count are said to"""
        stock = os.environ.get('QEMU_STOCK_BINARY') or \
            os.environ.get('QTEST_QEMU_STOCK_BINARY')
        if not stock:
            self.skipTest('QEMU_STOCK_BINARY names no stock QEMU')
        paths = []
        for i, binary in enumerate(programs(stock)):
            folder = self.path(f'stock{i}')
            os.mkdir(folder)
            program = Program(binary, folder, 1)
            program.start()
            self.addCleanup(program.end)
            program.connect().close()
            os.rename(program.paths[0], self.path(f's{i}'))
            paths.append(self.path(f's{i}'))
        exporter = Exporter(self, *paths, self.launch('vm'))
        for _ in range(2):
            found = exporter.scrape()
            self.assertEqual(self.states(found), {
                **{os.path.basename(path): 'unsuitable' for path in paths},
                'vm': 'up'})
        told = {each.labels['socket']: each.labels['program']
                for each in found['qemu_vm_info']}
        self.assertEqual([told[path] for path in paths],
                         ['QEMU', 'qemu-storage-daemon'][:len(paths)])
        self.assertIn('it lacks', exporter.close())


if __name__ == '__main__':
    QemuSystemTest.main()
