# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of the tools share that show the load of IOThreads"""

import contextlib
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import Any, Dict, Iterator, List, Optional

from .fakemonitor import FakeMonitor
from .testcase import QemuSystemTest

Json = Dict[str, Any]

# How long one test may take, in seconds
TEST_TIMEOUT = 240


class IOThreadToolTest(QemuSystemTest):
    """Has QEMUs with load, and runs a tool as a user does."""

    tool: Path

    def setUp(self) -> None:
        super().setUp()
        signal.signal(signal.SIGALRM, self._out_of_time)
        signal.alarm(TEST_TIMEOUT)
        self.count = 0

    def tearDown(self) -> None:
        signal.alarm(0)
        super().tearDown()

    def _out_of_time(self, _number: int, _frame: Any) -> None:
        self.fail(f'not done after {TEST_TIMEOUT} s')

    def path(self, name: str) -> str:
        """Return a path for a socket."""
        return os.path.join(self.socket_dir().name, name)

    def launch(self, name: str, *args: str, machine: str = 'none',
               title: Optional[str] = None) -> str:
        """
        Start a QEMU; return the path of its monitor for the tool.

        There is another one at that path and "2".
        """
        path = self.path(name)
        vm = self.get_vm(name=name)
        vm.set_machine(machine)
        if machine == 'none':
            vm.add_args('-accel', 'qtest')
        vm.add_args('-nodefaults', '-name', title or name,
                    '-chardev', f'socket,id=top,path={path},server=on,'
                    'wait=off', '-mon', 'chardev=top,mode=control',
                    '-qmp', f'unix:{path}2,server=on,wait=off', *args)
        vm.launch()
        return path

    def work(self, name: str) -> None:
        """Have the IOThread "busy" serve a client that wants ever more."""
        self.get_vm(name=name).cmd('nbd-server-start', addr={
            'type': 'unix', 'data': {'path': self.path(f'{name}-nbd')}})
        self.serve(name, 'export', 'disk')

    def serve(self, name: str, export: str, node: str) -> None:
        """Have "busy" serve one more client, which reads that node."""
        image = os.environ.get('QEMU_TEST_QEMU_IMG') or os.path.join(
            os.path.dirname(self.qemu_bin), 'qemu-img')
        if not os.access(image, os.X_OK):
            self.skipTest('there is no qemu-img')
        path = self.path(f'{name}-nbd')
        self.get_vm(name=name).cmd(
            'block-export-add', type='nbd', id=export, node_name=node,
            iothread='busy')
        # pylint: disable-next=consider-using-with
        client = subprocess.Popen(
            [image, 'bench', '-f', 'raw', '-c', str(2 ** 31 - 1), '-d', '8',
             f'nbd+unix:///{node}?socket={path}'],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        self.addCleanup(client.wait)
        self.addCleanup(client.kill)

    def one(self, name: str = 'vm', title: Optional[str] = None) -> str:
        """Start a QEMU with a busy and an idle IOThread."""
        path = self.launch(
            name, '-object', 'iothread,id=busy', '-object',
            'iothread,id=idle', '-blockdev',
            # It takes its time, or nothing else would find any
            'null-co,node-name=disk,read-zeroes=off,latency-ns=1000000',
            title=title)
        self.work(name)
        return path

    def run_tool(self, *args: str, code: int = 0,
                 **environment: str) -> 'subprocess.CompletedProcess[str]':
        """Run the tool to its end."""
        done = subprocess.run(
            [sys.executable, self.tool, *args], capture_output=True, text=True,
            stdin=subprocess.DEVNULL, check=False, timeout=60,
            env={**os.environ, 'COLUMNS': '80', **environment})
        self.log.debug('%s: %s\n%s', args, done.stdout, done.stderr)
        self.assertNotIn('Traceback', done.stderr)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def fake_stats(self, *values: int) -> Json:
        """Return counters that have these values."""
        names = ['busy-time', 'poll-hit-time', 'poll-miss-time',
                 'blocked-time', 'cpu-time', 'events', 'wakeups',
                 'iterations']
        return {'provider': 'event-loop', 'qom-path': '/objects/io0',
                'stats': [{'name': name, 'value': value}
                          for name, value in zip(names, values)]}

    @contextlib.contextmanager
    def fake(self, answers: Dict[str, List[Any]]) -> Iterator[str]:
        """Have a monitor that answers like this."""
        self.count += 1
        path = self.path(f'fake{self.count}')
        fake = FakeMonitor(path, {
            'query-name': [{'name': 'fake'}],
            'query-stats-schemas': [[{'provider': 'event-loop'}]],
            'query-iothreads': [[{'id': 'io0', 'thread-id': 7,
                                  'holders': []}]],
            'query-stats iothread': [[self.fake_stats(*range(8))]],
            **answers})
        try:
            yield path
        finally:
            fake.close()
