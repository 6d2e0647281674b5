#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Disks that are to move while requests take long

QEMU goes on meanwhile, and whatever happens to the disk then does.  A human
monitor is what acts, as a QMP command waits for the one before it.
"""

import json
import os
import signal
import socket
import struct
import time
from typing import Any, Dict, List

from qemu.machine.qtest import QEMUQtestMachine
from qemu_test import QemuSystemTest
from qemu_test.virtioqtest import DEPTH, READ, SCSI, Unanswered, Virtio

Json = Dict[str, Any]

# How long QEMU may take for something that does not wait, in seconds
PROMPT = 0.5
PATIENCE = 20
# How long a request takes, in seconds
SLOW = 1.2
# Without these, the first sector is read when a disk is plugged
GEOMETRY = {'cyls': 2, 'heads': 16, 'secs': 63}
READ_10 = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0])


class Client:
    """A connection to a monitor of any kind."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self.data = b''

    def until(self, mark: bytes) -> bytes:
        """Read up to a mark."""
        while mark not in self.data:
            more = self.socket.recv(4096)
            if not more:
                raise EOFError(self.data)
            self.data += more
        read, _, self.data = self.data.partition(mark)
        return read

    def send(self, text: str) -> None:
        """Write."""
        self.socket.sendall(text.encode())


