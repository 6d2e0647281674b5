# SPDX-License-Identifier: GPL-2.0-or-later
"""What iothread-balance gains where two disks fill one IOThread."""
from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

from .qemu import TIMEOUT, Missing
from .virtqueue import CAPACITY, CPUS, SIZE, SLOT, Disk, machine

DEPTH = SIZE  # what is in the queue lasts longer than the driver sleeps
COPIES = 31
SECONDS = 1.5
# Each answer is made of copies, which are compared: so a thread has work to do,
# and no other does it.
COPY = {"driver": "null-co", "size": CAPACITY, "read-zeroes": True}


def tool(build: Path) -> Path:
    config = (build / "config-host.mak").read_text()
    found = re.search(r"(?m)^SRC_PATH=(.*)$", config)
    assert found
    path = Path(found[1]) / "scripts" / "iothread-balance"
    if not path.exists():
        raise Missing(f"no {path.name}")
    return path


def two_disks() -> list[str]:
    args = []
    for number in range(2):
        name = f"d{number}"
        args += ["-blockdev", json.dumps({
            "driver": "quorum", "node-name": name, "vote-threshold": 2,
            "children": [COPY] * COPIES}), "-device", json.dumps({
                "driver": "virtio-blk-pci", "id": name, "drive": name,
                "num-queues": 1, "queue-size": SIZE, "iothread": "io0",
                "addr": str(SLOT + number)})]
    return args


def rate(disks: list[Disk], going: Callable[[], bool]) -> float:
    """Reads from both as long as that; returns requests per second.  Each
    always has some, and this sleeps meanwhile: the CPUs are for QEMU."""
    def left(disk: Disk) -> int:
        return disk.sent - disk.words[disk.used(0) // 2 + 1] & 0xffff

    start, done = time.perf_counter(), 0
    end = time.monotonic() + 10
    while going():
        for disk in disks:
            if left(disk) <= DEPTH // 2:
                disk.sent = disk.sent + DEPTH // 2 & 0xffff
                disk.words[disk.available(0) // 2 + 1] = disk.sent
                disk.test.sendall(disk.kick())
                disk.answers(1)
                done += DEPTH // 2
                end = time.monotonic() + 10
        if time.monotonic() > end:
            raise RuntimeError("QEMU did not complete its requests")
        time.sleep(0.001)
    took = time.perf_counter() - start
    while any(left(disk) for disk in disks):
        time.sleep(0.001)
        if time.monotonic() > end:
            raise RuntimeError("QEMU did not complete its requests")
    return done / took


def gain(build: Path) -> float:
    """How long both disks take for a request when iothread-balance has
    moved one of them, to before."""
    def lasting() -> Callable[[], bool]:
        end = time.monotonic() + SECONDS
        return lambda: time.monotonic() < end

    program = tool(build)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/qmp"
        with machine(build, [*two_disks(), "-qmp",
                             f"unix:{path},server=on,wait=off"],
                     CPUS) as (qemu, test, memory):
            disks = [Disk(qemu, test, memory, False, 1, number)
                     for number in range(2)]
            for disk in disks:
                disk.start()
            rate(disks, lasting())
            for disk in disks:
                disk.check()
            before = rate(disks, lasting())
            with subprocess.Popen(
                    [sys.executable, "-B", program, "--once", "--json",
                     "--full", "10", "--gain", "5", "--delay", "1", path],
                    stdout=subprocess.PIPE) as process:
                rate(disks, lambda: process.poll() is None)
                said = process.communicate(timeout=TIMEOUT)[0]
            (told,) = json.loads(said)["vms"]
            if [move["done"] for move in told["moves"]] != [True]:
                raise RuntimeError(f"not one disk has moved: {told}")
            after = rate(disks, lasting())
            for disk in disks:
                disk.check()
            return before / after
