# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver of virtio disks without a guest.

The guest's memory is shared: requests are written to its rings, and the
used index is watched, as a guest does.  Only kicks go through QEMU's test
protocol.  So next to all of the time is QEMU's: from the IOThread that finds
the requests to the block layer and back.  It speaks to the device as to one
before virtio 1.0, which is the shortest way to a queue and the same data path.
"""
from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import struct
import time
from pathlib import Path
from typing import Iterator, Sequence

from .qemu import Qemu

RAM = 64 << 20
SLOT = 4  # on the PCI bus
BAR = 0xc000
# Registers of the device
GUEST_FEATURES, QUEUE_PFN, QUEUE_SELECT, NOTIFY, STATUS = 4, 8, 14, 16, 18
DRIVER_OK = 1 | 2 | 4  # after ACKNOWLEDGE and DRIVER
SIZE = 1024  # of a queue, in descriptors
RING, DATA = 1 << 20, 16 << 20  # each queue has a MiB of both
BLOCK = 4096
CAPACITY = 64 << 20
IOTHREADS = ["-object", "iothread,id=io0", "-object", "iothread,id=io1"]
NEXT, WRITE = 1, 2  # flags of a descriptor
NO_INTERRUPT = 1
# Driver and QEMU keep apart where they can: who shares a CPU with whom would
# be chance, and is most of the time of a single request.
CPUS = sorted(os.sched_getaffinity(0))
DRIVER, DEVICE = CPUS[:1], CPUS[1:] or CPUS


@contextlib.contextmanager
def on(cpus: list[int]) -> Iterator[None]:
    """Runs on these CPUs, as does what is started meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Disk:
    """Some queues of a disk, each with so many requests at a time."""

    def __init__(self, qemu: Qemu, test: socket.socket, memory: mmap.mmap,
                 scsi: bool, queues: int, number: int = 0) -> None:
        """There may be a few disks, each with a number."""
        self.qemu, self.test, self.memory = qemu, test, memory
        self.words = memoryview(memory).cast("H")
        self.scsi, self.queues = scsi, queues
        self.slot, self.bar = SLOT + number, BAR + 0x100 * number
        self.first = 4 * number  # of the places for queues
        self.sent = 0

    def out(self, size: str, address: int, value: int) -> None:
        self.test.sendall(f"out{size} {address:#x} {value:#x}\n".encode())
        self.answers(1)

    def answers(self, count: int) -> None:
        said = b""
        while said.count(b"\n") < count:
            more = self.test.recv(4096)
            if not more:
                raise self.qemu.gone()
            said += more
        if said != b"OK\n" * count:
            raise RuntimeError(f"QEMU's answer is {said.decode()!r}")

    def start(self) -> None:
        """Puts the device on the bus, and fills the rings."""
        config = 0x80000000 | self.slot << 11
        for register, size, value in ((0x10, "l", self.bar),
                                      (0x04, "w", 5)):
            self.out("l", 0xcf8, config | register)
            self.out(size, 0xcfc, value)
        self.out("b", self.bar + STATUS, 0)
        self.out("b", self.bar + STATUS, 3)
        self.out("l", self.bar + GUEST_FEATURES, 0)
        for queue in range(self.queues):
            self.out("w", self.bar + QUEUE_SELECT, self.number(queue))
            self.out("l", self.bar + QUEUE_PFN, self.ring(queue) // 4096)
            self.fill(queue)
        self.out("b", self.bar + STATUS, DRIVER_OK)

    def number(self, queue: int) -> int:
        """SCSI has two queues before those for requests."""
        return queue + 2 if self.scsi else queue

    def ring(self, queue: int) -> int:
        return RING + (self.first + queue << 20)

    def data(self, queue: int) -> int:
        return DATA + (self.first + queue << 20)

    def available(self, queue: int) -> int:
        return self.ring(queue) + 16 * SIZE

    def used(self, queue: int) -> int:
        return self.available(queue) + (6 + 2 * SIZE + 4095) // 4096 * 4096

    def fill(self, queue: int) -> None:
        """As many requests as there are ring entries.  They share their
        descriptors: the ring names each of them SIZE / COUNT times."""
        for index in range(COUNT):
            # The request in front of its answer; all share a page of data.
            head = self.data(queue) + 4096 + index * 256
            data = self.data(queue), BLOCK, WRITE
            # Every other block, so that QEMU does not make one of two.
            place = index * 16
            if self.scsi:
                words = struct.pack(">BBIBHB", 0x28, 0, place, 0, 8, 0)
                request = struct.pack("<BBBB4xQ3x", 1, 0, 0x40, 0, index) \
                    + words.ljust(32, b"\0")
                parts = [(head, len(request), 0), (head + 64, 108, WRITE),
                         data]
            else:
                request = struct.pack("<IIQ", 0, 0, place)
                parts = [(head, len(request), 0), data,
                         (head + 64, 1, WRITE)]
            self.memory[head:head + len(request)] = request
            for part, (address, length, flags) in enumerate(parts):
                last = part == len(parts) - 1
                struct.pack_into(
                    "<QIHH", self.memory,
                    self.ring(queue) + 16 * (3 * index + part), address,
                    length, flags | (0 if last else NEXT),
                    0 if last else 3 * index + part + 1)
        entries = [3 * (n % COUNT) for n in range(SIZE)]
        struct.pack_into(f"<HH{SIZE}H", self.memory, self.available(queue),
                         NO_INTERRUPT, 0, *entries)

    def check(self) -> None:
        """All requests were successful."""
        for queue in range(self.queues):
            for index in range(COUNT):
                at = self.data(queue) + 4096 + index * 256 + 64
                good = self.memory[at + 10:at + 12] == b"\0\0" \
                    if self.scsi else self.memory[at] == 0
                if not good:
                    raise RuntimeError(f"request {index} of queue {queue} "
                                       "failed")

    def read(self, depth: int, rounds: int) -> float:
        """Reads depth blocks at a time from each queue; returns the time
        for one of them, in microseconds."""
        with on(DRIVER):
            return self.rounds(depth, rounds) * 1e6 / (
                rounds * depth * self.queues)

    def rounds(self, depth: int, rounds: int) -> float:
        """The seconds for all of that."""
        words, done = self.words, [
            self.used(queue) // 2 + 1 for queue in range(self.queues)]
        ready = [self.available(queue) // 2 + 1
                 for queue in range(self.queues)]
        kick = self.kick()
        start = time.perf_counter()
        for _ in range(rounds):
            self.sent = (self.sent + depth) & 0xffff
            for place in ready:
                words[place] = self.sent
            self.test.sendall(kick)
            for place in done:
                if words[place] != self.sent:
                    self.wait(place)
            self.answers(self.queues)
        return time.perf_counter() - start

    def kick(self) -> bytes:
        """What tells QEMU that there are requests."""
        return b"".join(
            b"outw %#x %#x\n" % (self.bar + NOTIFY, self.number(queue))
            for queue in range(self.queues))

    def wait(self, place: int) -> None:
        """Where there are more threads than CPUs, QEMU's go first."""
        end = time.monotonic() + 10
        while self.words[place] != self.sent:
            os.sched_yield()
            if time.monotonic() > end:
                raise RuntimeError("QEMU did not complete its requests")


COUNT = SIZE // 4  # requests of three descriptors; divides SIZE


NULL = f"null-co,size={CAPACITY},read-zeroes=off"


def options(name: str, scsi: bool, queues: int, more: dict[str, object],
            node: str = NULL, device: str = "") -> list[str]:
    """A disk; its queues run in an IOThread, several in two."""
    threads: dict[str, object] = {"iothread": "io0"} if queues == 1 else {
        "iothread-vq-mapping": [{"iothread": "io0"}, {"iothread": "io1"}]}
    args = ["-blockdev", f"{node},node-name={name}"]
    device = device or f"hba-{name}"
    devices: list[dict[str, object]] = [
        {"driver": "virtio-scsi-pci", "id": device,
         "num_queues": queues, **threads, **more},
        {"driver": "scsi-hd", "drive": name, "bus": f"{device}.0",
         "scsi-id": 0, "lun": 0, "serial": name}] if scsi else [
        {"driver": "virtio-blk-pci", "drive": name, "serial": name,
         "id": device,
         "num-queues": queues, **threads, **more}]
    for each in devices:
        args += ["-device", json.dumps(each)]
    return args


@contextlib.contextmanager
def machine(build: Path, args: Sequence[str], cpus: list[int],
            under: Sequence[str] = ()
            ) -> Iterator[tuple[Qemu, socket.socket, mmap.mmap]]:
    """A QEMU on these CPUs, whose memory and test protocol we have."""
    with contextlib.ExitStack() as stack:
        ram = os.memfd_create("bench")
        stack.callback(os.close, ram)
        os.ftruncate(ram, RAM)
        test, far = socket.socketpair()
        stack.enter_context(test)
        test.settimeout(60)
        with far, on(cpus):
            qemu = stack.enter_context(Qemu(build, [
                "-machine", "pc,memory-backend=ram", "-accel", "qtest",
                "-m", "64M", "-object", "memory-backend-file,id=ram,size=64M,"
                f"share=on,mem-path=/proc/self/fd/{ram}",
                "-chardev", f"socket,id=test,fd={far.fileno()}",
                "-object", "qtest,id=test,chardev=test,log=none",
                *IOTHREADS, *args], (ram, far.fileno()), under))
        memory = mmap.mmap(ram, RAM)
        qemu.greet()
        yield qemu, test, memory


@contextlib.contextmanager
def disk(build: Path, scsi: bool, queues: int, under: Sequence[str] = (),
         node: str = NULL, args: Sequence[str] = ()) -> Iterator[Disk]:
    with machine(build, [*options("n0", scsi, queues, {
            "addr": str(SLOT),
            "virtqueue_size" if scsi else "queue-size": SIZE}, node,
            "moving"), *args], DEVICE, under) as (qemu, test, memory):
        found = Disk(qemu, test, memory, scsi, queues)
        found.start()
        # The first answers of a SCSI disk tell of its power-on.
        found.read(COUNT, 2)
        found.check()
        yield found
