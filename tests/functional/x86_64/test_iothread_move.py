#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Disks that move to other IOThreads while their driver uses them

What counts is that each request is answered once and does what it has to, and
that everything that shows where a disk runs agrees.  QEMU_TEST_MOVES says how
many random moves are made; the default is for a quick run.  QEMU_TEST_SLOWER
says how many times as long all may take, as with a sanitizer.
"""

import os
import random
import signal
import struct
import time
from typing import Any, Dict, List, Optional, Tuple

from qemu.machine.qtest import QEMUQtestMachine
from qemu_test import QemuSystemTest
from qemu_test.linuxguest import GuestConsole, GuestMissing, guest_args
from qemu_test.virtioqtest import (BLK, DEPTH, FLUSH, READ, SCSI, WRITE,
                                   Unanswered, Virtio)

Json = Dict[str, Any]
Mapping = List[Json]

MOVES = int(os.environ.get('QEMU_TEST_MOVES', '120'))
SLOWER = int(os.environ.get('QEMU_TEST_SLOWER', '1'))
# How long a job, an unplug or QEMU's end may take, in seconds
PATIENCE = 20 * SLOWER
THREADS = ['io0', 'io1', 'io2']
QUEUES = 4
# Requests to each queue at once
BATCH = 4
SECTOR = 512
LUN = bytes([1, 0, 0x40, 0, 0, 0, 0, 0])
LAYOUTS: List[Json] = [
    {}, {'iothread': 'io0'}, {'iothread-vq-mapping': [
        {'iothread': 'io0'}, {'iothread': 'io1'}]}]
EVENT = 'IOTHREAD_HOLDERS_CHANGED'

# What a guest's programs do: write through both CPUs, read it back, compare.
# The result is in a file, as the console is for other things meanwhile.
VERIFY = (
    'verify() { for part in 1 2; do (turn=0; while [ ! -e /tmp/end ]; do '
    'turn=$((turn + 1)); at=$((part * 16 + turn % 16)); '
    'head -c 65536 /dev/urandom >/tmp/w$2$part; '
    'taskset -c $((part - 1)) dd if=/tmp/w$2$part of=$1 bs=64k seek=$at '
    'oflag=direct conv=notrunc 2>/dev/null && '
    'taskset -c $((2 - part)) dd if=$1 of=/tmp/r$2$part bs=64k skip=$at '
    'count=1 iflag=direct 2>/dev/null && '
    'cmp /tmp/w$2$part /tmp/r$2$part || break; done; '
    'if [ -e /tmp/end ]; then echo good $turn; else echo bad 0; fi '
    '>/tmp/result$2$part) & done; }')


class Disk:
    """A device with four queues, and what was written to it."""

    def __init__(self, vm: QEMUQtestMachine, name: str, slot: int,
                 scsi: bool) -> None:
        self.name = name
        self.scsi = scsi
        self.first = 2 if scsi else 0
        self.device = Virtio(vm, slot, SCSI if scsi else BLK,
                             QUEUES + self.first)
        self.data: Dict[int, bytes] = {}
        self.writes: List[int] = []
        self.attention()

    def restart(self) -> None:
        """What a driver does after a reset."""
        self.device.start()
        self.writes = []
        self.attention()

    def attention(self) -> None:
        """Take what a SCSI disk reports first."""
        if self.scsi:
            for _ in range(3):
                self.device.scsi(bytes(6))
                self.device.kick(2)
                self.device.wait(2)

    def start_writes(self, seed: int) -> None:
        """Write to all queues."""
        assert not self.writes
        for queue in range(QUEUES):
            for number in range(BATCH):
                where = queue * BATCH + number
                data = struct.pack('<HHL', seed & 0xffff, where,
                                   seed * 31 + where) * (SECTOR // 8)
                offset = where * SECTOR
                self.device.write(self.device.memory + 0x200000 + offset,
                                  data)
                self.data[where] = data
                self.writes.append(self.put(queue, where, True, offset))
            self.device.kick(self.first + queue)

    def put(self, queue: int, where: int, write: bool, offset: int) -> int:
        """Queue a request."""
        if not self.scsi:
            return self.device.put(queue, struct.pack(
                '<LLQ', WRITE if write else READ, 0, where), 1, SECTOR,
                not write, offset)
        request = struct.pack(
            '<8sQBBB32s', LUN, where, 0, 0, 0,
            struct.pack('>BBLBHB', 0x2a if write else 0x28, 0, where, 0, 1,
                        0))
        if write:
            return self.device.put(2 + queue, request, 108, SECTOR, False,
                                   offset)
        # The response comes before the data
        return self.device.put(2 + queue, request, SECTOR, 108, True, offset)

    def wait(self) -> None:
        """Wait until each request is answered once, and well."""
        for queue in range(QUEUES):
            self.device.wait(self.first + queue, PATIENCE)
        if self.scsi:
            # the status and the response
            for answer in self.writes:
                result = self.device.qtest(f'readw {answer + 10:#x}')
                assert result == 0, (self.name, result)
        else:
            self.device.check(self.writes)
        self.writes = []
        status = self.device.qtest(f'inb {self.device.port + 18:#x}')
        assert status == 7, (self.name, status)

    def memory(self, address: int) -> bytes:
        """A sector in guest memory."""
        line = self.device.vm.qtest(f'read {address:#x} {SECTOR}')
        return bytes.fromhex(line.split()[1][2:])

    def verify(self) -> None:
        """Wait for what was written, and read it."""
        self.wait()
        answers = {}
        for where in self.data:
            offset = 0x80000 + where * SECTOR
            address = self.device.memory + 0x200000 + offset
            self.device.qtest(f'memset {address:#x} {SECTOR} 0x55')
            answers[where] = self.put(where // BATCH, where, False, offset)
        for queue in range(QUEUES):
            self.device.kick(self.first + queue)
        self.wait()
        for where, data in self.data.items():
            address = answers[where] if self.scsi else \
                self.device.memory + 0x280000 + where * SECTOR
            assert self.memory(address) == data, (self.name, where)


class IOThreadMove(QemuSystemTest):
    """QEMUs without a guest, and a driver in its place"""

    def setUp(self) -> None:
        super().setUp()
        # QMP has no timeout of its own: a QEMU that hangs ends the program
        signal.alarm((100 + MOVES) * SLOWER)
        self.set_machine('pc')
        self.require_device('virtio-scsi-pci')
        self.started: List[QEMUQtestMachine] = []
        self.layout: Dict[str, Mapping] = {}

    def tearDown(self) -> None:
        for vm in self.started:
            vm.shutdown(hard=True)
        signal.alarm(0)
        super().tearDown()

    def launch(self, *args: str) -> QEMUQtestMachine:
        """Start a QEMU with IOThreads."""
        # pylint: disable=attribute-defined-outside-init
        self.qemu = QEMUQtestMachine(self.qemu_bin,
                                     base_temp_dir=self.workdir)
        self.qemu.set_machine('pc')
        self.qemu.add_args('-nodefaults', *args)
        for thread in THREADS:
            self.qemu.add_args('-object', f'iothread,id={thread}')
        self.qemu.launch()
        self.started.append(self.qemu)
        return self.qemu

    def end(self) -> None:
        """Have QEMU end."""
        self.qemu.cmd('quit')
        self.qemu.wait(PATIENCE)
        self.assertEqual(self.qemu.exitcode(), 0)

    def file(self, name: str) -> None:
        """Open a file as a node."""
        path = self.scratch_file(name)
        with open(path, 'wb') as image:
            image.truncate(1 << 20)
        self.qemu.cmd('blockdev-add', {
            'driver': 'raw', 'node-name': name,
            'file': {'driver': 'file', 'filename': path,
                     'locking': 'off'}})

    def null(self, name: str) -> None:
        """Create a node without data."""
        self.qemu.cmd('blockdev-add', {
            'driver': 'null-co', 'node-name': name, 'size': 1 << 20,
            'read-zeroes': True})

    def plug(self, name: str, node: str, slot: int, scsi: bool,
             options: Json, policy: Optional[Json] = None) -> Disk:
        """Plug a disk, and set it up."""
        if scsi:
            self.qemu.cmd('device_add', {
                'driver': 'virtio-scsi-pci', 'id': name, 'addr': f'{slot:x}',
                'num_queues': QUEUES, **options})
            self.qemu.cmd('device_add', {
                'driver': 'scsi-hd', 'id': f'{name}-h', 'drive': node,
                'bus': f'{name}.0', **(policy or {})})
        else:
            self.qemu.cmd('device_add', {
                'driver': 'virtio-blk-pci', 'id': name, 'drive': node,
                'addr': f'{slot:x}', 'num-queues': QUEUES, **options,
                **(policy or {})})
        return Disk(self.qemu, name, slot, scsi)

    def unplug(self, name: str) -> None:
        """Have a reset take a device."""
        self.qemu.cmd('device_del', id=name)
        self.qemu.cmd('system_reset')
        self.assertTrue(self.qemu.event_wait(
            'DEVICE_DELETED', PATIENCE, match={'data': {'device': name}}))

    def move(self, name: str, mapping: Mapping) -> None:
        """Move a disk, and see that it says so."""
        self.qemu.cmd('set-iothread-vq-mapping', {
            'device': name, 'iothread-vq-mapping': mapping})
        self.layout[name] = mapping
        self.check(name)

    def refuse(self, name: str, mapping: Mapping, message: str) -> None:
        """A move that is not possible changes nothing."""
        before = self.shown(name)
        answer = self.qemu.qmp('set-iothread-vq-mapping', {
            'device': name, 'iothread-vq-mapping': mapping})
        self.assertIn('error', answer, mapping)
        self.assertRegex(answer['error']['desc'], message)
        self.assertEqual(self.shown(name), before)

    def shown(self, name: str) -> Tuple[Any, ...]:
        """Whatever tells where a device runs."""
        return (self.qemu.cmd('query-iothreads'), *(self.qemu.cmd(
            'qom-get', path=f'/machine/peripheral/{name}', property=prop)
            for prop in ('iothread', 'iothread-vq-mapping')))

    def holders(self, key: str, name: str) -> Dict[str, Any]:
        """In which IOThreads something is, and the virtqueues there."""
        return {info['id']: holder.get('vqs')
                for info in self.qemu.cmd('query-iothreads')
                for holder in info['holders'] if holder.get(key) == name}

    @staticmethod
    def vqs(mapping: Mapping) -> Dict[str, List[int]]:
        """Which virtqueues run where."""
        return {item['iothread']: item.get('vqs') or
                list(range(number, QUEUES, len(mapping)))
                for number, item in enumerate(mapping)}

    def check(self, name: str, node: str = '') -> None:
        """See that all that shows where a device runs agrees."""
        mapping = self.layout[name]
        self.assertEqual(self.shown(name)[1:], ('', mapping))
        self.assertEqual(self.holders('device', name), self.vqs(mapping))
        if node:
            self.assertEqual(
                list(self.holders('node-name', node)),
                [thread for thread, vqs in self.vqs(mapping).items()
                 if 0 in vqs])

    def test_layouts(self) -> None:
        """From each way to start a device to each other, and back"""
        for scsi in False, True:
            for options in LAYOUTS:
                vm = self.launch()
                self.file('n')
                # One that the driver has not started yet
                self.null('m')
                vm.cmd('device_add', {
                    'driver': 'virtio-blk-pci', 'id': 'e', 'drive': 'm',
                    'num-queues': QUEUES, **options})
                self.move('e', [{'iothread': 'io2'}])
                self.assertEqual(self.holders('node-name', 'm'), {})

                disk = self.plug('d', 'n', 5, scsi, options)
                for seed, mapping in enumerate((
                        [{'iothread': 'io1'}], [],
                        [{'iothread': 'io2', 'vqs': [3, 0]},
                         {'iothread': 'io0', 'vqs': [1, 2]}],
                        [{'iothread': 'io1'}, {'iothread': 'io2'}],
                        [{'iothread': 'io1'}])):
                    disk.start_writes(seed)
                    self.move('d', mapping)
                    disk.verify()
                    self.check('d', 'n')
                # Nothing is left in what it has left
                self.move('e', [])
                for thread in 'io0', 'io2':
                    vm.cmd('object-del', id=thread)
                answer = vm.qmp('object-del', id='io1')
                self.assertIn("device 'd'", answer['error']['desc'])

                # A stopped machine, also with a new driver
                vm.cmd('stop')
                self.move('d', [])
                vm.cmd('object-del', id='io1')
                vm.cmd('object-add', {'qom-type': 'iothread', 'id': 'io0'})
                self.move('d', [{'iothread': 'io0'}])
                vm.cmd('cont')
                self.check('d', 'n')
                disk.start_writes(9)
                disk.verify()
                vm.cmd('system_reset')
                self.assertTrue(vm.event_wait('RESET', PATIENCE))
                self.move('d', [])
                self.move('d', [{'iothread': 'io0'}])
                disk.restart()
                disk.start_writes(10)
                disk.verify()
                self.check('d', 'n')
                self.unplug('d')
                vm.cmd('object-del', id='io0')
                self.end()

    def test_bad_input(self) -> None:
        """What cannot be a device's property, or is no such device"""
        vm = self.launch('-device', 'virtio-rng-pci,id=rng',
                         '-device', 'virtio-balloon-pci,id=balloon,iothread='
                         'io0,free-page-hint=on')
        self.null('n')
        self.null('m')
        self.null('o')
        for scsi in False, True:
            name = 's' if scsi else 'd'
            self.plug(name, 'n' if scsi else 'm', 5 + scsi, scsi,
                      {'iothread': 'io0'})
            for mapping, message in (
                    ([{'iothread': 'io9'}],
                     'IOThread "io9" object does not exist'),
                    ([{'iothread': 'd'}], 'does not exist'),
                    ([{'iothread': ''}], 'does not exist'),
                    ([{'iothread': 'io1'}, {'iothread': 'io1'}],
                     'duplicate IOThread name "io1"'),
                    ([{'iothread': 'io1', 'vqs': [0, 1, 2, 4]}],
                     'vq index 4 .* must be less than num_queues 4'),
                    ([{'iothread': 'io1', 'vqs': [0, 1]}],
                     'missing vq 2 IOThread assignment'),
                    ([{'iothread': 'io1', 'vqs': [0, 1, 2]},
                      {'iothread': 'io2', 'vqs': [2, 3]}],
                     'cannot assign vq 2 .* already assigned'),
                    ([{'iothread': 'io1', 'vqs': [0, 1, 2, 3]},
                      {'iothread': 'io2'}], 'or none of them must have it')):
                self.refuse(name, mapping, message)
                # The same words as for the property
                answer = vm.qmp('device_add', {
                    'driver': 'virtio-scsi-pci', 'id': 'x',
                    'num_queues': QUEUES, 'iothread-vq-mapping': mapping})
                self.assertRegex(answer['error']['desc'], message)
            vm.cmd('device_add', {
                'driver': 'virtio-scsi-pci', 'id': f'{name}-off',
                'ioeventfd': False})
            self.layout[f'{name}-off'] = []
            self.refuse(f'{name}-off', [{'iothread': 'io1'}],
                        'ioeventfd is required')
            self.move(f'{name}-off', [])
        for name, message in (('nobody', "'nobody' not found"),
                              ('rng', 'no virtqueues that can move'),
                              ('balloon', 'no virtqueues that can move'),
                              ('s-h', 'no virtqueues that can move'),
                              ('/machine', 'not a device'),
                              ('', 'no|not')):
            answer = vm.qmp('set-iothread-vq-mapping', {
                'device': name, 'iothread-vq-mapping': []})
            self.assertRegex(answer['error']['desc'], message)
        # By a path, of the transport or of what is behind it
        for path in ('/machine/peripheral/d',
                     '/machine/peripheral/d/virtio-backend'):
            vm.cmd('set-iothread-vq-mapping', {
                'device': path, 'iothread-vq-mapping': [{'iothread': 'io1'}]})
            self.layout['d'] = [{'iothread': 'io1'}]
            self.check('d')
        # A guest may ignore this, or take its time
        vm.cmd('device_del', id='d')
        self.move('d', [])
        self.end()

    def test_hmp(self) -> None:
        """The command for people"""
        vm = self.launch()
        self.null('n')
        self.plug('d', 'n', 5, False, {})

        def hmp(line: str) -> str:
            text: str = vm.cmd('human-monitor-command', {
                'command-line': f'set_iothread_vq_mapping {line}'})
            return text

        for line, mapping in (
                ('d io0', [{'iothread': 'io0'}]),
                ('d io0:1,2  io1:0,3', [{'iothread': 'io0', 'vqs': [1, 2]},
                                        {'iothread': 'io1', 'vqs': [0, 3]}]),
                ('d', [])):
            self.assertEqual(hmp(line), '')
            self.layout['d'] = mapping
            self.check('d', 'n')
        for line, message in (('d io0:', 'no virtqueue'),
                              ('d io0:1,x', 'no virtqueue'),
                              ('d io0:-1', 'no virtqueue'),
                              ('d io0:65536', 'no virtqueue'),
                              ('d io0 io9', 'does not exist'),
                              ('e io0', 'not found')):
            self.assertIn(message, hmp(line))
            self.check('d', 'n')
        self.end()

    def test_event(self) -> None:
        """A client hears of it, but not too often"""
        vm = self.launch()
        self.null('n')

        def heard() -> List[str]:
            vm.cmd('query-version')
            names = sorted(event['data']['id']
                           for event in vm.get_qmp_events()
                           if event['event'] == EVENT)
            return names

        def second() -> None:
            # Two, as what came meanwhile counts from when it was sent
            for _ in range(2):
                vm.qtest('clock_step 1000000000')
            heard()

        self.assertEqual(heard(), [])
        self.plug('d', 'n', 5, False, {'iothread': 'io0'})
        self.assertEqual(heard(), ['io0'])
        # Its node came later: one more, but not before its time
        vm.qtest('clock_step 500000000')
        self.assertEqual(heard(), [])
        vm.qtest('clock_step 600000000')
        self.assertEqual(heard(), ['io0'])
        second()
        self.move('d', [{'iothread': 'io1'}])
        self.assertEqual(heard(), ['io0', 'io1'])
        second()
        self.refuse('d', [{'iothread': 'io2'}, {'iothread': 'io2'}],
                    'duplicate')
        self.assertEqual(heard(), [])
        self.unplug('d')
        self.assertEqual(heard(), ['io1'])
        second()
        vm.cmd('x-blockdev-set-iothread', {'node-name': 'n',
                                           'iothread': 'io2'})
        self.assertEqual(heard(), ['io2'])
        second()
        vm.cmd('nbd-server-start', addr={'type': 'unix', 'data': {
            'path': os.path.join(self.socket_dir().name, 'nbd')}})
        vm.cmd('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name':
                                    'n', 'iothread': 'io1'})
        self.assertEqual(heard(), ['io1', 'io2'])
        second()
        vm.cmd('nbd-server-stop')
        self.assertIn('io1', heard())
        self.end()

    def test_refused(self) -> None:
        """Somebody else keeps a node where it is"""
        vm = self.launch()
        vm.cmd('nbd-server-start', addr={'type': 'unix', 'data': {
            'path': os.path.join(self.socket_dir().name, 'nbd')}})
        for scsi in False, True:
            name, node = ('s', 'm') if scsi else ('d', 'n')
            self.file(node)
            disk = self.plug(name, node, 5 + scsi, scsi, {'iothread': 'io0'})
            disk.start_writes(1)
            if scsi:
                # One of its disks can move, the other cannot
                self.null('other')
                vm.cmd('device_add', driver='scsi-hd', id='s-2', lun=1,
                       drive='other', bus='s.0')
            vm.cmd('block-export-add', {
                'type': 'nbd', 'id': 'e', 'node-name': 'other' if scsi else
                node, 'name': 'e', 'iothread': 'io0', 'fixed-iothread': True})
            self.refuse(name, [{'iothread': 'io1'}], "block export 'e'")
            # The first queue, and so the node, stays
            self.move(name, [{'iothread': 'io0', 'vqs': [0]},
                             {'iothread': 'io2', 'vqs': [1, 2, 3]}])
            disk.verify()
            vm.cmd('block-export-del', id='e')
            self.assertTrue(vm.event_wait('BLOCK_EXPORT_DELETED', PATIENCE))
            self.move(name, [{'iothread': 'io1'}])
            disk.start_writes(2)
            disk.verify()
            self.check(name, node)
        self.null('x')
        vm.cmd('device_add', {
            'driver': 'virtio-blk-pci', 'id': 'a', 'drive': 'x', 'addr': '8',
            'iothread': 'io0', 'share-rw': True})
        Virtio(vm, 8).io(READ, 0)
        vm.cmd('device_add', {'driver': 'virtio-scsi-pci', 'id': 'b',
                              'iothread': 'io0'})
        vm.cmd('device_add', {'driver': 'scsi-hd', 'id': 'b-h', 'bus': 'b.0',
                              'drive': 'x', 'share-rw': True})
        self.refuse('a', [{'iothread': 'io1'}], "block device 'b-h'")
        self.refuse('b', [{'iothread': 'io1'}], "block device '.*/a/.*'")
        Virtio(vm, 8).io(READ, 0)
        vm.cmd('device_del', id='b-h')
        # It lets go of its node some time after it has gone
        end = time.monotonic() + PATIENCE
        while 'error' in vm.qmp('set-iothread-vq-mapping', {
                'device': 'a', 'iothread-vq-mapping': [{'iothread': 'io1'}]}):
            self.assertLess(time.monotonic(), end)
        self.assertEqual(self.holders('device', 'a'), {'io1': [0]})
        self.assertEqual(self.holders('node-name', 'x'), {'io1': None})
        Virtio(vm, 8).io(READ, 0)
        self.end()

    def pending_mirror(self, vm: QEMUQtestMachine) -> None:
        """Have a job drain its source until it is finalized."""
        vm.cmd('blockdev-mirror', {
            'job-id': 'm', 'device': 'n', 'target': 't', 'sync': 'none',
            'auto-finalize': False})
        for status in 'ready', 'pending':
            end = time.monotonic() + PATIENCE
            while vm.cmd('query-jobs')[0]['status'] != status:
                self.assertLess(time.monotonic(), end)
            if status == 'ready':
                vm.cmd('job-complete', id='m')

    def finish(self, vm: QEMUQtestMachine) -> None:
        """Wait until there is no job."""
        end = time.monotonic() + PATIENCE
        while vm.cmd('query-jobs'):
            self.assertLess(time.monotonic(), end)

    def test_held(self) -> None:
        """A job that is about to end holds requests back"""
        for scsi in False, True:
            vm = self.launch()
            self.file('n')
            self.null('t')
            disk = self.plug('d', 'n', 5, scsi, {'iothread': 'io0'})
            self.pending_mirror(vm)
            disk.start_writes(1)
            # These wait in the rings
            self.move('d', [{'iothread': 'io1'}, {'iothread': 'io2'}])
            self.move('d', [])
            self.move('d', [{'iothread': 'io1'}])
            with self.assertRaises(Unanswered):
                disk.device.wait(disk.first, 0.05)
            vm.cmd('job-finalize', id='m')
            # The target has no data: it is only about the answers
            disk.wait()
            self.check('d', 't')
            self.end()

    def test_held_in_block_layer(self) -> None:
        """Requests that wait in the block layer for the end of a job"""
        for scsi in False, True:
            vm = self.launch()
            self.null('t')
            path = self.scratch_file('held')
            with open(path, 'wb') as image:
                image.truncate(1 << 20)
            vm.cmd('blockdev-add', {
                'driver': 'blkdebug', 'node-name': 'n',
                'image': {'driver': 'file', 'filename': path},
                'inject-error': [{'event': 'none', 'iotype': 'write',
                                  'once': True}]})
            disk = self.plug('d', 'n', 5, scsi, {'iothread': 'io0'},
                             {'werror': 'stop'})
            disk.start_writes(1)
            self.assertTrue(vm.event_wait('STOP', PATIENCE))
            self.pending_mirror(vm)
            vm.cmd('cont')
            self.refuse('d', [{'iothread': 'io1'}], 'held back')
            vm.cmd('job-finalize', id='m')
            self.finish(vm)
            self.move('d', [{'iothread': 'io1'}])
            disk.wait()
            self.end()

    def test_steps(self) -> None:
        """A request of several steps ends before its disk moves"""
        vm = self.launch()
        vm.cmd('blockdev-add', {
            'driver': 'null-co', 'node-name': 'n', 'size': 64 << 20,
            'latency-ns': 20000000})
        disk = self.plug('d', 'n', 5, True, {'iothread': 'io0'})
        for thread in 'io1', 'io2', 'io0':
            # WRITE SAME of 4 MiB, which is done in parts
            answer = disk.device.put(2, struct.pack(
                '<8sQBBB32s', LUN, 1, 0, 0, 0,
                struct.pack('>BBQLBB', 0x93, 0, 0, 8192, 0, 0)), 108, SECTOR)
            disk.device.write(disk.device.memory + 0x200000, b'x' * SECTOR)
            disk.device.kick(2)
            self.move('d', [{'iothread': thread}])
            disk.device.wait(2)
            self.assertEqual(disk.device.qtest(f'readw {answer + 10:#x}'), 0)
        self.end()

    def test_others_go_on(self) -> None:
        """A slow request of one disk does not hold up the move of another"""
        vm = self.launch()
        vm.cmd('blockdev-add', {
            'driver': 'null-co', 'node-name': 'slow', 'size': 1 << 20,
            'latency-ns': 4000000000})
        self.null('m')
        self.null('n')
        slow = self.plug('slow', 'slow', 5, False, {'iothread': 'io0'})
        self.plug('d', 'm', 6, False, {'iothread': 'io0'})
        self.plug('s', 'n', 7, True, {'iothread': 'io0'})
        slow.device.blk(READ, 0)
        start = time.monotonic()
        for name in 'd', 's':
            self.move(name, [{'iothread': 'io1'}])
        taken = time.monotonic() - start
        with self.assertRaises(Unanswered):
            slow.device.wait(0, 0)
        self.assertLess(taken, 3)
        slow.device.wait(0)
        self.end()

    def test_retry(self) -> None:
        """Requests that failed are tried again where the disk now is"""
        for scsi in False, True:
            for moves in ([[{'iothread': 'io1'}]],
                          [[], [{'iothread': 'io0'}, {'iothread': 'io1'}]]):
                vm = self.launch()
                path = self.scratch_file('retry')
                with open(path, 'wb') as image:
                    image.truncate(1 << 20)
                vm.cmd('blockdev-add', {
                    'driver': 'blkdebug', 'node-name': 'n',
                    'image': {'driver': 'file', 'filename': path},
                    'inject-error': [{'event': 'none', 'iotype': 'write',
                                      'once': True}
                                     for _ in range(3)]})
                disk = self.plug('d', 'n', 5, scsi, {'iothread': 'io0'},
                                 {'werror': 'stop'})
                disk.start_writes(1)
                self.assertTrue(vm.event_wait('STOP', PATIENCE))
                for mapping in moves:
                    self.move('d', mapping)
                for thread in THREADS:
                    if thread not in self.vqs(moves[-1]):
                        vm.cmd('object-del', id=thread)
                vm.cmd('cont')
                disk.verify()
                self.check('d')
                self.end()

    def test_migration(self) -> None:
        """To a QEMU that was started with another layout"""
        state = self.scratch_file('state')
        self.launch()
        self.file('n')
        disk = self.plug('d', 'n', 5, False, {'iothread': 'io0'})
        disk.start_writes(1)
        self.move('d', [{'iothread': 'io1'}, {'iothread': 'io2'}])
        self.qemu.cmd('migrate', uri=f'file:{state}')
        self.move('d', [{'iothread': 'io2'}])
        self.wait_migrated()
        self.qemu.cmd('quit')
        self.qemu.wait(PATIENCE)

        vm = self.launch('-incoming', 'defer')
        self.file_again('n')
        vm.cmd('device_add', {
            'driver': 'virtio-blk-pci', 'id': 'd', 'drive': 'n', 'addr': '5',
            'num-queues': QUEUES})
        self.move('d', [{'iothread': 'io2'}])
        vm.cmd('migrate-incoming', uri=f'file:{state}')
        self.wait_migrated()
        vm.cmd('cont')
        disk.device.vm = vm
        disk.verify()
        self.check('d', 'n')
        self.move('d', [{'iothread': 'io0'}])
        disk.start_writes(2)
        disk.verify()
        self.end()

    def file_again(self, name: str) -> None:
        """Open a file that is there."""
        self.qemu.cmd('blockdev-add', {
            'driver': 'raw', 'node-name': name, 'file': {
                'driver': 'file', 'filename': self.scratch_file(name)}})

    def wait_migrated(self) -> None:
        """Wait for the end of a migration."""
        end = time.monotonic() + PATIENCE
        while self.qemu.cmd('query-migrate').get('status') != 'completed':
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)

    def test_guest(self) -> None:
        """Programs of a Linux guest write and verify on disks that move"""
        self.require_accelerator('tcg')
        try:
            args = guest_args(self.workdir, (
                'virtio_blk', 'virtio_scsi', 'sd_mod'))
        except GuestMissing as missing:
            self.skipTest(str(missing))
        self.vm.set_console()
        self.vm.add_args(*args, '-smp', '2')
        for thread in THREADS:
            self.vm.add_args('-object', f'iothread,id={thread}')
        for name in 'disk', 'other':
            path = self.scratch_file(f'guest-{name}')
            with open(path, 'wb') as image:
                image.truncate(16 << 20)
            self.vm.add_args('-blockdev',
                             f'file,node-name={name},filename={path}')
        self.vm.add_args(
            '-device', 'virtio-blk-pci,id=d,drive=disk,serial=disk,'
            f'iothread=io0,num-queues={QUEUES}',
            '-device', f'virtio-scsi-pci,id=s,num_queues={QUEUES}',
            '-device', 'scsi-hd,bus=s.0,drive=other')
        self.vm.launch()
        self.qemu = self.vm
        guest = GuestConsole(self.vm.console_socket)
        guest.wait_ready(150 * SLOWER)
        guest.run(VERIFY)
        guest.run('until [ -b /dev/sda ]; do usleep 20000; done')
        guest.run('verify /dev/$(disk disk) a; verify /dev/sda b')
        for turn in range(max(60, MOVES // 4)):
            for name in 'd', 's':
                self.move(name, self.random_mapping())
            if turn % 10 == 9:
                self.vm.cmd('stop')
                self.move('d', self.random_mapping())
                self.vm.cmd('cont')
            time.sleep(0.02)
        guest.run('touch /tmp/end')
        said = guest.run('until [ -e /tmp/resulta1 -a -e /tmp/resulta2 -a '
                         '-e /tmp/resultb1 -a -e /tmp/resultb2 ]; do '
                         'usleep 20000; done; cat /tmp/result*',
                         60 * SLOWER)
        self.log.info('%s', said.split())
        self.assertEqual(said.split()[::2], ['good'] * 4, said)
        self.assertGreater(min(map(int, said.split()[1::2])), 1, said)

    def random_mapping(self) -> Mapping:
        """Any mapping that is valid."""
        threads = random.sample(THREADS, random.randrange(len(THREADS) + 1))
        if random.random() < 0.5 or not threads:
            return [{'iothread': thread} for thread in threads]
        vqs = random.sample(range(QUEUES), QUEUES)
        cuts = [0, *sorted(random.sample(range(1, QUEUES),
                                         len(threads) - 1)), QUEUES]
        return [{'iothread': thread, 'vqs': vqs[cuts[i]:cuts[i + 1]]}
                for i, thread in enumerate(threads)]

    def between(self, disks: List[Disk], turn: int) -> None:
        """Do something else to a disk whose requests are in flight."""
        vm = self.qemu
        disk = random.choice(disks)
        node = f'n{disk.name}'
        what = random.choice(('stop', 'throttle', 'free', 'backup', 'mirror',
                              'end', 'hotplug', 'flush',
                              'reset', 'unplug', 'nothing', 'nothing'))
        device = f'{disk.name}-h' if disk.scsi else disk.name
        if what == 'stop':
            vm.cmd('stop')
            self.move(disk.name, self.random_mapping())
            vm.cmd('cont')
        elif what in ('throttle', 'free'):
            # The clock stands still: they wait for a move to let them go
            vm.cmd('block_set_io_throttle', {
                'id': f'/machine/peripheral/{disk.name}/virtio-backend'
                if not disk.scsi else device, 'iops': 3 * (
                    what == 'throttle'), 'bps': 0, 'bps_rd': 0, 'bps_wr': 0,
                'iops_rd': 0, 'iops_wr': 0})
        elif what in ('backup', 'mirror') and not vm.cmd('query-jobs'):
            vm.cmd(f'blockdev-{what}', {
                'job-id': 'j', 'device': node, 'target': 't', 'sync': 'full',
                'speed': 65536})
        elif what == 'end' and vm.cmd('query-jobs'):
            vm.qmp('job-cancel', id='j')
            end = time.monotonic() + PATIENCE
            while vm.cmd('query-jobs'):
                self.assertLess(time.monotonic(), end)
        elif what == 'hotplug' and disk.scsi:
            vm.cmd('device_add', driver='scsi-hd', id='hot', lun=1,
                   drive='hot', bus=f'{disk.name}.0')
            self.move(disk.name, self.random_mapping())
            self.assertEqual(self.holders('node-name', 'hot'),
                             self.holders('node-name', node))
            vm.cmd('device_del', id='hot')
        elif what == 'flush' and not disk.scsi:
            disk.writes.extend(disk.device.blk(FLUSH, 0, queue=turn % QUEUES))
        elif what in ('reset', 'unplug') and turn % 4 == 0:
            if vm.cmd('query-jobs'):
                return
            if what == 'reset':
                vm.cmd('system_reset')
                self.assertTrue(vm.event_wait('RESET', PATIENCE))
            else:
                slot = disk.device.slot
                self.unplug(disk.name)
                options = random.choice(LAYOUTS)
                new = self.plug(disk.name, node, slot, disk.scsi, options)
                disk.device = new.device
                disk.writes = []
            for other in disks:
                other.restart()
                other.data = {}
            self.move(disk.name, self.random_mapping())

    def test_random(self) -> None:
        """Random moves of disks with requests in flight"""
        seed = int(os.environ.get('QEMU_TEST_SEED', time.time_ns() % 10000))
        random.seed(seed)
        self.log.info('seed %d', seed)
        vm = self.launch()
        for name in 'na', 'nb', 'nc':
            self.file(name)
        self.null('t')
        self.null('hot')
        disks = [self.plug('a', 'na', 5, False, LAYOUTS[1]),
                 self.plug('b', 'nb', 6, True, LAYOUTS[2]),
                 self.plug('c', 'nc', 7, False, LAYOUTS[0])]
        for turn in range(MOVES // 2):
            for disk in disks:
                disk.start_writes(turn)
            self.between(disks, turn)
            for disk in random.sample(disks, 2):
                self.move(disk.name, self.random_mapping())
            # Those that are throttled: time goes by
            for _ in range(4):
                vm.qtest('clock_step 100000000000')
            for disk in disks:
                disk.wait()
                for _ in range(4):
                    vm.qtest('clock_step 100000000000')
            for disk in disks:
                vm.cmd('block_set_io_throttle', {
                    'id': f'/machine/peripheral/{disk.name}/virtio-backend'
                    if not disk.scsi else f'{disk.name}-h', 'iops': 0,
                    'bps': 0, 'bps_rd': 0, 'bps_wr': 0, 'iops_rd': 0,
                    'iops_wr': 0})
                disk.verify()
        for disk in disks:
            self.assertLess(len(disk.data), DEPTH)
        self.end()


if __name__ == '__main__':
    QemuSystemTest.main()
