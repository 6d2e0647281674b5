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
from qemu_test.ports import Ports
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
        # Before that it may tell of QEMUs that it cannot connect to
        found = None
        while not found:
            line = self.process.stderr.readline()
            found = re.search(r'(http://127\.0\.0\.1:(\d+))/metrics', line)
            test.assertTrue(line, 'it has ended')
            self.said += '' if found else line
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


class Prometheus:
    """Debian's Prometheus, with the example of a configuration."""

    def __init__(self, test: 'IOThreadExporter', target: int) -> None:
        folder = Path(test.scratch_file('prometheus'))
        folder.mkdir()
        shutil.copy(CONTRIB / 'qemu-iothread.yml', folder)
        text = (CONTRIB / 'prometheus.yml').read_text(encoding='utf-8')
        text = text.replace(': 15s', ': 1s').replace(':9925', f':{target}')
        (folder / 'prometheus.yml').write_text(text, encoding='utf-8')
        with Ports() as ports:
            port = ports.find_free_port()
            # pylint: disable-next=consider-using-with
            self.process = subprocess.Popen(
                [test.need('prometheus'), '--log.level=warn',
                 f'--config.file={folder}/prometheus.yml',
                 f'--storage.tsdb.path={folder}/data',
                 f'--web.listen-address=127.0.0.1:{port}'], cwd=folder,
                stdin=subprocess.DEVNULL)
            test.addCleanup(self.close)
            self.test = test
            self.url = f'http://127.0.0.1:{port}/api/v1'
            for _ in test.attempts('Prometheus does not start'):
                test.assertIsNone(self.process.poll())
                with contextlib.suppress(OSError):
                    self.get('status/buildinfo')
                    break

    def get(self, what: str, **parameters: Any) -> Any:
        """Return the data that it answers."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f'{self.url}/{what}?{query}',
                                    timeout=PATIENCE) as answer:
            found = json.load(answer)
        self.test.assertEqual(found['status'], 'success', parameters)
        return found['data']

    def query(self, expression: str) -> List[Json]:
        """Return the result of an expression as of now."""
        found: List[Json] = self.get('query', query=expression)['result']
        return found

    def number(self, expression: str) -> Optional[float]:
        """Return its one value, None if there is none."""
        found = self.query(expression)
        self.test.assertLessEqual(len(found), 1, found)
        return float(found[0]['value'][1]) if found else None

    def wait(self, expression: str, wanted: float) -> None:
        """Wait until it has that value."""
        for _ in self.test.attempts(f'{expression} is not {wanted}'):
            if self.number(expression) == wanted:
                return

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


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

    def attempts(self, what: str) -> Iterator[int]:
        """Yield until enough time has passed, then fail."""
        end = time.monotonic() + PATIENCE
        count = 0
        while time.monotonic() < end:
            yield count
            count += 1
            time.sleep(0.1)
        self.fail(what)

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

    def test_values(self) -> None:
        """Seconds, not nanoseconds; names, types and units; only queries"""
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
        path = self.path('fake')
        fake = FakeMonitor(path, {
            'query-stats-schemas': [[{'provider': 'event-loop'}]],
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
            'query-blockstats': [[disk]]})
        self.addCleanup(fake.close)
        exporter = Exporter(self, path)
        text = exporter.text()
        found = samples(text)
        plain = exporter.text('text/plain')
        self.assertEqual(set(fake.commands), QUERIES)
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
                return stack.enter_context(self.fake(answers))

            for command, answer in (
                    ('query-stats iothread', 17),
                    ('query-stats iothread', [self.fake_stats(10 ** 400)]),
                    ('query-iothreads', [{'id': 'io0'}]),
                    ('query-iothreads', [{**thread, 'holders': [{}]}]),
                    ('query-iothreads', [{**thread, 'holders': [
                        {'type': 'job', 'id': 4}]}]),
                    ('query-iothreads', [{**thread, 'holders': [
                        {'type': 'job', 'id': 'x', 'vqs': [0]}]}]),
                    ('query-iothreads', [{**thread, 'id': None}]),
                    ('query-iothreads', [{**thread, 'poll-grow': [1]}]),
                    ('query-name', {'name': 5}),
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
        self.assertEqual(value(found, 'qemu_iothread_holders',
                               iothread='idle', type='qom-object'), 0)
        vm.cmd('blockdev-add', driver='null-co', node_name='other')
        vm.cmd('x-blockdev-set-iothread', node_name='other', iothread='idle')
        self.assertEqual(value(exporter.scrape(), 'qemu_iothread_holder_info',
                               iothread='idle', node='other'), 1)

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
            exporter = Exporter(self, '--timeout', '2', path, f'{path}2')
            self.assertEqual(self.states(exporter.scrape()),
                             {'vm': 'taken', 'vm2': 'up'})
            # Nobody waits for it any more
            start = time.monotonic()
            exporter.scrape()
            self.assertLess(time.monotonic() - start, 1.9)
        for _ in self.attempts('the monitor is not taken'):
            if self.states(exporter.scrape())['vm'] == 'up':
                break
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
                for _ in self.attempts('the file is not replaced'):
                    with contextlib.suppress(FileNotFoundError):
                        seen.add(os.stat(file).st_ctime_ns)
                        self.assertIn('process_open_fds',
                                      file.read_text('utf-8'))
                    if len(seen) > 3:
                        break
                self.assertIn('qemu_iothread_busy_seconds_total{',
                              file.read_text('utf-8'))
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

    def test_disk(self) -> None:
        """A disk is called the same as a holder and in what it does"""
        image = Path(self.scratch_file('disk.img'))
        image.write_bytes(bytes(1 << 20))
        path = self.launch(
            'vm', '-accel', 'qtest', '-object', 'iothread,id=io0',
            '-uuid', '12345678-9abc-def0-1234-56789abcdef0',
            '-blockdev', f'file,node-name=n0,filename={image}', '-device',
            'virtio-blk-pci,id=disk0,drive=n0,iothread=io0', '-blockdev',
            'null-co,node-name=n1,read-zeroes=on', '-device',
            'virtio-blk-pci,drive=n1', machine='pc')
        self.get_vm(name='vm').cmd(
            'human-monitor-command', command_line='qemu-io -d '
            '/machine/peripheral/disk0/virtio-backend "aio_write 0 8k"')
        exporter = Exporter(self, path)
        for _ in self.attempts('nothing is written'):
            found = exporter.scrape()
            if value(found, 'qemu_block_stats_write_requests_total',
                     device='disk0'):
                break
        for name, wanted in (('write_bytes', 8192), ('write_requests', 1),
                             ('read_bytes', 0)):
            self.assertEqual(value(
                found, f'qemu_block_stats_{name}_total', device='disk0',
                node='n0', vm='vm',
                uuid='12345678-9abc-def0-1234-56789abcdef0'), wanted)
        holders = {each.labels['device']: each.labels['type']
                   for each in found['qemu_iothread_holder_info']
                   if each.labels['iothread'] == 'io0'}
        self.assertEqual(holders.pop('disk0'), 'qom-object')
        others = [each.labels['device']
                  for each in found['qemu_block_stats_read_bytes_total']]
        self.assertEqual(len(others), 2)
        self.assertTrue(all(others), others)

    # --- Prometheus -------------------------------------------------------

    def test_promtool(self) -> None:
        """Its rules and its names are as Prometheus wants them"""
        promtool = self.need('promtool')
        text = Exporter(self, self.launch(
            'vm', '-object', 'iothread,id=io0')).text('text/plain')
        for args, given in ((['check', 'metrics'], text),
                            (['check', 'config', 'prometheus.yml'], None),
                            (['check', 'rules', '--lint-fatal',
                              'qemu-iothread.yml'], None),
                            (['test', 'rules', 'qemu-iothread-test.yml'],
                             None)):
            done = subprocess.run(
                [promtool, *args], input=given, cwd=CONTRIB, text=True,
                capture_output=True, check=False, timeout=PATIENCE)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            if given:
                self.assertEqual(done.stdout + done.stderr, '')

    @staticmethod
    def expressions() -> Iterator[str]:
        """Yield those of the dashboard, for all that there is."""
        board = json.loads((CONTRIB / 'dashboard.json').read_text(
            encoding='utf-8'))
        for panel in board['panels']:
            for target in panel['targets']:
                yield re.sub(r'\$(job|instance|vm)\b', '.*', target['expr']
                             .replace('$__rate_interval', '5s'))

    def compare(self, prometheus: Prometheus, vm: Any, name: str) -> None:
        """Compare what Prometheus has with what query-stats tells."""
        counters = {
            'busy_seconds': 'busy-time', 'blocked_seconds': 'blocked-time',
            'cpu_seconds': 'cpu-time', 'events': 'events'}
        asked = []
        # Prometheus scrapes each second
        for _ in range(18):
            start = time.time()
            (found,) = [each for each in vm.cmd(
                'query-stats', target='iothread',
                providers=[{'provider': 'event-loop'}])
                if each['qom-path'] == '/objects/busy']
            asked.append((start, {each['name']: each['value']
                                  for each in found['stats']}, time.time()))
            time.sleep(0.3)
        seconds = asked[-1][0] - asked[0][0]
        for metric, counter in counters.items():
            unit = 1e9 if metric.endswith('_seconds') else 1
            series = f'qemu_iothread_{metric}_total{{vm="{name}",' \
                'iothread="busy"}'
            (found,) = prometheus.query(f'{series}[{seconds:.0f}s]')
            compared = 0
            for when, text in found['values']:
                # It was read in the second after that time
                least = [values[counter] for _, values, end in asked
                         if end <= when]
                most = [values[counter] for start, values, _ in asked
                        if start >= when + 1]
                if least and most:
                    compared += 1
                    self.assertLessEqual(least[-1] / unit - 1e-6, float(text))
                    self.assertLessEqual(float(text), most[0] / unit + 1e-6)
            self.assertGreaterEqual(compared, 2, (metric, found, asked))
            rate = prometheus.number(f'rate({series}[{seconds:.0f}s])')
            assert rate is not None
            slope = (asked[-1][1][counter] - asked[0][1][counter]) / unit / (
                asked[-1][0] - asked[0][0])
            self.assertAlmostEqual(rate, slope, delta=0.5 * slope + 0.02)

    @staticmethod
    def draw(prometheus: Prometheus, path: Path, began: float) -> None:
        """Draw what Prometheus knows, as iothread-top does."""
        sys.path.insert(0, str(TOOL.parent))
        # pylint: disable=import-outside-toplevel
        from iothread_top.load import Load  # type: ignore
        from iothread_top.svg import Recording, Strip, picture  # type: ignore

        points: Dict[Any, Dict[float, Dict[str, float]]] = {}
        recording = Recording()
        recording.start, recording.last = began, time.time()
        for series in prometheus.get(
                'query_range', start=began, end=recording.last, step=1,
                query='label_replace({__name__=~"qemu_iothread_'
                '(busy|poll|blocked)_seconds_total"}, "time", "$1",'
                ' "__name__", "qemu_iothread_(.*)_seconds_total")')['result']:
            labels = series['metric']
            key = (labels['vm'], labels['vm'], labels['iothread'], None)
            what = labels.get('result', labels['time'])
            for when, text in series['values']:
                points.setdefault(key, {}).setdefault(
                    when, {})[what] = float(text)
        for key, found in points.items():
            strip = recording.strips[key] = Strip(key[2])
            for when, now in found.items():
                was = found.get(when - 1)
                if was:
                    spent = {what: now[what] - was[what] for what in now}
                    total = sum(spent.values()) / 100 or 1
                    strip.points.append((when - 1, when, Load(*(
                        spent[what] / total for what in
                        ('busy', 'hit', 'miss', 'blocked')), *[None] * 4)))
        for each in prometheus.query(
                'last_over_time(qemu_iothread_holder_info[5m])'):
            labels = each['metric']
            key = (labels['vm'], labels['vm'], labels['iothread'], None)
            if 'device' in labels:
                recording.strips[key].holders[labels['device']] = None
        path.write_text(picture(recording), encoding='utf-8')

    def test_prometheus(self) -> None:
        """Three QEMUs: one works on, one is killed, one hangs for a while"""
        self.need('prometheus')
        exporter = Exporter(self, '--timeout', '0.5', *(
            self.one(name) for name in ('steady', 'killed', 'stopped')))
        prometheus = Prometheus(self, exporter.port)
        prometheus.wait('sum(qemu_up)', 3)
        began = time.time()
        self.compare(prometheus, self.get_vm(name='steady'), 'steady')
        # The four times are all of the time
        for each in prometheus.query(
                'sum by (vm, iothread) ({__name__=~"qemu_iothread_'
                '(busy|poll|blocked)_seconds_total"})'):
            self.assertGreater(float(each['value'][1]), 0)
        for each in prometheus.query(
                'rate(qemu_iothread_busy_seconds_total[5s])'
                ' + on (vm, iothread)'
                ' rate(qemu_iothread_blocked_seconds_total[5s])'
                ' + on (vm, iothread) sum by (vm, iothread)'
                ' (rate(qemu_iothread_poll_seconds_total[5s]))'):
            self.assertAlmostEqual(float(each['value'][1]), 1, delta=0.25)

        self.get_vm(name='killed').kill()
        pid = self.get_vm(name='stopped').get_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            prometheus.wait('qemu_monitor_state{state="gone"}', 1)
            prometheus.wait('qemu_monitor_state{state="silent"}', 1)
            prometheus.wait('sum(qemu_up)', 1)
            # What is not known is not told
            prometheus.wait(
                'count(count by (vm) (qemu_iothread_busy_seconds_total))', 1)
            # A scrape does not wait again for who has not answered
            time.sleep(2)
            self.assertLess(prometheus.number(
                'min_over_time(scrape_duration_seconds[3s])'), 0.5)
            self.assertGreater(prometheus.number(
                'avg_over_time(qemu_up{socket=~".*steady"}[1m])'), 0.8)
        finally:
            os.kill(pid, signal.SIGCONT)
        prometheus.wait('qemu_up{socket=~".*stopped"}', 1)
        prometheus.wait('count(rate(qemu_iothread_busy_seconds_total'
                        '{iothread="busy"}[3s]) > 0)', 2)
        # Scrapes have not failed
        self.assertGreater(prometheus.number(
            'avg_over_time(up{job="qemu-iothread"}[1m])'), 0.8)

        for group in prometheus.get('rules')['groups']:
            for rule in group['rules']:
                self.assertEqual(rule['health'], 'ok', rule)
        self.assertGreaterEqual(prometheus.number(
            'count(iothread:qemu_iothread_busy_seconds:rate5m'
            '{iothread="busy"} > 0)'), 2)
        # Nobody is full, and there are no disks
        empty = sum(not prometheus.query(each) for each in self.expressions())
        self.assertLessEqual(empty, 3)
        picture = os.environ.get('QEMU_TEST_PICTURE')
        if picture:
            # Something else to see
            self.get_vm(name='steady').cmd(
                'blockdev-add', driver='null-co', node_name='fast',
                read_zeroes=False)
            self.serve('steady', 'fast', 'fast')
            time.sleep(8)
            self.draw(prometheus, Path(picture), began)


if __name__ == '__main__':
    QemuSystemTest.main()
