#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Sequences of what people do with QEMU from outside

Pull-mode backups, daemons, clients that leave, migrations that cannot
connect, and a guest that never looks up.  Each has hung or ended a QEMU in
the field at some time.
"""

import contextlib
import json
import os
import signal
import socket
import time
from subprocess import DEVNULL, Popen, run
from typing import Any, Dict, List

from qemu.machine import QEMUMachine
from qemu.machine.qtest import QEMUQtestMachine
from qemu.qmp.legacy import QEMUMonitorProtocol
from qemu_test import QemuSystemTest
from qemu_test.virtioqtest import WRITE, Virtio

Json = Dict[str, Any]

MIB = 1 << 20
# How long anything may take, in seconds
PATIENCE = 30
# How long a command may take that has nothing to wait for
SOON = 5
TEST_TIMEOUT = 120


class Processes(QemuSystemTest):
    """QEMUs, and what is around them."""

    def setUp(self) -> None:
        super().setUp()
        # QMP has no timeout of its own: a QEMU that hangs ends the program
        signal.alarm(TEST_TIMEOUT)
        self.set_machine('pc')
        self.require_device('virtio-scsi-pci')
        build = os.path.dirname(self.qemu_bin)
        self.qemu_img = os.environ.get('QEMU_TEST_QEMU_IMG',
                                       os.path.join(build, 'qemu-img'))
        self.daemon = os.path.join(build, 'storage-daemon',
                                   'qemu-storage-daemon')
        self.dir = self.socket_dir().name
        self.qtest_vms: List[QEMUMachine] = []

    def tearDown(self) -> None:
        for vm in self.qtest_vms:
            vm.shutdown(hard=True)
        signal.alarm(0)
        super().tearDown()

    def end(self, vm: QEMUMachine) -> None:
        """Have QEMU end."""
        vm.cmd('quit')
        vm.wait(PATIENCE)
        self.assertEqual(vm.exitcode(), 0)

    def check_pull(self, how: str) -> None:
        """Reset, and end, while clients read from a backup's target."""
        vm = QEMUQtestMachine(self.qemu_bin, base_temp_dir=self.workdir)
        vm.set_machine('pc')
        vm.add_args('-nodefaults', '-object', 'iothread,id=io0')
        vm.launch()
        self.qtest_vms.append(vm)
        disk_path, target_path = (self.scratch_file(f'{how}-{name}')
                                  for name in ('disk', 'target'))
        for form, path in ('raw', disk_path), ('qcow2', target_path):
            run([self.qemu_img, 'create', '-q', '-f', form, path, '64M'],
                check=True)
        vm.cmd('blockdev-add', {
            'driver': 'file', 'node-name': 's', 'filename': disk_path})
        vm.cmd('device_add', driver='virtio-blk-pci', id='d', drive='s',
               addr='5', iothread='io0')
        vm.cmd('blockdev-add', {
            'driver': 'qcow2', 'node-name': 't', 'backing': 's',
            'file': {'driver': 'file', 'filename': target_path}})
        vm.cmd('blockdev-backup', {'job-id': 'b', 'device': 's',
                                   'target': 't', 'sync': 'none'})
        path = os.path.join(self.dir, how)
        vm.cmd('nbd-server-start', addr={'type': 'unix',
                                         'data': {'path': path}})
        vm.cmd('block-export-add', {'type': 'nbd', 'id': 'e',
                                    'node-name': 't', 'name': 't'})
        disk = Virtio(vm, 5)
        with contextlib.ExitStack() as stack:
            clients: List[Popen] = []
            for _ in range(2):
                clients.append(stack.enter_context(Popen([
                    self.qemu_img, 'bench', '-f', 'raw', '-c', '1000000',
                    '-d', '2', '-s', '65536', f'nbd+unix:///t?socket={path}'],
                    stdout=DEVNULL, stderr=DEVNULL)))
                stack.callback(clients[-1].kill)
            for turn in range(3):
                for number in range(2):
                    disk.blk(WRITE, (turn * 2 + number) * 1024, 32768, 5)
                if turn % 2:
                    disk.wait()
                vm.cmd('system_reset')
                disk.start()
            disk.blk(WRITE, 0, 32768, 12)
            for client in clients:
                self.assertIn(client.poll(), (None, 0))
            if how == 'cancel':
                vm.cmd('block-job-cancel', device='b')
            elif how == 'unexport':
                vm.cmd('block-export-del', id='e', mode='hard')
            elif how == 'stop':
                vm.cmd('stop')
            self.end(vm)
            for client in clients:
                client.wait(PATIENCE)

    def test_pull(self) -> None:
        """A pull-mode backup during resets, and the end"""
        for how in 'quit', 'cancel', 'unexport', 'stop':
            self.log.info('%s', how)
            self.check_pull(how)

    def check_daemon(self, name: str, start: List[str], by: str) -> None:
        """Start a daemon, use its disk, and end it."""
        pidfile = os.path.join(self.workdir, f'{name}-pid')
        monitor, nbd = (os.path.join(self.dir, f'{name}-{what}')
                        for what in ('qmp', 'nbd'))
        disk = self.scratch_file(f'{name}-disk')
        with open(disk, 'wb') as file:
            file.truncate(16 * MIB)
        run([word.format(pidfile=pidfile, monitor=monitor, disk=disk, nbd=nbd)
             for word in start], stdin=DEVNULL, stdout=DEVNULL, timeout=60,
            check=True)
        with open(pidfile, encoding='utf8') as file:
            pid = int(file.read())
        try:
            qmp = QEMUMonitorProtocol(monitor)
            qmp.connect()
            if 'storage' not in start[0]:
                qmp.cmd('query-iothreads')
                qmp.cmd('nbd-server-start', addr={
                    'type': 'unix', 'data': {'path': nbd}})
                qmp.cmd('block-export-add', **{
                    'type': 'nbd', 'id': 'e', 'node-name': 'n', 'name': 'n',
                    'writable': True, 'iothread': 'io0'})
            run([self.qemu_img, 'bench', '-f', 'raw', '-w', '-c', '256',
                 '--pattern=90', f'nbd+unix:///n?socket={nbd}'],
                stdout=DEVNULL, timeout=60, check=True)
            if by == 'quit':
                with contextlib.suppress(Exception):
                    qmp.cmd('quit')
            else:
                os.kill(pid, signal.SIGTERM)
            with contextlib.suppress(Exception):
                qmp.close()
            end = time.monotonic() + PATIENCE
            while os.path.exists(f'/proc/{pid}'):
                with open(f'/proc/{pid}/stat', encoding='utf8') as file:
                    if file.read().rsplit(')', 1)[1].split()[0] == 'Z':
                        break
                self.assertLess(time.monotonic(), end)
                time.sleep(0.02)
        except FileNotFoundError:
            # It has gone between the two looks
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with open(disk, 'rb') as file:
            self.assertEqual(file.read(256 * 4096), b'\x5a' * 256 * 4096)

    def test_daemons(self) -> None:
        """What has IOThreads works as a daemon"""
        node = 'driver=file,node-name=n,filename={disk},aio='
        for by, aio in ('quit', 'threads'), ('SIGTERM', 'io_uring'):
            self.check_daemon(f'qemu-{by}', [
                self.qemu_bin, '-accel', 'qtest', '-machine', 'pc',
                '-nodefaults', '-display', 'none', '-daemonize',
                '-pidfile', '{pidfile}', '-object', 'iothread,id=io0',
                '-blockdev', node + aio, '-device',
                'virtio-blk-pci,drive=n,iothread=io0,share-rw=on',
                '-qmp', 'unix:{monitor},server=on,wait=off'], by)
            if os.path.exists(self.daemon):
                self.check_daemon(f'daemon-{by}', [
                    self.daemon, '--daemonize', '--pidfile', '{pidfile}',
                    '--object', 'iothread,id=io0', '--blockdev', node + aio,
                    '--chardev',
                    'socket,path={monitor},server=on,wait=off,id=c',
                    '--monitor', 'chardev=c', '--nbd-server',
                    'addr.type=unix,addr.path={nbd}', '--export',
                    'type=nbd,id=e,node-name=n,name=n,writable=on,'
                    'iothread=io0'], by)

    def test_clients_that_leave(self) -> None:
        """A new client is greeted first, whatever another one has asked"""
        path = os.path.join(self.dir, 'qmp')
        self.vm.add_args('-nodefaults', '-S', '-qmp',
                         f'unix:{path},server=on,wait=off')
        self.vm.launch()
        for number in range(30):
            enable = {'enable': ['oob']} if number & 1 else {}
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(path)
                client.recv(65536)
                client.sendall(json.dumps({
                    'execute': 'qmp_capabilities',
                    'arguments': enable}).encode())
                client.recv(65536)
                client.sendall(b'{"execute": "query-qmp-schema"}' *
                               (1 + number % 6))
                if number % 3 == 1:
                    time.sleep(0.002)
                elif number % 3 == 2:
                    client.recv(4096)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(path)
                with client.makefile() as stream:
                    self.assertIn('QMP', json.loads(stream.readline()))
        self.end(self.vm)

    def check_migration(self, what: str) -> None:
        """Migrate to a socket whose queue is full."""
        path = os.path.join(self.dir, f'migration-{what}')
        vm = self.get_vm(name=what)
        vm.add_args('-nodefaults')
        vm.launch()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(path)
            server.listen(0)
            for _ in range(3):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                with contextlib.suppress(OSError):
                    client.connect(path)
            vm.cmd('migrate', uri=f'unix:{path}')
            time.sleep(0.2)
            if what == 'again':
                vm.cmd('migrate_cancel')
                time.sleep(0.2)
                vm.qmp('migrate', uri='exec:cat >/dev/null')
                time.sleep(0.5)
                vm.cmd('query-migrate')
            if what == 'SIGTERM':
                pid = vm.get_pid()
                assert pid is not None
                os.kill(pid, signal.SIGTERM)
                vm.wait(PATIENCE)
                self.assertEqual(vm.exitcode(), 0)
            else:
                self.end(vm)

    def test_migration(self) -> None:
        """A migration that cannot connect"""
        for what in 'again', 'quit', 'SIGTERM':
            self.check_migration(what)

    def test_spinning_guest(self) -> None:
        """Devices come and go while the guest's CPUs spin in TCG"""
        self.require_accelerator('tcg')
        firmware = self.scratch_file('spin.bin')
        code = bytearray(b'\xf4' * 65536)
        code[0xfff0:0xfff3] = b'\xfa\xeb\xfe'       # cli; jmp .
        with open(firmware, 'wb') as file:
            file.write(code)
        for cpus in 1, 2:
            vm = self.get_vm(name=f'cpus{cpus}')
            vm.set_machine('pc')
            vm.add_args('-nodefaults', '-accel', 'tcg,thread=multi', '-smp',
                        f'{cpus}', '-bios', firmware)
            vm.launch()
            for turn in range(5):
                device = f's{turn}'
                for command, arguments in (
                        ('device_add', {'driver': 'virtio-blk-pci'}),
                        ('object-add', {'qom-type': 'iothread', 'id': 'io'}),
                        ('blockdev-add', {
                            'driver': 'null-co', 'node-name': 'n',
                            'read-zeroes': True}),
                        ('device_add', {
                            'driver': 'virtio-scsi-pci', 'id': device,
                            'iothread': 'io', 'addr': f'{turn + 3:x}'}),
                        ('device_add', {
                            'driver': 'scsi-hd', 'id': 'h', 'drive': 'n',
                            'bus': f'{device}.0'}),
                        ('device_del', {'id': 'h'}),
                        ('blockdev-del', {'node-name': 'n'}),
                        ('device_del', {'id': device}),
                        ('system_reset', {})):
                    begin = time.monotonic()
                    answer = vm.qmp(command, arguments)
                    self.assertLess(time.monotonic() - begin, SOON)
                    self.assertEqual('error' in answer, arguments == {
                        'driver': 'virtio-blk-pci'}, answer)
                    if arguments == {'id': 'h'} and command == 'device_del':
                        vm.event_wait('DEVICE_DELETED', PATIENCE, match={
                            'data': {'device': 'h'}})
                vm.event_wait('DEVICE_DELETED', PATIENCE,
                              match={'data': {'device': device}})
                vm.cmd('object-del', id='io')
            self.end(vm)


if __name__ == '__main__':
    QemuSystemTest.main()
