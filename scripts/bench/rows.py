# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of rows: what is measured, and what it has to prove."""
from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterator

from . import balance, instructions, moves, processes, programs, virtqueue
from .guest import QUEUES, Guest, guest
from .processes import QTEST, disks, iothreads
from .qemu import PROGRAM, Qemu
from .stats import Bound

# A stock QEMU beside the other shows what two of the same differ by.
PAIRED = "stock", "again", "patched"


@dataclass(frozen=True)
class Setup:
    """What a row is measured on: one of it for each side, side by side."""
    start: Callable[[Path], ContextManager[Any]]  # from a build folder
    ready: Callable[[Any], object] = lambda target: None
    rounds: int = 1  # before it is started again
    weight: int = 1  # so many times the rounds, where more are cheap
    most: int = 1000  # rounds at all
    sides: tuple[str, ...] = PAIRED


@dataclass(frozen=True)
class Row:
    name: str
    meaning: str
    unit: str
    setup: Setup
    # One figure, from what the setup has started
    sample: Callable[[Any], float]
    bound: Bound | None = None

    @property
    def area(self) -> str:
        """What comes before the colon of its name: a key of AREAS."""
        return self.name.partition(": ")[0]


PC = ["-machine", "pc", "-S"]
SAME = Bound("same")
SLIGHT, FREE = Bound("ratio", 1.02), Bound("ratio", 1.005)


def idle(args: list[str], rounds: int, **more: int) -> Setup:
    """A QEMU that only answers commands."""
    return Setup(lambda build: Qemu(build, [*QTEST, *args]), Qemu.greet,
                 rounds, **more)


def apart(sides: tuple[str, ...] = PAIRED, **more: int) -> Setup:
    """For figures that start what they need: they get the build folder."""
    return Setup(contextlib.nullcontext, sides=sides, **more)


# Titles
AREAS = {
    "work": "Instructions of QEMU, which a busy host does not change",
    "guest": "I/O of a Linux guest under TCG, queues x requests at a time",
    "queue": "I/O by virtqueues without a guest, queues x requests",
    "move": "Devices that move to another IOThread",
    "loop": "Turns of a bare event loop, with its load counted",
    "QMP": "QMP commands", "plug": "Plug and unplug",
    "query": "query-iothreads, with holders and (stock) without",
    "holds": "The registry of holds", "shutdown": "Shutdown",
    "blob": "virtio-gpu blobs", "start": "Start-up",
    "memory": "Memory at rest", "size": f"Size of {PROGRAM}"}


# --- Disks ----------------------------------------------------------------

KINDS = [(disk, scsi, queues) for disk, scsi in
         (("virtio-blk", False), ("virtio-scsi", True)) for queues in QUEUES]


