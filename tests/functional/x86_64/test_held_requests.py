#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Disks that are reset, or go, while a block job keeps their requests waiting

A mirror job that is pending has its source drained until it is finalized.
"""

import os
import signal
import struct
import time
from typing import Any, Dict, List
from unittest.mock import patch

from qemu.machine.qtest import QEMUQtestMachine
from qemu_test import QemuSystemTest
from qemu_test.virtioqtest import READ, SCSI, WRITE, Virtio

Json = Dict[str, Any]

PATIENCE = 20
IDE, BUS_MASTER = 0x1f0, 0xc000
BUSY, DRQ = 0x80, 0x08


class NVMe:
    """A driver of an NVMe controller with one queue."""

    def __init__(self, vm: QEMUQtestMachine, slot: int) -> None:
        self.vm = vm
        self.base = 0xe0000000 + 0x10000 * slot
        self.memory = 0x100000 * slot
        self.sent = 0
        for register, value in (0x10, self.base), (0x14, 0), (4, 6):
            vm.qtest(f'outl 0xcf8 {1 << 31 | slot << 11 | register:#x}')
            vm.qtest(f'outl 0xcfc {value:#x}')
        self.start()

    def register(self, offset: int, value: int, size: str = 'l') -> None:
        """Write to a register."""
        self.vm.qtest(f'write{size} {self.base + offset:#x} {value:#x}')

    def put(self, queue: int, index: int, opcode: int, prp: int,
            *args: int) -> None:
        """Put a command in a queue: 0 is that of commands to the controller."""
        address = self.memory + 0x2000 * queue + 64 * index
        command = struct.pack('<BBHI16xQQ6I', opcode, 0, index, queue, prp, 0,
                              *args, *(6 - len(args)) * [0])
        self.vm.qtest(f'write {address:#x} 64 0x{command.hex()}')
        self.register(0x1000 + 8 * queue, index + 1)

    def status(self, queue: int, index: int) -> int:
        """Return the status of a command that has completed: 1 is success."""
        address = self.memory + 0x2000 * queue + 0x1000 + 16 * index + 14
        while not (word := int(self.vm.qtest(
                f'readw {address:#x}').split()[1], 0)):
            time.sleep(0.005)
        return word

    def start(self) -> None:
        """Enable the controller, and create a queue."""
        self.sent = 0
        self.vm.qtest(f'memset {self.memory:#x} 0x4000 0')
        self.register(0x24, 31 << 16 | 31)
        self.register(0x28, self.memory, 'q')
        self.register(0x30, self.memory + 0x1000, 'q')
        self.register(0x14, 0x460001)
        for index, opcode, prp, flags in (0, 5, 0x3000, 1), (1, 1, 0x2000,
                                                             1 << 16 | 1):
            self.put(0, index, opcode, self.memory + prp, 31 << 16 | 1, flags)
            assert self.status(0, index) == 1

    def read(self) -> None:
        """Start a read."""
        self.put(1, self.sent, 2, self.memory + 0x4000)
        self.sent += 1

    def copy(self, sector: int) -> int:
        """Start to copy one sector to the first one. Return its index."""
        ranges = self.memory + 0x5000
        self.vm.qtest(f'write {ranges:#x} 32 '
                      f'0x{struct.pack("<8xQ16x", sector).hex()}')
        self.put(1, self.sent, 0x19, ranges)
        self.sent += 1
        return self.sent - 1

    def check(self) -> None:
        """Wait for all reads."""
        for index in range(self.sent):
            assert self.status(1, index) == 1


class HeldRequests(QemuSystemTest):
    """A driver in place of a guest"""

    def setUp(self) -> None:
        super().setUp()
        # QMP has no timeout of its own: a QEMU that hangs ends the program
        signal.alarm(120)
        self.set_machine('pc')
        self.require_device('virtio-scsi-pci')
        self.started: List[QEMUQtestMachine] = []

    def tearDown(self) -> None:
        for vm in self.started:
            vm.shutdown(hard=True)
        signal.alarm(0)
        super().tearDown()

    def launch(self, error: str = '') -> QEMUQtestMachine:
        """Start a QEMU with a disk, one request of which may fail."""
        vm = QEMUQtestMachine(self.qemu_bin, base_temp_dir=self.workdir)
        vm.set_machine('pc')
        vm.add_args('-nodefaults', '-object', 'iothread,id=io0',
                    '-object', 'iothread,id=io1')
        self.started.append(vm)
        vm.launch()
        null = {'driver': 'null-co', 'size': 1 << 20, 'read-zeroes': True}
        vm.cmd('blockdev-add', {'node-name': 't', **null})
        if error:
            null = {'driver': 'blkdebug', 'image': null, 'inject-error': [{
                'event': 'none', 'iotype': error, 'once': True}]}
        vm.cmd('blockdev-add', {'node-name': 's', **null})
        return vm

    def with_nodes(self, *args: str) -> QEMUQtestMachine:
        """A QEMU with two nodes and these options, not started yet."""
        vm = QEMUQtestMachine(self.qemu_bin, base_temp_dir=self.workdir)
        vm.set_machine('pc')
        vm.add_args(
            '-nodefaults',
            '-blockdev', 'null-co,node-name=s,size=1048576,read-zeroes=on',
            '-blockdev', 'null-co,node-name=t,size=1048576,read-zeroes=on',
            *args)
        self.started.append(vm)
        return vm

    def wait_for(self, what: Any) -> None:
        """Wait until something is the case."""
        end = time.monotonic() + PATIENCE
        while not what():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.005)

    def hold(self, vm: QEMUQtestMachine) -> None:
        """Have a job hold requests of the disk back."""
        vm.cmd('blockdev-mirror', {
            'job-id': 'm', 'device': 's', 'target': 't', 'sync': 'none',
            'auto-finalize': False})
        for status in 'ready', 'pending':
            self.wait_for(
                lambda s=status: vm.cmd('query-jobs')[0]['status'] == s)
            if status == 'ready':
                vm.cmd('job-complete', id='m')

    def end(self, vm: QEMUQtestMachine) -> None:
        """End the job, and QEMU."""
        self.assertEqual(vm.cmd('query-jobs')[0]['status'], 'pending')
        vm.cmd('job-finalize', id='m')
        self.wait_for(lambda: not vm.cmd('query-jobs'))
        vm.cmd('quit')
        vm.wait(PATIENCE)
        self.assertEqual(vm.exitcode(), 0)

    @staticmethod
    def unplug(vm: QEMUQtestMachine) -> None:
        """Have a reset take the device."""
        vm.cmd('device_del', id='d')
        vm.cmd('system_reset')
        assert vm.event_wait('DEVICE_DELETED', PATIENCE,
                             match={'data': {'device': 'd'}})

    def plug(self, vm: QEMUQtestMachine, **options: Any) -> Virtio:
        """Plug a disk."""
        vm.cmd('device_add', {'driver': 'virtio-blk-pci', 'id': 'd',
                              'drive': 's', 'addr': '5', **options})
        return Virtio(vm, 5)

    def plug_scsi(self, vm: QEMUQtestMachine, **options: Any) -> Virtio:
        """Plug a controller with a disk."""
        disk = {key: options.pop(key) for key in ('rerror', 'werror')
                if key in options}
        vm.cmd('device_add', {'driver': 'virtio-scsi-pci', 'id': 'd',
                              'addr': '5', **options})
        vm.cmd('device_add', {'driver': 'scsi-hd', 'id': 'h', 'drive': 's',
                              'bus': 'd.0', **disk})
        device = Virtio(vm, 5, SCSI, 3)
        # Two units of attention are reported first
        for _ in range(2):
            device.scsi(bytes(6))
            device.kick(2)
            device.wait(2)
        return device

    @staticmethod
    def read_scsi(device: Virtio, tag: int) -> None:
        """Start a read."""
        device.put(2, struct.pack(
            '<8sQBBB32s', bytes([1, 0, 0x40, 0, 0, 0, 0, 0]), tag, 0, 0, 0,
            struct.pack('>BBLBHB', 0x28, 0, 8, 0, 1, 0)),
            512, 108, True, tag * 512)
        device.kick(2)

    def test_virtio_blk(self) -> None:
        """virtio-blk is unplugged, or reset by its driver"""
        for what in READ, WRITE:
            # A request that is cancelled is not for the error policy
            vm = self.launch()
            disk = self.plug(vm, ioeventfd=False, rerror='stop',
                             werror='stop')
            self.hold(vm)
            answers = disk.blk(what, 0, count=3)
            self.unplug(vm)
            disk.check(answers, 1)
            self.assertTrue(vm.cmd('query-status')['running'])
            self.assertIsNone(vm.event_wait('BLOCK_IO_ERROR', 0.0))
            self.end(vm)

            vm = self.launch()
            disk = self.plug(vm, ioeventfd=False)
            self.hold(vm)
            answers = disk.blk(what, 0, count=3)
            disk.qtest(f'outb {disk.port + 18:#x} 0')
            disk.check(answers, 1)
            disk.start()
            vm.cmd('job-finalize', id='m')
            self.wait_for(lambda v=vm: not v.cmd('query-jobs'))
            disk.io(what, 0)
            vm.cmd('quit')
            vm.wait(PATIENCE)

    def test_iothread(self) -> None:
        """Requests wait in IOThreads, that do them again after an error"""
        for options in ({'iothread': 'io0'}, {'iothread-vq-mapping': [
                {'iothread': 'io0'}, {'iothread': 'io1'}]}):
            for plug in self.plug, self.plug_scsi:
                vm = self.launch('write')
                device = plug(vm, werror='stop', **options)
                if plug == self.plug:
                    device.blk(WRITE, 0)
                else:
                    device.put(2, struct.pack(
                        '<8sQBBB32s', bytes([1, 0, 0x40, 0, 0, 0, 0, 0]), 2,
                        0, 0, 0, struct.pack('>BBLBHB', 0x2a, 0, 0, 0, 1, 0)),
                        108, 512)
                    device.kick(2)
                self.assertTrue(vm.event_wait('STOP', PATIENCE))
                self.hold(vm)
                vm.cmd('cont')
                self.unplug(vm)
                self.end(vm)

    def test_virtio_scsi(self) -> None:
        """virtio-scsi is unplugged, or a request aborted"""
        vm = self.launch()
        device = self.plug_scsi(vm, ioeventfd=False)
        self.hold(vm)
        self.read_scsi(device, 1)
        self.read_scsi(device, 2)
        answer = device.tmf(0, 0, 2)
        used = device.queues[2]['used'] + 2
        self.assertEqual(device.qtest(f'readw {used:#x}'), 2)
        device.kick(0)
        device.wait(0)
        self.assertEqual(device.qtest(f'readb {answer:#x}'), 0)
        # Only one of them
        self.wait_for(lambda: device.qtest(f'readw {used:#x}') == 3)
        self.unplug(vm)
        self.end(vm)

    def test_plug(self) -> None:
        """A disk is plugged while it is drained"""
        for plug in self.plug, self.plug_scsi:
            vm = self.launch()
            self.hold(vm)
            plug(vm, ioeventfd=False)
            self.unplug(vm)
            plug(vm, ioeventfd=False)
            self.end(vm)

    def test_nvme(self) -> None:
        """One of two controllers that share a namespace is reset"""
        vm = self.with_nodes(
            '-device', 'nvme-subsys,id=both',
            '-device', 'nvme,id=d,subsys=both,serial=1,addr=5',
            '-device', 'nvme,subsys=both,serial=1,addr=6',
            '-device', 'nvme-ns,bus=d,drive=s,nsid=1,shared=on')
        # What is not set is seen
        with patch.dict(os.environ, MALLOC_PERTURB_='85'):
            vm.launch()
        first, second = NVMe(vm, 5), NVMe(vm, 6)
        # The source is out of range
        self.assertEqual(first.status(1, first.copy(1 << 40)), 0x8101)
        self.hold(vm)
        for controller in first, second, first, second:
            controller.read()
        first.copy(1)
        first.register(0x14, 0x460000)
        first.start()
        first.read()
        vm.cmd('job-finalize', id='m')
        first.check()
        second.check()
        vm.cmd('quit')
        vm.wait(PATIENCE)
        self.assertEqual(vm.exitcode(), 0)

    def test_ide(self) -> None:
        """A PC with an IDE disk is reset"""
        for dma in False, True:
            vm = self.with_nodes(
                '-device', 'ide-hd,drive=s,bus=ide.0,unit=0,rerror=stop')
            vm.launch()
            self.hold(vm)

            def ask(line: str, qtest: Any = vm.qtest) -> int:
                return int((qtest(line).split() + ['0'])[1], 0)

            for address, value in ((0xcf8, 0x80000920), (0xcfc, BUS_MASTER),
                                   (0xcf8, 0x80000904), (0xcfc, 5)):
                ask(f'outl {address:#x} {value:#x}')
            for register, value in (6, 0xe0), (2, 1), (3, 0), (4, 0), (5, 0):
                ask(f'outb {IDE + register:#x} {value}')
            ask(f'outb {IDE + 7:#x} {0xc8 if dma else 0x20}')
            if dma:
                ask('write 0x100000 8 0x0000200000020080')
                ask(f'outl {BUS_MASTER + 4:#x} 0x100000')
                ask(f'outb {BUS_MASTER:#x} 9')
            self.assertTrue(ask(f'inb {IDE + 7:#x}') & (BUSY | DRQ))
            vm.cmd('system_reset')
            self.assertTrue(vm.event_wait('RESET', PATIENCE))
            self.wait_for(lambda a=ask: not a(f'inb {IDE + 7:#x}') & BUSY)
            self.assertTrue(vm.cmd('query-status')['running'])
            self.end(vm)


if __name__ == '__main__':
    QemuSystemTest.main()