class Waits(QemuSystemTest):
    """A QEMU with slow disks"""

    def setUp(self) -> None:
        super().setUp()
        # A QEMU that hangs ends the program
        signal.alarm(120)
        self.set_machine('pc')
        self.require_device('virtio-scsi-pci')
        place = self.socket_dir().name
        # pylint: disable=consider-using-with
        self.qemu = QEMUQtestMachine(self.qemu_bin,
                                     base_temp_dir=self.workdir)
        self.qemu.set_machine('pc')
        self.qemu.add_args('-nodefaults')
        for thread in 'io0', 'io1':
            self.qemu.add_args('-object', f'iothread,id={thread}')
        self.traces = os.path.join(place, 'traces')
        self.qemu.add_args('-trace', 'iothread_vqs_move', '-D', self.traces)
        for name, mode in ('qmp', 'control'), ('hmp', 'readline'):
            self.qemu.add_args(
                '-chardev', f'socket,id={name},path={place}/{name},'
                'server=on,wait=off', '-mon', f'chardev={name},mode={mode}')
        self.qemu.launch()
        self.people = Client(os.path.join(place, 'hmp'))
        self.people.until(b'(qemu) ')
        self.client = Client(os.path.join(place, 'qmp'))
        self.client.until(b'\n')
        self.client.send('{"execute": "qmp_capabilities"}')
        self.client.until(b'\n')

    def tearDown(self) -> None:
        self.qemu.shutdown(hard=True)
        self.people.socket.close()
        self.client.socket.close()
        signal.alarm(0)
        super().tearDown()

    def plug(self, name: str, slot: int, scsi: bool, seconds: float = SLOW
             ) -> Virtio:
        """Plug a disk, requests of which take so long."""
        self.node(name, seconds)
        if not scsi:
            self.qemu.cmd('device_add', {
                'driver': 'virtio-blk-pci', 'id': name, 'drive': f'n{name}',
                'addr': f'{slot:x}', 'iothread': 'io0', **GEOMETRY})
            return Virtio(self.qemu, slot)
        self.qemu.cmd('device_add', {
            'driver': 'virtio-scsi-pci', 'id': name, 'addr': f'{slot:x}',
            'num_queues': 1, 'iothread': 'io0'})
        self.qemu.cmd('device_add', {
            'driver': 'scsi-hd', 'id': f'{name}-h', 'drive': f'n{name}',
            'bus': f'{name}.0', **GEOMETRY})
        device = Virtio(self.qemu, slot, SCSI, 3)
        for _ in range(3):
            device.scsi(bytes(6))
            device.kick(2)
            device.wait(2)
        return device

    def node(self, name: str, seconds: float) -> None:
        """Create a node without data."""
        self.qemu.cmd('blockdev-add', {
            'driver': 'null-co', 'node-name': f'n{name}', 'size': 1 << 20,
            'read-zeroes': True, 'latency-ns': int(seconds * 1e9)})

    def start(self, name: str, device: Virtio, taken: bool = True) -> None:
        """Start a request, and see that the device has taken it."""
        queue = 2 if device.device == SCSI else 0
        if queue:
            # The response comes before the data
            device.put(2, struct.pack(
                '<8sQBBB32s', bytes([1, 0, 0x40, 0, 0, 0, 0, 0]), 1, 0, 0, 0,
                READ_10), 512, 108, True)
        else:
            device.blk(READ, 0)
        device.kick(queue)
        end = time.monotonic() + PATIENCE
        while taken and not self.qemu.cmd('x-query-virtio-queue-status', {
                'path': f'/machine/peripheral/{name}/virtio-backend',
                'queue': queue})['inuse']:
            self.assertLess(time.monotonic(), end)

    @staticmethod
    def wait(device: Virtio, patience: float = PATIENCE) -> None:
        """Wait for what was started."""
        device.wait(2 if device.device == SCSI else 0, patience)

    def begin(self, name: str, timeout: int = 0) -> None:
        """Begin to move a disk to io1, which waits."""
        self.client.send(json.dumps({
            'execute': 'set-iothread-vq-mapping', 'arguments': {
                'device': name, 'iothread-vq-mapping': [{'iothread': 'io1'}],
                **({'timeout': timeout} if timeout else {})}}))
        end = time.monotonic() + PATIENCE
        while 'under way' not in self.human(
                f'set_iothread_vq_mapping {name} nobody'):
            self.assertLess(time.monotonic(), end)

    def answer(self) -> Json:
        """Wait until the move has ended."""
        while True:
            said: Json = json.loads(self.client.until(b'\n'))
            if 'event' not in said:
                return said

    def begun(self) -> bool:
        """Has the move not ended?"""
        self.client.socket.settimeout(0.01)
        try:
            while True:
                answer = self.client.until(b'\n')
                if b'"event"' not in answer:
                    self.client.data = answer + b'\n' + self.client.data
                    return False
        except TimeoutError:
            return True
        finally:
            self.client.socket.settimeout(PATIENCE)

    def human(self, line: str, seconds: float = PROMPT) -> str:
        """Have people enter a command."""
        start = time.monotonic()
        self.people.send(f'{line}\n')
        self.people.until(b'\r\n')
        text = self.people.until(b'(qemu) ').decode()
        self.assertLess(time.monotonic() - start, seconds, line)
        return text

    def threads(self, name: str) -> List[str]:
        """In which IOThreads a device is."""
        found = []
        thread = ''
        for line in self.human('info iothreads').splitlines():
            if not line.startswith(' '):
                thread = line.strip().rstrip(':')
            elif f'device={name} ' in f'{line} ':
                found.append(thread)
        return found

    def let_go(self) -> int:
        """How often a disk was let go on that has not moved."""
        with open(self.traces, encoding='utf-8') as traces:
            return traces.read().count(' moved 0 ')

    def end(self) -> None:
        """Have QEMU end."""
        self.human('info status')
        self.qemu.cmd('quit')
        self.qemu.wait(PATIENCE)
        self.assertEqual(self.qemu.exitcode(), 0)

    def test_waits(self) -> None:
        """QEMU goes on until the request has ended, then the disk moves"""
        other = self.plug('other', 7, False, 0)
        for slot, scsi in (5, False), (6, True):
            name = f'd{slot}'
            device = self.plug(name, slot, scsi)
            self.start(name, device)
            self.begin(name)
            turns = 0
            while self.begun():
                turns += 1
                other.io(READ, 0)
                if turns == 1:
                    self.assertEqual(self.threads(name), ['io0'])
                    # This one is for when the disk has moved
                    self.start(name, device, False)
                    self.assertIn('under way', self.human(
                        f'set_iothread_vq_mapping {name} io1'))
                    self.assertNotIn('rror', self.human(
                        'set_iothread_vq_mapping other io1'))
                    self.assertEqual(self.threads('other'), ['io1'])
            self.assertGreater(turns, 1)
            self.assertEqual(self.answer(), {'return': {}})
            self.assertEqual(self.threads(name), ['io1'])
            with self.assertRaises(Unanswered):
                self.wait(device, 0)
            self.wait(device)
            self.qemu.cmd('object-del', id='io0')
            self.qemu.cmd('object-add', {'qom-type': 'iothread', 'id': 'io0'})
        self.end()

    def test_limit(self) -> None:
        """The time is over, and the disk goes on where it is"""
        for slot, scsi in (5, False), (6, True):
            name = f'd{slot}'
            device = self.plug(name, slot, scsi)
            self.start(name, device)
            start = time.monotonic()
            self.begin(name, 300)
            self.start(name, device, False)
            self.assertIn('have not ended within 300 ms',
                          self.answer()['error']['desc'])
            taken = time.monotonic() - start
            self.assertGreater(taken, 0.25)
            self.assertLess(taken, 0.3 + PROMPT)
            self.assertEqual(self.threads(name), ['io0'])
            # Nobody asks again
            said = self.qemu.cmd('human-monitor-command', {
                'command-line': f'set_iothread_vq_mapping {name} io1'})
            self.assertIn('have not ended', said)
            self.assertLess(time.monotonic() - start, SLOW)
            self.wait(device)
            self.assertLess(time.monotonic() - start, 2 * SLOW)
            self.qemu.cmd('set-iothread-vq-mapping', {
                'device': name, 'iothread-vq-mapping': [{'iothread': 'io1'}]})
            self.assertEqual(self.threads(name), ['io1'])
        self.end()

    def test_limit_while_others_wait(self) -> None:
        """Somebody waits for a request that the move holds back"""
        device = self.plug('d', 5, False, 0.5 * SLOW)
        self.start('d', device)
        self.begin('d', 300)
        self.human('qemu-io nd "read 0 512"', 3 * SLOW)
        # By now the disk's own request has ended, so it can move
        self.assertEqual(self.answer(), {'return': {}})
        self.wait(device)
        self.end()

    def test_memory(self) -> None:
        """Requests whose data go to registers, and wait for buffers"""
        registers = 0xf0002000
        self.qemu.cmd('device_add', driver='edu', id='edu', addr='4')
        device = self.plug('d', 5, True, 0)
        self.qemu.cmd('set-iothread-vq-mapping', {
            'device': 'd', 'iothread-vq-mapping': []})
        device.slot = 4
        for register, size, value in (0x10, 'l', registers & ~0xfffff), \
                (4, 'w', 7):
            device.config(register)
            device.qtest(f'out{size} 0xcfc {value:#x}')
        # As many as there is room for when they are taken from the queue:
        # none is left for the disk's answers
        for number in range(8):
            first = device.queues[2]['sent'] % DEPTH * 3
            device.put(2, struct.pack(
                '<8sQBBB32s', bytes([1, 0, 0x40, 0, 0, 0, 0, 0]), number, 0,
                0, 0, READ_10), 512, 108, True, 0x1000 * number)
            device.write(device.queues[2]['base'] + 16 * (first + 2),
                         struct.pack('<Q', registers + 512 * number))
        device.kick(2)
        self.human('info status')
        self.begin('d', 300)
        self.assertIn('have not ended', self.answer()['error']['desc'])
        # The driver gives them up
        device.tmf(1)
        device.kick(0)
        device.wait(2)
        self.qemu.cmd('set-iothread-vq-mapping', {
            'device': 'd', 'iothread-vq-mapping': [{'iothread': 'io1'}]})
        self.assertEqual(self.threads('d'), ['io1'])
        self.start('d', device, False)
        self.wait(device)
        self.end()

    def test_stop(self) -> None:
        """A machine that stops and goes on"""
        for slot, scsi in (5, False), (6, True):
            name = f'd{slot}'
            device = self.plug(name, slot, scsi)
            self.start(name, device)
            self.begin(name)
            self.start(name, device, False)
            # It waits for the requests, as ever
            before = self.let_go()
            self.human('stop', 3 * SLOW)
            # But not for the move
            self.assertGreater(self.let_go(), before)
            if scsi:
                self.human('cont')
            self.assertEqual(self.answer(), {'return': {}})
            self.human('cont')
            self.assertEqual(self.threads(name), ['io1'])
            self.wait(device)
            self.start(name, device, False)
            self.wait(device)
        self.end()

    def test_reset(self) -> None:
        """A driver that resets the device, and starts it again"""
        for slot, scsi in (5, False), (6, True):
            name = f'd{slot}'
            device = self.plug(name, slot, scsi)
            self.start(name, device)
            self.begin(name)
            before = self.let_go()
            device.start()
            self.assertGreater(self.let_go(), before)
            self.start(name, device, False)
            self.wait(device)
            self.assertEqual(self.answer(), {'return': {}})
            self.assertEqual(self.threads(name), ['io1'])
            self.start(name, device, False)
            self.wait(device)
        self.end()

    def test_unplug(self) -> None:
        """The device goes away"""
        for slot, scsi in (5, False), (6, True):
            name = f'd{slot}'
            device = self.plug(name, slot, scsi)
            self.start(name, device)
            self.begin(name)
            self.human(f'device_del {name}')
            self.human('system_reset', 3 * SLOW)
            self.assertIn('unplugged', self.answer()['error']['desc'])
            self.assertTrue(self.qemu.event_wait(
                'DEVICE_DELETED', PATIENCE, match={'data': {'device': name}}))
            self.assertEqual(self.threads(name), [])
            self.qemu.cmd('blockdev-del', {'node-name': f'n{name}'})
        for thread in 'io0', 'io1':
            self.qemu.cmd('object-del', id=thread)
        self.end()

    def test_thread_gone(self) -> None:
        """An IOThread goes while a disk waits to move there"""
        device = self.plug('d', 5, False)
        self.start('d', device)
        self.begin('d')
        self.human('object_del io1')
        self.assertIn('"io1" object does not exist',
                      self.answer()['error']['desc'])
        self.assertEqual(self.threads('d'), ['io0'])
        self.wait(device)
        self.start('d', device)
        self.wait(device)
        self.end()

    def test_hotplug(self) -> None:
        """A disk that is plugged meanwhile moves too, or is unplugged"""
        device = self.plug('d', 5, True)
        self.node('x', 0)
        self.start('d', device)
        self.begin('d')
        # This waits for the requests, as ever
        self.human('device_add scsi-hd,id=x,lun=1,drive=nx,bus=d.0', 3 * SLOW)
        self.assertEqual(self.answer(), {'return': {}})
        self.assertEqual({
            (info['id'], holder['node-name'])
            for info in self.qemu.cmd('query-iothreads')
            for holder in info['holders'] if 'node-name' in holder},
            {('io1', 'nx'), ('io1', 'nd')})
        self.wait(device)

        # One that is unplugged meanwhile does not take the others with it
        for cd in False, True:
            if cd:
                self.qemu.cmd('device_add', driver='scsi-cd', id='x', lun=1,
                              bus='d.0', drive='nx')
            self.start('d', device)
            self.begin('d')
            self.human('device_del x', 3 * SLOW)
            self.assertEqual(self.answer(), {'return': {}})
            self.wait(device)
            # The unplug, which only now goes on, may wait for this one too,
            # and nobody is told meanwhile that it has been taken
            self.start('d', device, False)
            self.wait(device)
        self.end()

    def test_quit(self) -> None:
        """QEMU ends"""
        device = self.plug('d', 5, False)
        self.start('d', device)
        self.begin('d', 60000)
        self.people.send('quit\n')
        self.assertIn('shutting down', self.answer()['error']['desc'])
        self.qemu.wait(PATIENCE)
        self.assertEqual(self.qemu.exitcode(), 0)


if __name__ == '__main__':
    QemuSystemTest.main()