def io() -> Iterator[Row]:
    linux = Setup(guest, Guest.ready, rounds=10)
    for disk, scsi, queues in KINDS:
        for depth, count in ((1, 2048), (32, 8192)):
            yield Row(
                f"guest: {disk}, {queues} x {depth}",
                "a Linux guest under TCG reads 4 KiB from null-co, queues x "
                "requests at a time: the time of a request", "µs", linux,
                methodcaller("read", scsi, queues, depth, count), SAME)
    for disk, scsi, queues in KINDS:
        rings = Setup(partial(virtqueue.disk, scsi=scsi, queues=queues),
                      rounds=8, weight=4)
        for depth, count in ((1, 2000), (32, 1000), (256, 200)):
            yield Row(
                f"queue: {disk}, {queues} x {depth}",
                "the same without a guest, by rings in shared memory: next "
                "to all of the time is QEMU's", "µs", rings,
                methodcaller("read", depth, count // queues), SAME)


def pauses() -> Iterator[Row]:
    alone = apart(("patched",), most=8)
    for disk, scsi in ("virtio-blk", False), ("virtio-scsi", True):
        for storage in "null-co", "file":
            for depth in 1, 32, 256:
                for name, worst, limit in (("median", False, 0.2),
                                           ("99 %", True, 5)):
                    yield Row(
                        f"move: {disk}, {storage}, {depth}, {name}",
                        f"so many requests at a time while it moves "
                        f"{moves.MOVES} times: how long it takes none", "ms",
                        alone, moves.Pause(scsi, storage == "file", depth,
                                           worst),
                        # Many requests of a file take longer than a move.
                        None if storage == "file" and depth > 1 else
                        Bound("value", limit))


def gain() -> Iterator[Row]:
    yield Row("move: two disks on a full thread",
              "iothread-balance moves one of them to another thread, on two "
              "CPUs: the time for a request of both, after to before", "",
              apart(("patched",), most=8), balance.gain, Bound("value", 0.67))


# --- QMP ------------------------------------------------------------------

def timed(rounds: int, run: Callable[[Qemu], object]
          ) -> Callable[[Qemu], float]:
    """The milliseconds of one of the rounds."""
    def sample(qemu: Qemu) -> float:
        start = time.perf_counter()
        for _ in range(rounds):
            run(qemu)
        return (time.perf_counter() - start) * 1e3 / rounds
    return sample


# 97 bytes, as a management program's commands are
QUERY = json.dumps({"execute": "query-name", "id": "libvirt-" + "9" * 53})


def ask(qemu: Qemu) -> None:
    qemu.stream.write(QUERY + "\n")


def one(qemu: Qemu) -> None:
    ask(qemu)
    qemu.answer()


def batch(qemu: Qemu) -> None:
    for _ in range(100):
        ask(qemu)
    for _ in range(100):
        qemu.answer()


def plug(device: dict[str, object], qemu: Qemu) -> None:
    qemu.cmd("device_add", id="d0", **device)
    qemu.cmd("device_del", id="d0")
    # Without a guest, it is a reset that completes the unplug.
    qemu.send("system_reset")
    qemu.deleted("d0")


DEVICES: dict[str, dict[str, object]] = {
    "virtio-blk": {
        "driver": "virtio-blk-pci", "drive": "n0", "iothread": "io0"},
    "virtio-blk, mapped": {
        "driver": "virtio-blk-pci", "drive": "n0", "num-queues": 4,
        "iothread-vq-mapping": [{"iothread": "io0"}, {"iothread": "io1"}]},
    "virtio-scsi": {
        "driver": "virtio-scsi-pci", "iothread": "io0"}}


def qmp() -> Iterator[Row]:
    bare = idle(["-blockdev", "null-co,node-name=n0", *iothreads(64)], 8,
                weight=3)
    yield Row("QMP: one by one", "a QMP command of 97 bytes (query-name), "
              "from the request to its answer", "ms", bare,
              timed(2000, one), Bound("ratio", 0.125))
    yield Row("QMP: 100 at a time", "100 of these requests, then 100 answers: "
              "the time of all", "ms", bare, timed(20, batch),
              Bound("ratio", 0.1))
    for name, device in DEVICES.items():
        yield Row(f"plug: {name}", "device_add, device_del and the reset "
                  "that completes it", "ms", bare,
                  timed(30, partial(plug, device)), SLIGHT)
    for count in (1, 10, 100, 1000):
        for threads in (1, 8, 64):
            held = idle([*iothreads(threads), *disks(count, threads)], 10,
                        most=10)
            yield Row(
                f"query: {count:,} devices on {threads} IOThreads",
                "query-iothreads; stock does not list holders, so the ratio "
                "is what listing them costs", "ms", held,
                timed(2000 // (10 + count),
                      methodcaller("cmd", "query-iothreads")))


# --- Instructions ---------------------------------------------------------

def work() -> Iterator[Row]:
    for disk, scsi, queues in KINDS:
        rings = Setup(partial(instructions.disk, scsi=scsi, queues=queues),
                      rounds=4, most=8)
        yield Row(f"work: {disk}, {queues} x 256", "instructions of QEMU "
                  "for a read of 4 KiB from null-co, queues x requests at a "
                  "time", "", rings,
                  methodcaller("read", 256, 8 // queues), SAME)
    bare = Setup(partial(instructions.idle, args=[
        *QTEST, "-blockdev", "null-co,node-name=n0", *iothreads(64)]),
        instructions.Counted.greet, rounds=4, most=8)
    yield Row("work: QMP", "thousands of them for a QMP command of 97 bytes "
              "(query-name)", "k", bare, methodcaller("run", 500, one),
              Bound("ratio", 0.3))
    for name, device in DEVICES.items():
        yield Row(f"work: plug, {name}", "thousands of them for device_add, "
                  "device_del and the reset that completes it", "k", bare,
                  methodcaller("run", 4, partial(plug, device)), SLIGHT)
    yield Row("work: start", "millions of them from exec to the first "
              "answer, of a machine pc without a guest", "M", apart(most=8),
              partial(instructions.start_up, args=PC), SLIGHT)


# --- Event loops ----------------------------------------------------------

def loops(patched: Path) -> Iterator[Row]:
    for name, case, bound in (
            ("does not block", "nonblocking", FREE),
            ("polls", "polling", FREE), ("waits", "waiting", None)):
        yield Row(f"loop: {name}", "a turn of a bare aio_poll(), which on "
                  "stock does not count its load", "ns", apart(most=12),
                  partial(programs.loop, patched=patched, case=case), bound)


# --- Programs and processes -----------------------------------------------

def registry() -> Iterator[Row]:
    alone = apart(("patched",))
    for count in (10, 1000, 100000):
        yield Row(f"holds: get and put, {count:,} holds",
                  "the registry of holds alone, which stock does not have",
                  "ns", alone, partial(programs.holds, count=count))
    yield Row("holds: walk over 100,000", "what a query does with them",
              "µs", alone, partial(programs.holds, count=100000, walk=True))
    yield Row("holds: slowest to fastest",
              "get and put with 10, 1,000 and 100,000 holds: constant time "
              "is near 1, a tree above 3, a list above 1,000", "", alone,
              partial(programs.holds, count=None), Bound("value", 2))


def process(patched: Path) -> Iterator[Row]:
    many = iothreads(64)
    busy = many + disks(8, 64)
    for load, args in ("", QTEST), (", 64 IOThreads, 8 disks", QTEST + busy):
        for how in "SIGTERM", "quit":
            yield Row(f"shutdown: {how}{load}", "to the end of the process",
                      "ms", apart(weight=3), partial(
                          processes.shutdown, args=args, how=how))
    yield Row("blob: unmap",
              "a virtio-gpu blob, under TCG, from the kick to the answer",
              "ms", apart(most=4), partial(programs.unmap, patched=patched))
    often = apart(weight=8)
    yield Row("start: to the greeting", "from exec to the greeting of QMP",
              "ms", often, partial(
                  processes.start_up, args=["-machine", "none"],
                  answer=False), SLIGHT)
    yield Row("start: to the first answer", "from exec to the first answer, "
              "of a machine pc without a guest", "ms", often, partial(
                  processes.start_up, args=PC, answer=True), SLIGHT)
    yield Row("start: CPU time", "the same, but only time in which it ran",
              "ms", often, partial(processes.start_up_work, args=PC),
              SLIGHT)
    for load, args in ("", QTEST), (", 64 IOThreads", QTEST + many):
        for what, field, meaning in (
                ("RSS", "Rss", "all that is in memory"),
                ("PSS", "Pss", "the same, but shared pages divided by who "
                 "has them"),
                ("private", "Private_Dirty", "what it has written")):
            yield Row(f"memory: {what}{load}", f"at rest: {meaning}", "MiB",
                      apart(most=10), partial(
                          processes.memory, args=args, field=field),
                      Bound("difference", 1, "MiB"))
    sizes = {"file": "the file as built, with debug information",
             "stripped": "the file without symbols"}
    for what in "file", "stripped", "text", "data", "bss":
        yield Row(f"size: {what}", f"{PROGRAM}: "
                  + sizes.get(what, "as the program `size` tells"), "MiB",
                  apart(("stock", "patched"), most=1),
                  partial(processes.size, what=what))


def table(patched: Path) -> list[Row]:
    return [*work(), *io(), *pauses(), *gain(), *loops(patched), *qmp(),
            *registry(), *process(patched)]
