#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Sequences of commands that people use, around disks that run in IOThreads

Each has hung or ended a QEMU in the field at some time.  What counts is that
all is answered, that data are right, and that QEMU ends when it is told to.
"""

import os
import resource
import signal
import struct
import time
from subprocess import run
from typing import Any, Dict, List

from qemu.machine.qtest import QEMUQtestMachine
from qemu_test import QemuSystemTest
from qemu_test.virtioqtest import READ, SCSI, WRITE, Unanswered, Virtio

Json = Dict[str, Any]

MIB = 1 << 20
# How long a job, an unplug or QEMU's end may take, in seconds
PATIENCE = 30
TEST_TIMEOUT = 150
THREADS: Dict[str, Json] = {
    'main loop': {},
    'IOThread': {'iothread': 'io0'},
    'mapping': {'iothread-vq-mapping': [{'iothread': 'io0'},
                                        {'iothread': 'io1'}]}}


class Sequences(QemuSystemTest):
    """QEMUs without a guest, and a driver in its place."""

    def setUp(self) -> None:
        super().setUp()
        # QMP has no timeout of its own: a QEMU that hangs ends the program
        signal.alarm(TEST_TIMEOUT)
        self.set_machine('pc')
        self.require_device('virtio-scsi-pci')
        self.qemu_img = os.environ.get(
            'QEMU_TEST_QEMU_IMG',
            os.path.join(os.path.dirname(self.qemu_bin), 'qemu-img'))

        self.started: List[QEMUQtestMachine] = []

    def tearDown(self) -> None:
        for vm in self.started:
            vm.shutdown(hard=True)
        signal.alarm(0)
        super().tearDown()

    def launch(self, threads: int = 2) -> QEMUQtestMachine:
        """Start a QEMU."""
        # pylint: disable=attribute-defined-outside-init
        self.qemu = QEMUQtestMachine(self.qemu_bin,
                                     base_temp_dir=self.workdir)
        self.qemu.set_machine('pc')
        self.qemu.add_args('-nodefaults')
        for number in range(threads):
            self.qemu.add_args('-object', f'iothread,id=io{number}')
        self.qemu.launch()
        self.started.append(self.qemu)
        return self.qemu

    def end(self) -> None:
        """Have QEMU end."""
        self.qemu.cmd('quit')
        self.qemu.wait(PATIENCE)
        self.assertEqual(self.qemu.exitcode(), 0)

    def null(self, name: str, latency: float = 0) -> None:
        """Create a disk of zeroes."""
        self.qemu.cmd('blockdev-add', {
            'driver': 'null-co', 'node-name': name, 'size': 64 * MIB,
            'read-zeroes': True, 'latency-ns': int(latency * 1e9)})

    def image(self, name: str, form: str = 'qcow2', size: str = '64M',
              backing: str = '') -> str:
        """Create an image."""
        path = self.scratch_file(name)
        options = ['-u', '-F', 'qcow2', '-b', backing] if backing else []
        run([self.qemu_img, 'create', '-q', '-f', form, *options, path, size],
            check=True)
        return path

    def node(self, name: str, path: str, form: str = 'qcow2',
             **options: Any) -> None:
        """Open an image."""
        self.qemu.cmd('blockdev-add', {
            'driver': form, 'node-name': name, **options,
            'file': {'driver': 'file', 'filename': path}})

    def disk(self, node: str, slot: int, options: Json,
             queues: int = 1) -> Virtio:
        """Plug a disk, and set it up."""
        self.qemu.cmd('device_add', {
            'driver': 'virtio-blk-pci', 'id': f'd{slot}', 'drive': node,
            'addr': f'{slot:x}', 'num-queues': queues, **options})
        return Virtio(self.qemu, slot, queues=queues)

    def job(self, name: str, *states: str) -> Json:
        """Wait until a job is in a state, or has gone."""
        end = time.monotonic() + PATIENCE
        while True:
            jobs = [job for job in self.qemu.cmd('query-jobs')
                    if job['id'] == name]
            if not jobs or jobs[0]['status'] in (*states, 'concluded'):
                return jobs[0] if jobs else {}
            self.assertLess(time.monotonic(), end, jobs)
            time.sleep(0.01)

    def gone(self, device: str) -> None:
        """Wait until a device has gone."""
        self.qemu.event_wait('DEVICE_DELETED', PATIENCE,
                             match={'data': {'device': device}})

    def export(self, node: str, name: str) -> None:
        """Export a node that is in use."""
        self.qemu.cmd('nbd-server-start', addr={'type': 'unix', 'data': {
            'path': os.path.join(self.socket_dir().name, name)}})
        self.qemu.cmd('block-export-add', {
            'type': 'nbd', 'id': 'e', 'node-name': node, 'iothread': 'io1',
            'fixed-iothread': False})

    def unplug(self, slot: int) -> None:
        """Have a reset take a device."""
        self.qemu.cmd('device_del', id=f'd{slot}')
        self.qemu.cmd('system_reset')
        self.gone(f'd{slot}')

    def check_few_descriptors(self, controller: bool, options: Json,
                              spare: int) -> None:
        """A device that gets no descriptors for its queues"""
        vm = self.launch()
        self.null('n')
        if controller:
            vm.cmd('device_add', {
                'driver': 'virtio-scsi-pci', 'id': 'd5', 'addr': '5',
                'num_queues': 4, **options})
            vm.cmd('device_add', driver='scsi-hd', id='h', drive='n',
                   bus='d5.0')
        else:
            vm.cmd('device_add', {
                'driver': 'virtio-blk-pci', 'id': 'd5', 'addr': '5',
                'drive': 'n', 'num-queues': 4, **options})
        pid = vm.get_pid()
        used = max(map(int, os.listdir(f'/proc/{pid}/fd')))
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE,
                         (used + 1 + spare, limit[1]))
        device = Virtio(vm, 5, SCSI, 6) if controller else \
            Virtio(vm, 5, queues=4)

        def work() -> None:
            if controller:
                device.scsi(bytes(6))
                device.kick(2)
                device.wait(2, 1)
            else:
                for queue in range(4):
                    device.blk(READ, 0, queue=queue)
                    device.wait(queue, 1)

        def try_work() -> None:
            try:
                work()
            except Unanswered:
                pass

        try_work()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        vm.cmd('stop')
        vm.cmd('cont')
        try_work()
        vm.cmd('system_reset')
        time.sleep(0.1)
        device.start()
        work()
        device.qtest(f'outb {device.port + 18:#x} 0')
        self.unplug(5)
        vm.cmd('object-del', id='io0')
        self.end()

    def test_few_descriptors(self) -> None:
        """No descriptors are left for the queues of a device"""
        for controller, thread, spare in (
                (False, 'IOThread', 0), (True, 'IOThread', 2),
                (False, 'mapping', 5), (True, 'mapping', 0)):
            self.log.info('%s %s %d', controller, thread, spare)
            self.check_few_descriptors(controller, THREADS[thread], spare)

    def test_task_management(self) -> None:
        """Requests are aborted and units reset during I/O"""
        for thread, options in THREADS.items():
            self.log.info('%s', thread)
            vm = self.launch()
            for number in range(2):
                self.null(f'n{number}', 0.003)
            self.null('t')
            vm.cmd('device_add', {
                'driver': 'virtio-scsi-pci', 'id': 's', 'addr': '5',
                'num_queues': 2, **options})
            for number in range(2):
                vm.cmd('device_add', {
                    'driver': 'scsi-hd', 'id': f'h{number}', 'bus': 's.0',
                    'drive': f'n{number}', 'scsi-id': number, 'lun': 0})
            device = Virtio(vm, 5, SCSI, 4)
            tag = 1
            for turn in range(8):
                first = tag
                for queue in 2, 3:
                    for number in range(6):
                        device.scsi(struct.pack('>BBLBHB', 0x28, 0, tag, 0, 1,
                                                0),
                                    queue, number % 2, tag, 512)
                        tag += 1
                    device.kick(queue)
                if turn % 3 == 1:
                    vm.cmd('blockdev-backup', {
                        'job-id': 'j', 'device': 'n0', 'target': 't',
                        'sync': 'full'})
                answers = [device.tmf(*function) for function in (
                    (0, 0, first), (1, 0), (5, 1), (6, 0, first + 2), (7, 0),
                    (4, 0))]
                device.kick(0)
                if turn % 3 == 2:
                    vm.cmd('stop')
                    vm.cmd('cont')
                for queue in 0, 2, 3:
                    device.wait(queue)
                for answer in answers:
                    self.assertNotEqual(device.qtest(f'readb {answer:#x}'),
                                        0xee)
                if turn % 3 == 1:
                    self.job('j')
            self.end()

    def test_reset_takes_device(self) -> None:
        """A reset takes a disk during I/O; then its IOThreads go at once"""
        vm = self.launch(0)
        for turn in range(8):
            options = THREADS['mapping' if turn % 2 else 'IOThread']
            for number in range(2):
                vm.cmd('object-add', {'qom-type': 'iothread',
                                      'id': f'io{number}'})
            self.null('n', 0.02)
            if turn & 2:
                vm.cmd('device_add', {
                    'driver': 'virtio-scsi-pci', 'id': 'd5', 'addr': '5',
                    'num_queues': 2, **options})
                vm.cmd('device_add', driver='scsi-hd', id='h', drive='n',
                       bus='d5.0')
                device = Virtio(vm, 5, SCSI, 4)
                device.scsi(bytes(6))
                device.kick(2)
            else:
                device = self.disk('n', 5, options, 2)
                for queue in 0, 1:
                    device.blk(turn & 1, 0, count=20, queue=queue)
            if turn & 4:
                vm.cmd('stop')
            self.unplug(5)
            for number in range(2):
                vm.cmd('object-del', id=f'io{number}')
            vm.cmd('blockdev-del', {'node-name': 'n'})
            if turn & 4:
                vm.cmd('cont')
        self.end()

    def test_media(self) -> None:
        """Media are changed, and are also in other threads"""
        for thread in 'IOThread', 'mapping':
            vm = self.launch()
            paths = [self.image(f'{thread}{number}', 'raw', '1M')
                     for number in range(2)]
            vm.cmd('device_add', {'driver': 'virtio-scsi-pci', 'id': 's',
                                  'addr': '5', **THREADS[thread]})
            vm.cmd('device_add', driver='scsi-cd', id='cd', bus='s.0')
            for turn in range(6):
                for number, path in enumerate(paths):
                    self.node(f'm{number}', path, 'raw', **{
                        'read-only': True})
                if turn % 3 == 1:
                    vm.cmd('x-blockdev-set-iothread', {
                        'node-name': 'm1', 'iothread': 'io1'})
                for number in range(2):
                    vm.cmd('blockdev-open-tray', id='cd', force=True)
                    vm.cmd('blockdev-remove-medium', id='cd')
                    answer = vm.qmp('blockdev-insert-medium', {
                        'id': 'cd', 'node-name': f'm{number}'})
                    if turn % 3 != 1:
                        self.assertNotIn('error', answer)
                    vm.qmp('blockdev-close-tray', id='cd')
                    if turn % 3 != 1 and number == 0:
                        self.export('m0', f'{thread}{turn}')
                vm.cmd('blockdev-change-medium', id='cd', filename=paths[0],
                       format='raw', force=True)
                vm.cmd('eject', id='cd', force=True)
                if turn % 3 != 1:
                    vm.cmd('nbd-server-stop')
                for number in range(2):
                    vm.cmd('blockdev-del', {'node-name': f'm{number}'})
            vm.cmd('device_del', id='cd')
            self.gone('cd')
            self.end()

    def test_grouped_backups(self) -> None:
        """Backups of several disks in a transaction end together"""
        for turn in range(6):
            vm = self.launch(3)
            disks: List[Virtio] = []
            for number in range(3):
                self.null(f's{number}', 0.0001)
                target: Json = {'driver': 'null-co', 'size': 64 * MIB,
                                'read-zeroes': True}
                if number == 1 and turn % 2 == 0:
                    target = {'driver': 'blkdebug', 'image': target,
                              'inject-error': [{
                                  'event': 'none', 'iotype': 'write',
                                  'errno': 28, 'sector': 4096,
                                  'once': True}]}
                vm.cmd('blockdev-add', {'node-name': f't{number}', **target})
                disks.append(self.disk(f's{number}', 5 + number, {
                    'iothread': f'io{number}'}))
            vm.cmd('transaction', {
                'properties': {'completion-mode': 'grouped'},
                'actions': [{'type': 'blockdev-backup', 'data': {
                    'job-id': f'j{number}', 'device': f's{number}',
                    'target': f't{number}', 'sync': 'full',
                    'speed': 32 * MIB * (number + 1),
                    'on-target-error': 'report' if turn % 3 else 'stop'}}
                    for number in range(3)]})
            for disk in disks:
                disk.blk(WRITE, 0, count=20)
            if turn in (1, 2):
                vm.qmp('block-job-cancel', device=f'j{turn}',
                       force=turn == 2)
                for number in range(3):
                    self.job(f'j{number}')
                for disk in disks:
                    disk.wait()
            self.end()

    def test_snapshot_with_memory(self) -> None:
        """Memory to a file and a snapshot of the disks, while stopped"""
        for thread, options in THREADS.items():
            vm = self.launch()
            path = self.image(f'{thread}-s0')
            self.node('n0', path)
            disk = self.disk('n0', 5, options, 2)
            for turn in range(1, 3):
                for queue in 0, 1:
                    disk.blk(WRITE, turn * 2048, count=20, queue=queue)
                vm.cmd('stop')
                memory = self.scratch_file(f'{thread}-memory{turn}')
                vm.cmd('migrate', uri=f'file:{memory}')
                end = time.monotonic() + PATIENCE
                while vm.cmd('query-migrate')['status'] != 'completed':
                    self.assertLess(time.monotonic(), end)
                    time.sleep(0.01)
                path = self.image(f'{thread}-s{turn}', backing=path)
                self.node(f'n{turn}', path, backing=None)
                vm.cmd('transaction', actions=[{
                    'type': 'blockdev-snapshot', 'data': {
                        'node': f'n{turn - 1}', 'overlay': f'n{turn}'}}])
                vm.cmd('cont')
                for queue in 0, 1:
                    disk.wait(queue)
                    disk.io(WRITE, turn * 4096, count=20, queue=queue)
            self.end()

    def test_internal_snapshots(self) -> None:
        """snapshot-save, -load and -delete during I/O"""
        for thread in 'IOThread', 'mapping':
            vm = self.launch()
            disks = []
            for number in range(2):
                self.node(f'n{number}', self.image(f'{thread}-i{number}'))
                disks.append(self.disk(f'n{number}', 5 + number,
                                       THREADS[thread], 2))

            def snapshot(what: str, **options: str) -> None:
                self.qemu.cmd(f'snapshot-{what}', {
                    'job-id': what, 'tag': 't', 'devices': ['n0', 'n1'],
                    **options})
                self.assertNotIn('error', self.job(what))
                self.qemu.cmd('job-dismiss', id=what)

            for turn in range(2):
                for disk in disks:
                    for queue in 0, 1:
                        disk.blk(WRITE, turn * 512, count=20, queue=queue)
                snapshot('save', vmstate='n0')
                for disk in disks:
                    for queue in 0, 1:
                        disk.wait(queue)
                snapshot('load', vmstate='n0')
                if vm.cmd('query-status')['status'] != 'running':
                    vm.cmd('cont')
                for disk in disks:
                    disk.start()
                    disk.io(WRITE, 0, count=10)
                snapshot('delete')
            self.end()

    def test_stream_queries(self) -> None:
        """Nodes are queried while a stream ends, and is not dismissed"""
        for thread in 'main loop', 'IOThread':
            vm = self.launch()
            base = self.image(f'{thread}-base')
            self.node('top', self.image(f'{thread}-top', backing=base))
            self.disk('top', 5, THREADS[thread])
            for _ in range(2):
                vm.cmd('block-stream', {'job-id': 's', 'device': 'top',
                                        'auto-dismiss': False})
                end = time.monotonic() + PATIENCE
                while vm.cmd('query-jobs')[0]['status'] != 'concluded':
                    vm.cmd('query-named-block-nodes')
                    self.assertLess(time.monotonic(), end)
                vm.cmd('query-named-block-nodes', flat=True)
                vm.cmd('query-blockstats', {'query-nodes': True})
                vm.cmd('x-debug-query-block-graph')
                vm.cmd('job-dismiss', id='s')
            self.end()

    def test_active_mirror_of_zeroes(self) -> None:
        """Small writes of zeroes are mirrored as the guest makes them"""
        for thread in 'main loop', 'IOThread':
            vm = self.launch()
            paths = [self.image(f'{thread}-{name}', form, '16M')
                     for name, form in (('s', 'raw'), ('t', 'qcow2'))]
            for name, path, form in zip('st', paths, ('raw', 'qcow2')):
                self.node(name, path, form, **{'discard': 'unmap',
                                               'detect-zeroes': 'unmap'})
            disk = self.disk('s', 5, THREADS[thread])
            disk.qtest(f'memset {disk.memory + 0x210000:#x} 0x8000 0x5a')
            for turn in range(2):
                vm.cmd('blockdev-mirror', {
                    'job-id': 'm', 'device': 's', 'target': 't',
                    'sync': 'full', 'copy-mode': 'write-blocking',
                    'granularity': 65536})
                for number in range(20):
                    size = (512, 1024, 4096, 512 * 63)[number % 4]
                    sector = (turn * 991 + number * 17 if number % 7 else
                              16 * 2048 - size // 512)
                    answer = disk.put(0, struct.pack('<LLQ', WRITE, 0, sector),
                                      1, size, data=0x10000 * (number % 2))
                    disk.kick()
                    disk.wait()
                    disk.check([answer])
                self.job('m', 'ready')
                for number in range(10):
                    disk.io(WRITE, 16 * 2048 - 1 - number, size=512)
                vm.cmd('block-job-cancel', device='m')
                self.job('m')
            self.end()
            run([self.qemu_img, 'compare', '-q', '-f', 'raw', '-F', 'qcow2',
                 *paths], check=True)

    def test_deep_linux_aio(self) -> None:
        """A backup with aio=native where requests end at once"""
        names = [f'/dev/shm/qemu-test-{os.getpid()}-{name}' for name in 'st']
        try:
            for name in names:
                with open(name, 'wb') as file:
                    file.write(bytes([1]) * 32 * MIB)
                    self.addCleanup(os.unlink, name)
            os.close(os.open(names[0], os.O_RDWR | os.O_DIRECT))
        except OSError as error:
            self.skipTest(f'no O_DIRECT on a tmpfs: {error}')
        for thread in 'main loop', 'IOThread':
            vm = self.launch()
            for name, path in zip('st', names):
                answer = vm.qmp('blockdev-add', {
                    'driver': 'file', 'node-name': name, 'filename': path,
                    'aio': 'native', 'cache': {'direct': True}})
                if 'error' in answer:
                    self.skipTest(answer['error']['desc'])
            self.disk('s', 5, THREADS[thread])
            for chunk, workers in ((65536, 64), (65536, 1)):
                vm.cmd('blockdev-backup', {
                    'job-id': 'b', 'device': 's', 'target': 't',
                    'sync': 'full', 'x-perf': {
                        'max-chunk': chunk, 'max-workers': workers}})
                self.job('b')
            self.end()

    def test_graph_changes(self) -> None:
        """Nodes come, move and go, and QEMU ends during a backup"""
        for _ in range(2):
            vm = self.launch()
            for turn in range(4):
                thread = f'io{turn % 2}'
                self.node('q', self.image('graph', size='16M'))
                vm.cmd('x-blockdev-set-iothread', {
                    'node-name': 'q', 'iothread': thread})
                disk = self.disk('q', 5, {'iothread': thread})
                self.null('t')
                vm.cmd('blockdev-add', {
                    'driver': 'null-co', 'node-name': 't2',
                    'size': 16 * MIB, 'read-zeroes': True})
                vm.cmd('blockdev-backup', {
                    'job-id': 'b', 'device': 'q', 'target': 't2',
                    'sync': 'full'})
                disk.blk(WRITE, 0, count=20)
                if turn == 3:
                    break
                self.job('b')
                self.unplug(5)
                for name in 'q', 't', 't2':
                    vm.cmd('blockdev-del', {'node-name': name})
            self.end()

    def test_throttled(self) -> None:
        """A group of throttled disks is drained, and its members move"""
        vm = self.launch()
        limits = {'iops': 2000, 'iops_rd': 0, 'iops_wr': 0,
                  'bps': 0, 'bps_rd': 0, 'bps_wr': 0, 'group': 'g'}
        disks = []
        for slot in range(5, 9):
            self.null(f'n{slot}')
            disks.append(self.disk(f'n{slot}', slot, {'iothread': 'io0'}))
            vm.cmd('block_set_io_throttle', {
                'id': f'/machine/peripheral/d{slot}/virtio-backend', **limits})
        vm.cmd('object-add', {
            'qom-type': 'throttle-group', 'id': 'tg',
            'limits': {'iops-total': 2000}})
        for number in range(4):
            vm.cmd('blockdev-add', {
                'driver': 'throttle', 'node-name': f't{number}',
                'throttle-group': 'tg', 'file': {
                    'driver': 'null-co', 'size': MIB}})
        for turn in range(800):
            vm.cmd('stop')
            vm.cmd('cont')
            vm.cmd('x-blockdev-set-iothread', {
                'node-name': f't{turn % 4}', 'iothread': f'io{turn // 4 % 2}'})
            if turn % 100 == 0:
                for disk in disks:
                    disk.blk(WRITE, 0)
        self.end()


if __name__ == '__main__':
    QemuSystemTest.main()
