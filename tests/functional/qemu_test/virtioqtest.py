# SPDX-License-Identifier: GPL-2.0-or-later
"""
A driver for transitional virtio devices of the machine pc, on top of qtest

No guest runs, and there are no interrupts: the driver looks at the rings.
"""

import struct
import time
from typing import Any, Dict, List

from qemu.machine.qtest import QEMUQtestMachine

BLK = 0x1001
SCSI = 0x1004
READ, WRITE, FLUSH = 0, 1, 4

# How long a device may take to answer, in seconds
PATIENCE = 20
# How many requests of a queue may be in flight
DEPTH = 32


class Unanswered(Exception):
    """A device does not answer."""


class Virtio:
    """A device in a slot of the first bus, with queues that are polled."""

    def __init__(self, vm: QEMUQtestMachine, slot: int, device: int = BLK,
                 queues: int = 1) -> None:
        self.vm = vm
        self.slot = slot
        self.device = device
        self.port = 0xc000 + 0x100 * slot
        self.memory = 0x400000 * slot
        self.number = queues
        self.queues: List[Dict[str, int]] = []
        self.start()

    def qtest(self, line: str) -> int:
        """Return what a command of qtest returns."""
        words = self.vm.qtest(line).split()
        assert words[0] == 'OK', (line, words)
        return int(words[1], 0) if len(words) > 1 else 0

    def config(self, offset: int) -> None:
        """Choose a register of the configuration space."""
        self.qtest(f'outl 0xcf8 {1 << 31 | self.slot << 11 | offset:#x}')

    def write(self, address: int, data: bytes) -> None:
        """Write to guest memory."""
        self.qtest(f'write {address:#x} {len(data)} 0x{data.hex()}')

    def start(self) -> None:
        """Reset the device, and set it up."""
        self.config(0)
        assert self.qtest('inl 0xcfc') == self.device << 16 | 0x1af4
        self.config(0x10)
        self.qtest(f'outl 0xcfc {self.port:#x}')
        self.config(4)
        self.qtest('outw 0xcfc 7')
        for status in 0, 1, 3:
            self.qtest(f'outb {self.port + 18:#x} {status}')
        self.qtest(f'outl {self.port + 4:#x} 0')
        self.queues = []
        for index in range(self.number):
            self.qtest(f'outw {self.port + 14:#x} {index}')
            size = self.qtest(f'inw {self.port + 12:#x}')
            base = self.memory + 0x20000 * index
            used = (base + 18 * size + 4 + 4095) & ~4095
            self.qtest(f'memset {base:#x} 0x20000 0')
            self.qtest(f'outl {self.port + 8:#x} {base >> 12}')
            self.queues.append({'base': base, 'size': size, 'used': used,
                                'sent': 0, 'buffers': base + 0x10000})
        self.qtest(f'outb {self.port + 18:#x} 7')

    def put(self, queue: int, request: bytes, room: int, size: int = 0,
            data_in: bool = False, data: int = 0) -> int:
        """
        Queue a request, data of which may be at an offset of the device's own
        memory.  Return where the device is to write its answer.
        """
        state = self.queues[queue]
        slot = state['sent'] % DEPTH
        buffer = state['buffers'] + slot * 0x400
        answer = buffer + 0x200
        self.write(buffer, request)
        self.write(answer, b'\xee' * min(room, 0x100))
        parts = [(buffer, len(request), 0)]
        if size:
            parts.append((self.memory + 0x200000 + data, size,
                          2 if data_in else 0))
        parts.append((answer, room, 2))
        first = slot * 3
        chain = b''.join(struct.pack(
            '<QLHH', address, length, flags | (number + 1 < len(parts)),
            first + number + 1)
            for number, (address, length, flags) in enumerate(parts))
        self.write(state['base'] + first * 16, chain)
        available = state['base'] + 16 * state['size']
        self.write(available + 4 + 2 * (state['sent'] % state['size']),
                   struct.pack('<H', first))
        state['sent'] = (state['sent'] + 1) & 0xffff
        self.write(available + 2, struct.pack('<H', state['sent']))
        return answer

    def kick(self, queue: int = 0) -> None:
        """Tell the device."""
        self.qtest(f'outw {self.port + 16:#x} {queue}')

    def wait(self, queue: int = 0, patience: float = PATIENCE) -> None:
        """Wait until all requests of a queue are answered."""
        state = self.queues[queue]
        end = time.monotonic() + patience
        while self.qtest(f'readw {state["used"] + 2:#x}') != state['sent']:
            if time.monotonic() > end:
                raise Unanswered(f'queue {queue}')
            time.sleep(0.005)

    def blk(self, what: int, sector: int, size: int = 4096, count: int = 1,
            queue: int = 0) -> List[int]:
        """Start requests of a disk; return where their results will be."""
        answers = []
        for number in range(count):
            answers.append(self.put(queue, struct.pack(
                '<LLQ', what, 0, sector + number * size // 512), 1,
                0 if what == FLUSH else size, what == READ))
        self.kick(queue)
        return answers

    def check(self, answers: List[int], good: int = 0) -> None:
        """Check the first byte of answers."""
        for answer in answers:
            result = self.qtest(f'readb {answer:#x}')
            assert result == good, (answer, result)

    def io(self, what: int, sector: int, **kwargs: Any) -> None:
        """Do requests of a disk, and see that all is well."""
        answers = self.blk(what, sector, **kwargs)
        self.wait(kwargs.get('queue', 0))
        self.check(answers)

    def scsi(self, cdb: bytes, queue: int = 2, target: int = 0,
             tag: int = 1, size: int = 0) -> int:
        """Queue a SCSI command that reads; return where its response is."""
        return self.put(queue, struct.pack(
            '<8sQBBB32s', bytes([1, target, 0x40, 0, 0, 0, 0, 0]), tag, 0, 0,
            0, cdb), 108, size, True)

    def tmf(self, subtype: int, target: int = 0, tag: int = 0) -> int:
        """Queue a task management function."""
        return self.put(0, struct.pack(
            '<LL8sQ', 0, subtype, bytes([1, target, 0x40, 0, 0, 0, 0, 0]),
            tag), 1)
