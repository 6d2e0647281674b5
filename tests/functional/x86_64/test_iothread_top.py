#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
scripts/iothread-top, on a QEMU with IOThreads, and in a terminal

The load is a client of a block export, which runs in an IOThread, and where
disks are needed a real Linux guest.  $QEMU_STOCK_BINARY may name a QEMU that
does not count what its event loops do.
"""

import contextlib
import json
import logging
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Dict, List
from xml.etree import ElementTree

from qemu_test import QemuSystemTest
from qemu_test.iothreadtool import IOThreadToolTest
from qemu_test.linuxguest import GuestConsole, GuestMissing, guest_args
from qemu_test.qmpprogram import Program, programs
from qemu_test.terminal import Terminal

Json = Dict[str, Any]

TOOL = Path(__file__).resolve().parents[3] / 'scripts/iothread-top'
SHARES = ['busy-percent', 'poll-hit-percent', 'poll-miss-percent',
          'idle-percent']
RATES = ['events-per-second', 'wakeups-per-second', 'iterations-per-second']


class IOThreadTop(IOThreadToolTest):
    """Runs the tool as a user does."""

    maxDiff = None

    tool = TOOL

    def samples(self, *args: str, code: int = 0) -> List[Json]:
        """Return the samples that the tool prints as JSON."""
        done = self.run_tool('--json', *args, code=code)
        samples = [json.loads(line) for line in done.stdout.splitlines()]
        for sample in samples:
            for vm in sample['vms']:
                for thread in vm['threads']:
                    self.check_figures(thread)
        return samples

    def check_figures(self, thread: Json) -> None:
        """Check that no figure is absurd."""
        shares = [thread[name] for name in SHARES]
        if shares[0] is None:
            self.assertEqual(shares, [None] * len(SHARES))
            return
        for share in shares:
            self.assertGreaterEqual(share, 0)
        self.assertLessEqual(sum(shares), 100.1)
        if thread['cpu-percent'] is not None:
            self.assertTrue(0 <= thread['cpu-percent'] <= 100)
        for name in RATES:
            self.assertTrue(0 <= thread[name] < 1e8, thread)

    def threads(self, vm: Json) -> Dict[str, Json]:
        """Return the threads by their names."""
        return {thread['id']: thread for thread in vm['threads']}

    def live(self, *args: str, rows: int = 24, columns: int = 80,
             kind: str = 'vt52') -> Terminal:
        """Start the view on a terminal."""
        terminal = Terminal([sys.executable, str(TOOL), '-d', '0.2', *args],
                            rows, columns, kind)
        self.addCleanup(terminal.close)
        return terminal

    def test_once(self) -> None:
        """One table: who is busy, and who makes it so"""
        done = self.run_tool('--once', self.one())
        lines = done.stdout.splitlines()
        self.assertIn('BUSY%', lines[0])
        self.assertTrue(lines[1].startswith('vm ('), lines)
        # The busiest comes first, with its holders, and the idle one last
        named = [line for line in lines[2:] if line[1] != ' ']
        self.assertTrue(named[-1].startswith(' idle '), lines)
        first = lines[2].split()
        self.assertEqual(first[0], 'busy')
        self.assertGreater(float(first[2]), 0)
        self.assertIn('   block-export id=export node-name=disk', lines)
        self.assertRegex(done.stdout, r'(?m)^ idle +\d+ +0\.0 +0\.0 +100\.0')
        self.assertRegex(done.stdout, r'(?m)^ main loop +- +\d')
        self.assertTrue(all(len(line) <= 80 for line in lines), lines)
        done = self.run_tool('--once', '-n', '2', '-d', '0.1', '--no-holders',
                             '-s', 'name', self.path('vm'))
        self.assertEqual(done.stdout.count('BUSY%'), 2)
        self.assertNotIn('block-', done.stdout)

    def test_json(self) -> None:
        """The keys, and that the shares of the time add up"""
        path = self.one()
        samples = self.samples('-n', '3', '-d', '0.5', path)
        self.assertEqual(len(samples), 3)
        infos = self.get_vm(name='vm').cmd('query-iothreads', internal=True)
        for sample in samples:
            (vm,) = sample['vms']
            self.assertEqual([vm[key] for key in ('name', 'address', 'state')],
                             ['vm', path, 'up'])
            self.assertAlmostEqual(vm['interval'], 0.5, delta=0.4)
            threads = self.threads(vm)
            self.assertEqual(set(threads), {'main loop'} | {
                info['id'] for info in infos})
            for info in infos:
                thread = threads[info['id']]
                self.assertEqual(thread['thread-id'], info['thread-id'])
                self.assertEqual(
                    [{key: each[key] for key in info['holders'][i]}
                     for i, each in enumerate(thread['holders'])],
                    info['holders'])
            for thread in threads.values():
                self.assertAlmostEqual(
                    sum(thread[name] for name in SHARES), 100, delta=1)
            self.assertTrue(threads['main loop']['main-loop'])
            self.assertGreater(threads['busy']['busy-percent'], 0.1)
            self.assertGreater(threads['busy']['events-per-second'], 100)
            self.assertGreater(threads['idle']['idle-percent'], 99)

    def test_svg(self) -> None:
        """A picture, also when the recording is ended early"""
        path = self.one(title='<&>')
        picture = Path(self.scratch_file('load.svg'))
        self.run_tool('--svg', str(picture), '-n', '3', '-d', '0.2', path)
        words = self.words(picture)
        for word in ('busy', 'idle', 'main loop', '100 %', 'time in seconds',
                     'id=export'):
            self.assertTrue(any(word in each for each in words), words)
        self.assertTrue(any(each.startswith('<&>') for each in words), words)

        picture.unlink()
        with subprocess.Popen([sys.executable, TOOL, '--svg', picture, '-d',
                               '0.2', path]) as process:
            self.wait_for_connection(process)
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(30), 0)
        self.words(picture)
        # Nothing else is left behind
        self.assertEqual(list(picture.parent.glob('load.svg*')), [picture])
        done = self.run_tool('--svg', '/nonexistent/x.svg', '-n', '1', '-d',
                             '0.1', path, code=1)
        self.assertIn('/nonexistent/x.svg', done.stderr)

    def wait_for_connection(self, process: 'subprocess.Popen[bytes]') -> None:
        """Wait until the tool has connected to somebody."""
        files = Path(f'/proc/{process.pid}/fd')
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if any(os.readlink(each).startswith('socket:')
                       for each in files.iterdir()):
                    return
            time.sleep(0.1)
        self.fail('it has not connected')

    @staticmethod
    def words(picture: Path) -> List[str]:
        """Return the words in the picture."""
        return [each.text or '' for each in ElementTree.parse(picture).iter()
                if each.tag.endswith('text')]

    def test_live(self) -> None:
        """The view follows the keys and the size of its terminal"""
        terminal = self.live(self.one())
        terminal.wait_for(r'^ busy +\d+ +\d+\.\d .*\n   block-\w+ ')
        self.assertEqual(terminal.screen.rows, 24)
        terminal.resize(40, 100)
        terminal.wait_for(r'\d\d:\d\d:\d\d$(.*\n)+ main loop .*\d$')
        terminal.resize(5, 20)
        text = terminal.wait_for(r'BUSY%\n(.*\n)+ busy +\d+\.\d')
        self.assertNotIn('TID', text)
        terminal.resize(1, 1)
        time.sleep(0.5)
        self.assertFalse(terminal.ended())
        terminal.resize(24, 80)
        terminal.wait_for('block-export')
        terminal.send('h')
        terminal.wait_for('block-export', absent=True)
        terminal.send('n')
        terminal.wait_for(r'by name(.*\n)+ busy(.*\n)+ idle(.*\n)+ main')
        terminal.send('r')
        terminal.wait_for(r'reverse(.*\n)+ main(.*\n)+ idle(.*\n)+ busy')
        terminal.send('r')
        for key, name in (('p', 'poll'), ('c', 'cpu'), ('e', 'events'),
                          ('b', 'busy')):
            terminal.send(key)
            terminal.wait_for(f'by {name} ')
        terminal.send('?')
        terminal.wait_for('handlers')
        terminal.send('?')
        terminal.wait_for('handlers', absent=True)
        terminal.send('+')
        terminal.wait_for('  0.5 s')
        terminal.send('--')
        terminal.wait_for('  0.1 s')

        terminal.send(' ')
        terminal.wait_for('PAUSED')
        before = terminal.screen.text().splitlines()[1:]
        terminal.read(1)
        self.assertEqual(terminal.screen.text().splitlines()[1:], before)
        terminal.send(' ')
        terminal.wait_for('PAUSED', absent=True)
        for _ in range(100):
            terminal.read(0.1)
            if terminal.screen.text().splitlines()[1:] != before:
                break
        else:
            self.fail('the figures stay as they are')

        terminal.send('q')
        self.assertEqual(terminal.wait(), 0)
        self.assertTrue(terminal.sane())
        self.assertEqual(terminal.screen.unknown, [])
        self.assertNotIn(b'Traceback', terminal.raw)

    def test_move(self) -> None:
        """A device is moved by a key, and one that cannot be is not"""
        args = []
        for name in ('busy', 'other', 'third'):
            args += ['-object', f'iothread,id={name}']
        for i, disk in enumerate(('disk0', 'disk1')):
            args += ['-blockdev', f'null-co,node-name=n{i}', '-device',
                     json.dumps({'driver': 'virtio-blk-pci', 'id': disk,
                                 'drive': f'n{i}', 'iothread': 'busy'})]
        path = self.launch('vm', '-accel', 'qtest', '-S', *args, machine='pc')
        vm = self.get_vm(name='vm')

        def places() -> Dict[str, str]:
            return {holder['device']: info['id']
                    for info in vm.cmd('query-iothreads')
                    for holder in info['holders'] if 'device' in holder}

        able = any(each['name'] == 'set-iothread-vq-mapping'
                   for each in vm.cmd('query-commands'))
        terminal = self.live(path)
        terminal.wait_for('device=disk1')
        terminal.send('m')
        terminal.wait_for('Move disk0 from busy[?]  enter: yes')
        down, up = '\x1bB', '\x1bA'
        terminal.send(down)
        terminal.wait_for('Move disk1 from busy[?]')
        terminal.send(down)
        terminal.wait_for('Move disk0 from busy[?]')
        terminal.send(up + '\n')
        terminal.wait_for('Move disk1 from busy to (other|third)[?]')
        terminal.send('q')
        terminal.wait_for('Move', absent=True)
        self.assertEqual(places(), {'disk0': 'busy', 'disk1': 'busy'})

        # All keys at once
        terminal.send('m' + down + '\n' + down + '\n')
        if able:
            terminal.wait_for('disk1 has moved from busy to (other|third)$')
            to = places()['disk1']
            self.assertIn(to, ('other', 'third'))
            self.assertEqual(places()['disk0'], 'busy')
            terminal.wait_for(rf'^ {to} .*\n   device=disk1')
        else:
            terminal.wait_for('disk1 not moved to .*it lacks the\n? ?command')
            self.assertEqual(places(), {'disk0': 'busy', 'disk1': 'busy'})

        # Its IOThreads go while the user thinks
        for name in {'other', 'third'} - set(places().values()):
            vm.cmd('object-del', id=name)
        terminal.send('m')
        terminal.wait_for('Move disk0 from busy[?]  enter')
        if not able:
            terminal.send('\n')
            terminal.wait_for('no other IOThread for disk0')
            return
        terminal.send('\n')
        terminal.wait_for(f'Move disk0 from busy to {to}[?]')
        vm.cmd('set-iothread-vq-mapping', device='disk0',
               iothread_vq_mapping=[{'iothread': to}])
        terminal.wait_for('disk0 has left busy')
        terminal.send('q')
        self.assertEqual(terminal.wait(), 0)

    def test_controller(self) -> None:
        """Beside a SCSI controller is what its disks do"""
        args = ['-object', 'iothread,id=io0', '-device',
                'virtio-scsi-pci,id=hba,iothread=io0']
        for i, more in enumerate((',id=hd', '')):
            args += ['-blockdev', f'null-co,node-name=n{i}', '-device',
                     f'scsi-hd,drive=n{i},bus=hba.0,scsi-id={i}{more}']
        path = self.launch('vm', '-accel', 'qtest', '-S', *args, machine='pc')
        (sample,) = self.samples('--once', '-d', '0.2', path)
        (holder,) = [each for each in self.threads(sample['vms'][0])['io0'][
            'holders'] if each.get('device') == 'hba']
        self.assertEqual(holder['reads-per-second'], 0)

    def test_signals(self) -> None:
        """However the view ends, the terminal is as before"""
        path = self.one()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            terminal = self.live(path, kind='xterm')
            terminal.wait_raw(rb'node-name')
            os.kill(terminal.pid, number)
            self.assertEqual(terminal.wait(), 128 + number)
            self.assertTrue(terminal.sane())
            self.assertIn(b'\x1b[?1049l', terminal.raw)
            self.assertNotIn(b'Traceback', terminal.raw)
        terminal = self.live(path)
        terminal.wait_for('node-name')
        terminal.hang_up()
        self.assertIn(terminal.wait(), (0, 128 + signal.SIGHUP))
        terminal = self.live(path, kind='dumb')
        self.assertEqual(terminal.wait(), 1)
        self.assertIn(b'--once', terminal.raw)
        done = self.run_tool(path, code=1)
        self.assertIn('--once', done.stderr)

    def test_pipe(self) -> None:
        """The reader goes away"""
        with subprocess.Popen(
                [sys.executable, TOOL, '--json', '-d', '0.1', self.one()],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout and process.stderr
            self.assertTrue(process.stdout.readline())
            process.stdout.close()
            self.assertEqual(process.wait(30), 1)
            self.assertEqual(process.stderr.read(), b'')

    def test_several(self) -> None:
        """Two QEMUs: one goes, and comes back"""
        first, second = self.one('first'), self.one('second')
        (sample,) = self.samples('--once', first, second)
        self.assertEqual([vm['name'] for vm in sample['vms']],
                         ['first', 'second'])
        terminal = self.live(first, second)
        both = r'^first \((.*\n)+ busy(.*\n)+second \(.*\n busy +\d+ +\d'
        terminal.wait_for(both)

        self.get_vm(name='second').kill()
        terminal.wait_for(r'^second .*: gone')
        terminal.wait_for(r'^first \(.*\n busy +\d+ +\d+\.\d')
        self.assertFalse(terminal.ended())
        done = self.run_tool('--once', '-d', '0.2', f'{first}2', f'{second}2',
                             code=1)
        self.assertIn('second', done.stderr)
        self.assertRegex(done.stdout, r'(?m)^ busy +\d+ +\d+\.\d')

        os.unlink(second)
        self.get_vm(name='second').launch()
        self.work('second')
        terminal.wait_for(both)
        self.get_vm(name='first').kill()
        self.get_vm(name='second').kill()
        terminal.wait_for(r'^first .*: gone(.*\n)+second .*: gone')
        terminal.send('q')
        self.assertEqual(terminal.wait(), 1)

    def test_goes_during_once(self) -> None:
        """A QEMU ends between the two samples"""
        with subprocess.Popen(
                [sys.executable, TOOL, '--once', '-d', '8', self.one()],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True) as process:
            vm = self.get_vm(name='vm')
            while any(each['label'] == 'top' and
                      each['filename'].startswith('disconnected')
                      for each in vm.cmd('query-chardev')):
                time.sleep(0.05)
            # It takes its first sample as soon as it is connected
            time.sleep(2)
            vm.kill()
            out, err = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 1)
        self.assertIn('gone', out)
        self.assertIn('gone', err)
        self.assertNotIn('Traceback', err)

    def test_hangs(self) -> None:
        """A QEMU that does not answer holds up nobody else"""
        first, second = self.one('first'), self.one('second')
        terminal = self.live('--timeout', '3', first, second)
        terminal.wait_for(r'^second (.*\n)+ busy +\d+ +\d')
        pid = self.get_vm(name='second').get_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            terminal.wait_for(r'^second .*no answer for \d s')
            terminal.wait_for(r'^second .*: silent')
            terminal.wait_for(r'^first \(.*\n busy +\d+ +\d+\.\d')
            done = self.run_tool('--once', '--timeout', '1', f'{second}2',
                                 code=1)
            self.assertIn('silent', done.stderr)
        finally:
            os.kill(pid, signal.SIGCONT)
        terminal.wait_for(r'^second \([^:]*\n busy +\d+ +\d+\.\d')
        terminal.send('q')
        self.assertEqual(terminal.wait(), 0)

    def test_occupied(self) -> None:
        """Another client has the monitor"""
        path = self.one()
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(path)
                    time.sleep(0.2)
                done = self.run_tool('--once', '--timeout', '0.5', path,
                                     code=1)
                self.assertIn(': taken: ', done.stderr)
                self.assertIn('another -qmp', done.stderr)
        self.run_tool('--once', '-d', '0.1', path)

    def test_unreachable(self) -> None:
        """Nobody is there, or somebody else"""
        done = self.run_tool('--once', self.path('none'), code=1)
        self.assertIn('No such file', done.stderr)
        done = self.run_tool('--once', 'localhost:99999', code=2)
        self.assertIn('99999', done.stderr)
        with socket.socket() as server:
            server.bind(('127.0.0.1', 0))
            port = server.getsockname()[1]
            done = self.run_tool('--once', f'127.0.0.1:{port}', code=1)
            self.assertIn('refused', done.stderr)
            server.listen()

            def hello() -> None:
                client, _ = server.accept()
                client.sendall(b'SSH-2.0\r\n')
                client.close()

            thread = threading.Thread(target=hello)
            thread.start()
            done = self.run_tool('--once', f'127.0.0.1:{port}', code=1)
            self.assertIn('no QMP monitor', done.stderr)
            thread.join()

    def test_tcp(self) -> None:
        """A monitor at a port"""
        self.launch('vm', '-object', 'iothread,id=io0',
                    '-chardev', 'socket,id=tcp,host=127.0.0.1,port=0,'
                    'server=on,wait=off', '-mon', 'chardev=tcp,mode=control')
        (text,) = [each['filename'] for each
                   in self.get_vm(name='vm').cmd('query-chardev')
                   if each['label'] == 'tcp']
        where = text.partition('tcp:')[2].partition(',')[0]
        done = self.run_tool('--once', '-d', '0.1', where)
        self.assertRegex(done.stdout, '(?m)^ io0 ')
        # Such a monitor has an IOThread of QEMU's own
        done = self.run_tool('--once', '-d', '0.1', f'tcp:{where}')
        self.assertRegex(done.stdout, '(?m)^ mon_iothread +[0-9]+ +[0-9]')

    def test_recreated(self) -> None:
        """An IOThread is deleted, and another one has its name"""
        path = self.one()
        vm = self.get_vm(name='vm')
        done = threading.Event()

        def recreate() -> None:
            while not done.wait(0.3):
                vm.cmd('object-del', id='idle')
                vm.cmd('object-add', qom_type='iothread', id='idle')

        thread = threading.Thread(target=recreate)
        thread.start()
        try:
            samples = self.samples('-n', '60', '-d', '0.1', path)
        finally:
            done.set()
            thread.join()
        found = [self.threads(sample['vms'][0]).get('idle')
                 for sample in samples]
        known = [each for each in found if each]
        self.assertGreater(len({each['thread-id'] for each in known}), 3)
        # Right after it was made there is nothing to compare with
        self.assertIn(None, [each['busy-percent'] for each in known])
        idle = sorted(each['idle-percent'] for each in known
                      if each['idle-percent'] is not None)
        # A busy host makes a thread wait before it can idle
        self.assertGreater(idle[len(idle) // 2], 80)
        self.assertGreaterEqual(idle[0], 0)
        self.assertLess(idle[-1], 100.1)

    def test_many_holders(self) -> None:
        """A thousand nodes on an IOThread"""
        path = self.one()
        vm = self.get_vm(name='vm')
        for i in range(1000):
            vm.cmd('blockdev-add', driver='null-co', node_name=f'n{i}')
            vm.cmd('x-blockdev-set-iothread', node_name=f'n{i}',
                   iothread='idle')
        done = self.run_tool('--once', '-d', '0.2', path)
        self.assertEqual(done.stdout.count('node-name=n'), 1000)
        terminal = self.live(path)
        terminal.wait_for(r'^   block-node node-name=n0$')
        terminal.send('r')
        terminal.wait_for('reverse')
        terminal.send('h')
        terminal.wait_for(r'^ busy .*\d$')
        terminal.send('q')
        self.assertEqual(terminal.wait(), 0)

    def test_scroll(self) -> None:
        """Further down"""
        path = self.launch('vm', *[word for i in range(40) for word in (
            '-object', f'iothread,id=io{i}')])
        terminal = self.live('-s', 'name', path)
        terminal.wait_for(r'^ io0 ')
        terminal.wait_for(r'^ io21 ', absent=True)
        terminal.send('\x1bB' * 5)
        terminal.wait_for(r'^ io21 ')
        terminal.wait_for(r'^ io0 ', absent=True)
        terminal.send('\x1bB' * 100)
        terminal.wait_for(r'^ main loop ')
        terminal.send('\x1bA' * 100)
        terminal.wait_for(r'^ io0 ')
        terminal.send('q')
        self.assertEqual(terminal.wait(), 0)

    def test_odd_names(self) -> None:
        """No control character of a name gets to the terminal"""
        path = self.one(title='a\x1b[31m\x07b\nc\u202e\u00e9')
        done = self.run_tool('--once', '-d', '0.1', path)
        self.assertIn('a\\x1b[31m\\x07b\\nc\\u202e\u00e9 (', done.stdout)
        done = self.run_tool('--once', '-d', '0.1', path, LC_ALL='C',
                             PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
        self.assertIn('a\\x1b[31m\\x07b\\nc\\u202e\\xe9 (', done.stdout)
        terminal = self.live(path)
        terminal.wait_for(r'^a\\x1b\[31m\\x07b\\nc\\u202e')
        self.assertNotIn(b'\x07', terminal.raw)
        self.assertNotIn(b'\x1b[31m', terminal.raw)
        terminal.send('q')
        self.assertEqual(terminal.wait(), 0)

    def test_long_name(self) -> None:
        """A long ID does not hold up the view, and is cut"""
        path = self.launch('vm', '-object', 'iothread,id=' + 'i' * 20000)
        start = time.monotonic()
        done = self.run_tool('--once', '-d', '0.1', path)
        self.assertLess(time.monotonic() - start, 10)
        self.assertRegex(done.stdout, r'(?m)^ i+~ ')

    def test_daemon(self) -> None:
        """The storage daemon, and what it exports"""
        binaries = programs(self.qemu_bin)
        if len(binaries) < 2:
            self.skipTest('no storage daemon was built')
        program = Program(binaries[1], self.socket_dir().name, 1, [
            '--object', 'iothread,id=io0', '--blockdev',
            'null-co,node-name=disk,read-zeroes=on', '--nbd-server',
            f'addr.type=unix,addr.path={self.path("nbd")}', '--export',
            'nbd,id=exp0,node-name=disk,iothread=io0'])
        program.start()
        self.addCleanup(program.end)
        program.connect().close()
        done = self.run_tool('--once', '-d', '0.2', program.paths[0])
        self.assertTrue(done.stdout.splitlines()[1].endswith('/m0'))
        self.assertRegex(done.stdout, r'(?m)^ io0 +\d+ +0\.0 +0\.0 +100\.0')
        self.assertIn('block-export id=exp0 node-name=disk\n', done.stdout)
        self.assertRegex(done.stdout, r'(?m)^ main loop +- +\d')

    def test_stock(self) -> None:
        """A QEMU and a daemon that do not count are refused"""
        stock = os.environ.get('QEMU_STOCK_BINARY') or \
            os.environ.get('QTEST_QEMU_STOCK_BINARY')
        if not stock:
            self.skipTest('QEMU_STOCK_BINARY names no stock QEMU')
        path = self.one()
        for i, binary in enumerate(programs(stock)):
            folder = self.path(f'stock{i}')
            os.mkdir(folder)
            program = Program(binary, folder, 1)
            program.start()
            self.addCleanup(program.end)
            program.connect().close()
            done = self.run_tool('--once', program.paths[0], code=1)
            self.assertIn('cannot tell the load', done.stderr)
            self.assertIn('qemu-storage-daemon' if i else 'QEMU', done.stderr)
            self.assertIn(' query-stats', done.stderr)
            self.assertEqual(done.stdout, '')
            # The monitor is free for others, and the others are shown
            program.connect().close()
            done = self.run_tool('--once', '-d', '0.1', program.paths[0],
                                 path, code=1)
            self.assertIn('cannot tell', done.stdout)
            self.assertRegex(done.stdout, r'(?m)^ busy +\d+ +\d')

    def test_absurd_counters(self) -> None:
        """Counters go back or jump, and the thread is the same"""
        second = 10 ** 9
        with self.fake({'query-stats iothread': [
                [self.fake_stats(*[100 * second] * 4, 9 * second, 9, 9, 9)],
                [self.fake_stats(*[99 * second] * 4, second, 1, 1, 1)],
                # A polling phase of ten seconds has just ended
                [self.fake_stats(99 * second, 109 * second, 99 * second,
                                 99 * second, 90 * second, 2, 2, 2)],
                [self.fake_stats(2 ** 63, *[109 * second] * 4, 3, 3, 3)],
                [{**self.fake_stats(1), 'stats': []}]]}) as path:
            samples = self.samples('-n', '5', '-d', '0.2', path)
        found = [self.threads(sample['vms'][0])['io0'] for sample in samples]
        self.assertEqual([each['poll-hit-percent'] for each in found],
                         [None, 100.0, 0.0, None, None])

    def test_another_thread(self) -> None:
        """The counters look as if nothing had happened"""
        second = 10 ** 9
        with self.fake({
                'query-iothreads': [
                    [{'id': 'io0', 'thread-id': number, 'holders': []}]
                    for number in (7, 7, 8, 8)],
                'query-stats iothread': [
                    [self.fake_stats(*[i * second // 20] * 4, i, i, i, i)]
                    for i in range(1, 5)]}) as path:
            samples = self.samples('-n', '3', '-d', '0.2', path)
        found = [self.threads(sample['vms'][0])['io0'] for sample in samples]
        self.assertEqual([each['busy-percent'] is None for each in found],
                         [False, True, False])

    def test_nonsense(self) -> None:
        """Answers of another shape than QEMU's"""
        for answers in ([17], [[{'stats': 3}]], [None], [[None]],
                        [[{'stats': [{'name': 1}]}]], ['x']):
            with self.fake({'query-stats iothread': [answers[0]]}) as path:
                done = self.run_tool('--once', '-d', '0.1', path, code=1)
                self.assertIn('makes no sense', done.stderr)

    def test_hostile(self) -> None:
        """One QEMU answers nonsense: the others are shown all the same"""
        thread = {'id': 'io0', 'thread-id': 7}
        bad = []
        with contextlib.ExitStack() as stack:
            def fake(**answers: List[Any]) -> str:
                return stack.enter_context(self.fake(answers))

            for command, answer in (
                    ('query-name', {'name': 5}),
                    ('query-name', {'name': ['x']}),
                    ('query-uuid', {'UUID': 5}),
                    ('query-iothreads', [{**thread, 'id': 5}]),
                    ('query-iothreads', [{**thread, 'id': None}]),
                    ('query-iothreads', [{**thread, 'thread-id': True}]),
                    *(('query-iothreads', [{**thread, 'holders': [holder]}])
                      for holder in (
                          {'type': 5}, {'type': 'job', 'id': 5},
                          {'type': 'job', 'id': 'x', 'vqs': [0]},
                          *({'type': 'qom-object', 'qom-path': '/d',
                             'vqs': vqs} for vqs in (5, ['a', 1], [-1])))),
                    ('query-blockstats', [{'stats': {
                        'rd_operations': '1', 'wr_operations': 0,
                        'rd_bytes': 0, 'wr_bytes': 0}}])):
                bad.append(fake(**{command: [answer]}))
            # This is odd, and it can be
            digits = fake(**{'query-iothreads': [[{**thread,
                                                   'id': '1' * 5000}]]})
            good = fake()
            done = self.run_tool('--once', '-d', '0.1', *bad, digits, good,
                                 code=1)
            (sample,) = self.samples('--once', '-d', '0.1', *bad, digits,
                                     good, code=1)
        for path in bad:
            self.assertRegex(done.stderr,
                             rf'{path}\)?: unsuitable: .*no sense')
        self.assertRegex(done.stdout, rf'{good}\)\n io0 ')
        self.assertRegex(done.stdout, r'(?m)^ 1+~ ')
        self.assertEqual([vm['state'] for vm in sample['vms']],
                         ['unsuitable'] * len(bad) + ['up'] * 2)

    def test_guest(self) -> None:
        """What the disks of a real guest do, beside their threads"""
        self.require_accelerator('tcg')
        try:
            guest = guest_args(self.workdir)
        except GuestMissing as missing:
            self.skipTest(str(missing))
        args = list(guest)
        for thread in ('io0', 'io1'):
            args += ['-object', f'iothread,id={thread}']
        for disk, threads in (
                ('disk0', {'iothread': 'io0'}),
                ('disk1', {'num-queues': 4, 'iothread-vq-mapping': [
                    {'iothread': 'io0'}, {'iothread': 'io1'}]})):
            image = self.scratch_file(f'{disk}.img')
            with open(image, 'wb') as stream:
                stream.truncate(16 * 1024 * 1024)
            args += ['-blockdev', f'file,node-name={disk},filename={image}',
                     '-device', json.dumps({
                         'driver': 'virtio-blk-pci', 'id': disk,
                         'drive': disk, 'serial': disk, **threads})]
        self.get_vm(name='vm').set_console()
        path = self.launch('vm', *args, machine='pc')
        console = GuestConsole(self.get_vm(name='vm').console_socket,
                               logging.getLogger('console').debug)
        console.wait_ready()
        for disk in ('disk0', 'disk1'):
            console.run(f'io {disk}')
            console.run(f'churn {disk}')
        (sample,) = self.samples('--once', '-d', '2', path)
        threads = self.threads(sample['vms'][0])
        for name, disk, shared in (('io0', 'disk0', False),
                                   ('io0', 'disk1', True),
                                   ('io1', 'disk1', True)):
            (holder,) = [each for each in threads[name]['holders']
                         if each.get('device') == disk]
            self.assertGreater(holder['writes-per-second'], 0)
            self.assertGreater(holder['written-bytes-per-second'], 0)
            self.assertEqual(holder['shared'], shared)
        done = self.run_tool('--once', path)
        self.assertRegex(done.stdout, r'(?m)^   device=disk0 vqs=0-3 .*'
                         r'\d IOPS \d+\.\d MB/s$')
        self.assertRegex(done.stdout, r'(?m)^   device=disk1 vqs=0,2 .*'
                         r'\d IOPS \d+\.\d MB/s\*$')


if __name__ == '__main__':
    QemuSystemTest.main()
