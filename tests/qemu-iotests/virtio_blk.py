# SPDX-License-Identifier: GPL-2.0-or-later
#
# A small driver for virtio-blk-pci, for tests that want requests in flight
# without a guest: it drives the device through qtest.

import struct
import time
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List

READ = 0
WRITE = 1
FLUSH = 4


@dataclass
class Request:
    """One block; @data is what is written, or what was read."""
    kind: int
    block: int = 0
    data: bytes = b''
    status: int = -1  # until it is answered


class VirtioBlk:
    """
    The driver of a transitional device in @slot of bus 0 of the machine "pc".

    @qtest sends a qtest command and returns the answer. Up to SLOTS requests
    may be in flight; each has a slot of its own for descriptors and data.
    """

    BLOCK = 4096
    SIZE = 256                      # of the virtqueue
    SLOTS = SIZE // 3               # three descriptors for each request
    AVAIL = 16 * SIZE
    USED = 0x2000
    HEADERS = 0x3000
    DATA = 0x4000

    def __init__(self, qtest: Callable[[str], str], slot: int) -> None:
        self.send = qtest
        self.slot = slot
        self.io = 0xc000 + slot * 0x100
        self.queue = slot << 20
        self.flying: Dict[int, Request] = {}
        self.start()

    def qtest(self, command: str) -> str:
        answer = self.send(command).split()
        assert answer[0] == 'OK', f'{command}: {answer}'
        return answer[1] if len(answer) > 1 else ''

    def number(self, command: str) -> int:
        return int(self.qtest(command), 0)

    def write(self, offset: int, data: bytes) -> None:
        self.qtest(f'write {self.queue + offset:#x} {len(data):#x} '
                   f'0x{data.hex()}')

    def config(self, register: int) -> None:
        self.qtest(f'outl 0xcf8 {1 << 31 | self.slot << 11 | register:#x}')

    def start(self) -> None:
        """What a guest does when it has booted: no request is left."""
        self.config(0)
        assert self.number('inl 0xcfc') == 0x10011af4, 'no virtio-blk'
        self.config(0x10)
        self.qtest(f'outl 0xcfc {self.io:#x}')
        self.config(4)
        self.qtest('outw 0xcfc 7')
        self.qtest(f'outb {self.io + 18:#x} 0')
        self.qtest(f'outb {self.io + 18:#x} 3')
        self.qtest(f'outl {self.io + 4:#x} 0')
        self.qtest(f'outw {self.io + 14:#x} 0')
        assert self.number(f'inw {self.io + 12:#x}') == self.SIZE
        self.qtest(f'memset {self.queue:#x} {self.HEADERS:#x} 0')
        self.qtest(f'outl {self.io + 8:#x} {self.queue >> 12:#x}')
        self.qtest(f'outb {self.io + 18:#x} 7')
        self.flying.clear()
        self.submitted = self.seen = 0

    def submit(self, requests: Iterable[Request]) -> None:
        for request in requests:
            slot = next(slot for slot in range(self.SLOTS)
                        if slot not in self.flying)
            header = self.HEADERS + slot * 32
            data = self.DATA + slot * self.BLOCK
            self.write(header, struct.pack(
                '<IIQB', request.kind, 0, request.block * 8, 0xff))
            if request.kind == WRITE:
                assert len(request.data) == self.BLOCK
                self.write(data, request.data)
            size = 0 if request.kind == FLUSH else self.BLOCK
            first = slot * 3
            self.write(first * 16, struct.pack(
                '<QIHHQIHHQIHH',
                self.queue + header, 16, 1, first + (1 if size else 2),
                self.queue + data, size, 3 if request.kind == READ else 1,
                first + 2,
                self.queue + header + 16, 1, 2, 0))
            self.write(self.AVAIL + 4 + self.submitted % self.SIZE * 2,
                       struct.pack('<H', first))
            self.submitted = (self.submitted + 1) % 65536
            self.flying[slot] = request
        self.write(self.AVAIL + 2, struct.pack('<H', self.submitted))
        self.kick()

    def kick(self) -> None:
        self.qtest(f'outw {self.io + 16:#x} 0')

    def reap(self) -> List[Request]:
        """The requests that were answered since the last time."""
        done = []
        used = self.queue + self.USED
        while self.seen != self.number(f'readw {used + 2:#x}'):
            entry = used + 4 + self.seen % self.SIZE * 8
            slot, rest = divmod(self.number(f'readl {entry:#x}'), 3)
            assert rest == 0 and slot in self.flying, 'answered twice'
            request = self.flying.pop(slot)
            header = self.queue + self.HEADERS + slot * 32
            request.status = self.number(f'readb {header + 16:#x}')
            if request.kind == READ:
                data = self.queue + self.DATA + slot * self.BLOCK
                request.data = bytes.fromhex(self.qtest(
                    f'read {data:#x} {self.BLOCK:#x}')[2:])
            self.seen = (self.seen + 1) % 65536
            done.append(request)
        return done

    def drain(self, timeout: float = 20) -> List[Request]:
        """Wait for all requests; returns those that reap() has not."""
        done = []
        deadline = time.monotonic() + timeout
        while True:
            done += self.reap()
            if not self.flying:
                return done
            assert time.monotonic() < deadline, 'a request was lost'
            time.sleep(0.005)
