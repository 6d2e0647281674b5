#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Who holds which IOThread, while a real Linux guest uses, loses, gets back and
resets its virtio-blk disks

The guest is made from the host's kernel package and a static busybox, see
qemu_test/linuxguest.py for where they come from.
"""

import hashlib
import json
import logging
import re
import signal
import time
from types import FrameType
from typing import Any, Dict, List, Optional

from qemu_test import QemuSystemTest
from qemu_test.linuxguest import (
    CPUS, GuestConsole, GuestMissing, guest_args)

Json = Dict[str, Any]
# What query-iothreads tells, by the id of the IOThread
Holders = Dict[str, List[Json]]

IMAGE_SIZE = 16 * 1024 * 1024
# How long the guest may take for what it does of its own accord, and how
# long one test may take, in seconds.  QMP takes an int for "for ever".
TIMEOUT = 30.0
TEST_TIMEOUT = 180


def holder(disk: str, *vqs: int) -> Json:
    """Return what query-iothreads tells of a disk on one IOThread."""
    return {'type': 'qom-object',
            'qom-path': f'/machine/peripheral/{disk}/virtio-backend',
            'device': disk,
            'vqs': list(vqs)}


def disk0(bus: str) -> Json:
    """Return the disk on one IOThread."""
    return {'driver': 'virtio-blk-pci', 'bus': bus, 'id': 'disk0',
            'drive': 'disk0', 'serial': 'disk0', 'iothread': 'io0'}


def disk1(bus: str) -> Json:
    """Return the disk whose virtqueues go round two IOThreads."""
    return {'driver': 'virtio-blk-pci', 'bus': bus, 'id': 'disk1',
            'drive': 'disk1', 'serial': 'disk1', 'num-queues': 4,
            'iothread-vq-mapping': [{'iothread': 'io0'},
                                    {'iothread': 'io1'}]}


class IOThreadHolders(QemuSystemTest):
    """Two disks: disk0 on io0, disk1 with its queues on io0 and io1."""

    # disk0 has as many queues as the guest has CPUs: the device's default
    DISK0_ON_IO0 = holder('disk0', *range(CPUS))
    DISK1_ON_IO0 = holder('disk1', 0, 2)
    DISK1_ON_IO1 = holder('disk1', 1, 3)
    BOTH_DISKS: Holders = {'io0': [DISK0_ON_IO0, DISK1_ON_IO0],
                           'io1': [DISK1_ON_IO1]}
    DISK0_ONLY: Holders = {'io0': [DISK0_ON_IO0], 'io1': []}

    maxDiff = None
    guest: GuestConsole

    def setUp(self) -> None:
        super().setUp()
        # QMP has no timeout of its own: a main loop that hangs is a failure
        signal.signal(signal.SIGALRM, self._out_of_time)
        signal.alarm(TEST_TIMEOUT)

    def tearDown(self) -> None:
        signal.alarm(0)
        super().tearDown()

    def _out_of_time(self, _number: int, _frame: Optional[FrameType]) -> None:
        """End a test that takes too long, and the QEMU that it waits for."""
        self.vm.kill()
        self.fail(f'not done after {TEST_TIMEOUT} s')

    def image(self, disk: str) -> str:
        """Return the image file of the disk."""
        return self.scratch_file(f'{disk}.img')

    def boot(self, machine: str, *args: str, bus0: str = 'pci.0',
             bus1: str = 'pci.0') -> None:
        """Start a guest that has both disks, and wait until it is up."""
        self.require_accelerator('tcg')
        self.set_machine(machine)
        try:
            guest = guest_args(self.workdir)
        except GuestMissing as missing:
            self.skipTest(str(missing))

        self.vm.set_console()
        self.vm.add_args(*guest, *args)
        for thread in ('io0', 'io1'):
            self.vm.add_args('-object', f'iothread,id={thread}')
        for disk in (disk0(bus0), disk1(bus1)):
            node, image = disk['drive'], self.image(disk['drive'])
            with open(image, 'wb') as stream:
                stream.truncate(IMAGE_SIZE)
            self.vm.add_args(
                '-blockdev', f'file,node-name={node},filename={image}',
                '-device', json.dumps(disk))
        # Look at the holders before the guest can do anything
        self.vm.add_args('-S')
        self.vm.launch()
        self.check_holders(self.BOTH_DISKS)

        self.vm.cmd('cont')
        self.guest = GuestConsole(self.vm.console_socket,
                                  logging.getLogger('console').debug)
        self.guest.wait_ready()

    def wait_deleted(self, disk: str) -> None:
        """Wait until QEMU tells that the disk has gone."""
        self.vm.event_wait('DEVICE_DELETED', TIMEOUT,
                           match={'data': {'device': disk}})

    def holders(self, kind: str) -> Holders:
        """Return the holders of this type for each IOThread."""
        threads = self.vm.cmd('query-iothreads')
        for thread in threads:
            self.assertIn('holders', thread,
                          'this QEMU does not know who holds an IOThread')
        return {thread['id']: [each for each in thread['holders']
                               if each['type'] == kind]
                for thread in threads}

    def check_holders(self, expected: Holders) -> None:
        """Compare with what QMP and HMP tell."""
        self.assertEqual(self.holders('qom-object'), expected)

        text = self.vm.cmd('human-monitor-command',
                           command_line='info iothreads')
        told = re.findall('qom-path=(.*) device=(.*) vqs=(.*)', text)
        self.assertCountEqual(
            [fact.strip() for facts in told for fact in facts],
            [fact for each in sum(expected.values(), [])
             for fact in (each['qom-path'], each['device'],
                          ','.join(str(vq) for vq in each['vqs']))])

    def check_held(self, thread: str, *disks: str) -> None:
        """Check that object-del is refused, and that it tells why."""
        answer = self.vm.qmp('object-del', id=thread)
        self.assertIn('error', answer, f'{thread} was deleted under its users')
        for disk in disks:
            self.assertIn(disk, answer['error']['desc'])

    def check_io(self, disk: str) -> None:
        """Have the guest do I/O, and look for its data in the image."""
        size, checksum = self.guest.run(f'io {disk}', TIMEOUT).split()
        with open(self.image(disk), 'rb') as image:
            data = image.read(int(size))
        self.assertEqual(hashlib.sha256(data).hexdigest(), checksum)

    def written(self, disk: str) -> int:
        """Return how many bytes have been written to the disk."""
        return next(stats['stats']['wr_bytes']
                    for stats in self.vm.cmd('query-blockstats')
                    if stats['node-name'] == disk)

    def wait_writes(self, disk: str) -> None:
        """Wait until the guest has written something more to the disk."""
        before = self.written(disk)
        end = time.monotonic() + TIMEOUT
        while self.written(disk) == before:
            self.assertLess(time.monotonic(), end, f'no I/O on {disk}')
            time.sleep(0.01)

    def test_all_queues(self) -> None:
        """I/O on all queues, and the holders meanwhile"""
        self.boot('pc')
        for disk in ('disk0', 'disk1'):
            self.check_io(disk)
            self.assertEqual(self.guest.run(f'queues {disk}').split(),
                             [str(vq) for vq in range(CPUS)])
        self.check_holders(self.BOTH_DISKS)
        # the guest's driver has taken the nodes to their first queue's thread
        self.assertCountEqual(
            self.holders('block-node')['io0'],
            [{'type': 'block-node', 'node-name': disk}
             for disk in ('disk0', 'disk1')])

        for disk in ('disk0', 'disk1'):
            self.guest.run(f'churn {disk}')
        for _ in range(5):
            self.wait_writes('disk0')
            self.wait_writes('disk1')
            self.check_holders(self.BOTH_DISKS)
            self.check_held('io0', 'disk0', 'disk1')
            self.check_held('io1', 'disk1')
        self.wait_writes('disk0')
        self.wait_writes('disk1')

    def test_reset(self) -> None:
        """A reboot by the guest and a reset by QEMU, both during I/O"""
        self.boot('pc')
        for reset in (lambda: self.guest.send('reboot -f'),
                      lambda: self.vm.cmd('system_reset')):
            for disk in ('disk0', 'disk1'):
                self.check_io(disk)
                self.guest.run(f'churn {disk}')
                self.wait_writes(disk)
            reset()
            self.vm.event_wait('RESET', TIMEOUT)
            self.check_holders(self.BOTH_DISKS)
            self.guest.wait_ready()
            self.check_holders(self.BOTH_DISKS)
        self.check_io('disk0')
        self.check_io('disk1')
        self.check_held('io1', 'disk1')

    def test_stop(self) -> None:
        """The guest's I/O goes on each time that it was stopped"""
        self.boot('pc')
        for disk in ('disk0', 'disk1'):
            self.check_io(disk)
            self.guest.run(f'churn {disk}')
        for _ in range(50):
            self.wait_writes('disk0')
            self.wait_writes('disk1')
            self.vm.cmd('stop')
            self.check_holders(self.BOTH_DISKS)
            self.vm.cmd('cont')
        self.wait_writes('disk0')
        self.wait_writes('disk1')

    def test_reset_unplugs(self) -> None:
        """A reset completes an unplug that the guest has not answered"""
        self.boot('pc')
        self.vm.cmd('stop')
        self.vm.cmd('device_del', id='disk1')
        self.check_held('io1', 'disk1')
        self.vm.cmd('system_reset')
        self.wait_deleted('disk1')
        self.check_holders(self.DISK0_ONLY)
        self.vm.cmd('object-del', id='io1')
        self.vm.cmd('cont')
        self.guest.wait_ready()
        self.guest.run('gone disk1')
        self.check_io('disk0')

    def test_driver(self) -> None:
        """The guest takes its driver off the disk and on again, during I/O"""
        self.boot('pc')
        driver = '/sys/bus/virtio/drivers/virtio_blk'
        for disk in ('disk0', 'disk1'):
            self.check_io(disk)
            self.guest.run(f'churn {disk}')
            self.wait_writes(disk)
            device = self.guest.run(
                f'basename $(readlink /sys/block/$(disk {disk})/device)')
            self.guest.run(f'echo {device} >{driver}/unbind')
            self.check_holders(self.BOTH_DISKS)
            self.check_held('io0', disk)
            self.guest.run(f'gone {disk}')
            self.guest.run(f'echo {device} >{driver}/bind')
            self.check_io(disk)
            self.check_holders(self.BOTH_DISKS)

    def check_unplug(self, bus1: str, patient: bool = False) -> None:
        """
        Unplug disk1, delete its IOThread, and bring both back, twice

        A patient guest is one that waits before it lets go of a device.
        """
        for during_io in (False, True):
            self.check_io('disk1')
            if during_io:
                self.guest.run('churn disk1')
                self.wait_writes('disk1')
            # A stopped guest cannot answer
            self.vm.cmd('stop')
            self.vm.cmd('device_del', id='disk1')
            self.check_held('io0', 'disk0', 'disk1')
            self.check_held('io1', 'disk1')
            self.check_holders(self.BOTH_DISKS)
            self.vm.cmd('cont')
            if patient:
                self.guest.run('disk disk1')
                self.check_held('io1', 'disk1')
                self.check_holders(self.BOTH_DISKS)
            self.wait_deleted('disk1')
            self.check_holders(self.DISK0_ONLY)
            self.check_held('io0', 'disk0')
            self.vm.cmd('object-del', id='io1')
            self.check_holders({'io0': [self.DISK0_ON_IO0]})
            self.check_io('disk0')

            # Another thread of the same name, and a disk that uses it
            self.vm.cmd('object-add', qom_type='iothread', id='io1')
            self.check_holders(self.DISK0_ONLY)
            self.vm.cmd('device_add', disk1(bus1))
            self.check_holders(self.BOTH_DISKS)
            self.check_io('disk1')
            self.assertEqual(self.guest.run('queues disk1').split(),
                             [str(vq) for vq in range(CPUS)])

    def test_unplug_pc(self) -> None:
        """Unplug by ACPI from a PCI bus"""
        self.boot('pc')
        self.check_unplug('pci.0')

    def boot_q35(self, *args: str) -> None:
        """Start a guest with its disks behind PCI Express root ports."""
        self.boot('q35', *args,
                  '-device', 'pcie-root-port,id=port0,chassis=1,slot=1',
                  '-device', 'pcie-root-port,id=port1,chassis=2,slot=2',
                  bus0='port0', bus1='port1')

    def test_unplug_q35_acpi(self) -> None:
        """Unplug by ACPI from a PCI Express root port"""
        self.boot_q35()
        self.check_unplug('port1')

    def test_unplug_q35_pcie(self) -> None:
        """Unplug by the root port itself; the guest lets five seconds pass"""
        self.boot_q35('-global',
                      'ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off')
        self.check_unplug('port1', patient=True)


if __name__ == '__main__':
    QemuSystemTest.main()
