# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions instead of time: a busy host does not change them.

valgrind runs QEMU and counts.  Its threads take turns then, and what the
kernel does is not counted; but all of QEMU's own work is.
"""
from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Callable, Iterator

from . import virtqueue
from .qemu import Missing, Qemu


class Counter:
    """Counts for one QEMU, which is to be started by its words."""

    def __init__(self, folder: str) -> None:
        if not shutil.which("callgrind_control"):
            raise Missing("valgrind is not installed")
        self.folder = Path(folder)
        self.words = ["valgrind", "--tool=callgrind", "-q", "--fair-sched=yes",
                      f"--callgrind-out-file={folder}/count"]

    def count(self, qemu: Qemu) -> int:
        """Instructions since the last call, or since the start."""
        done = subprocess.run(
            ["callgrind_control", "--dump", str(qemu.process.pid)],
            text=True, timeout=60, check=False, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        total = 0
        # One file for each dump
        for file in self.folder.iterdir():
            found = re.search(r"(?m)^totals: (\d+)", file.read_text())
            total += int(found[1]) if found else 0
            file.unlink()
        if not total:
            raise RuntimeError("valgrind has not counted: "
                               + done.stdout.strip())
        return total


@contextlib.contextmanager
def counter() -> Iterator[Counter]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Counter(folder)


def start_up(build: Path, args: list[str]) -> float:
    """Millions from exec to the first answer."""
    with counter() as found, Qemu(build, args, under=found.words) as qemu:
        qemu.greet()
        return found.count(qemu) / 1e6


class Counted:
    """A QEMU, or a disk of it, that has been started to be counted."""

    def __init__(self, found: Counter, qemu: Qemu,
                 disk: virtqueue.Disk | None = None) -> None:
        self.counter, self.qemu, self.disk = found, qemu, disk

    def greet(self) -> None:
        self.qemu.greet()

    def spent(self, work: Callable[[], object]) -> int:
        self.counter.count(self.qemu)
        work()
        return self.counter.count(self.qemu)

    def read(self, depth: int, rounds: int) -> float:
        """Reads depth blocks at a time from each queue; how many for each."""
        disk = self.disk
        assert disk
        return self.spent(lambda: disk.read(depth, rounds)) / (
            depth * rounds * disk.queues)

    def run(self, rounds: int, work: Callable[[Qemu], object]) -> float:
        """Thousands for one of the rounds."""
        return self.spent(lambda: [
            work(self.qemu) for _ in range(rounds)]) / rounds / 1e3


@contextlib.contextmanager
def idle(build: Path, args: list[str]) -> Iterator[Counted]:
    with counter() as found, Qemu(build, args, under=found.words) as qemu:
        yield Counted(found, qemu)


@contextlib.contextmanager
def disk(build: Path, scsi: bool, queues: int) -> Iterator[Counted]:
    with counter() as found, \
            virtqueue.disk(build, scsi, queues, found.words) as made:
        yield Counted(found, made.qemu, made)
