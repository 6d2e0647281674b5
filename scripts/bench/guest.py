# SPDX-License-Identifier: GPL-2.0-or-later
"""A small Linux guest with a disk of each kind, and its load."""
from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator

from fork.demo import load_guest

from .qemu import Missing, Qemu
from .virtqueue import IOTHREADS, options

QUEUES = 1, 4


@functools.cache
def program() -> bytes:
    """The load, built for the guest."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise Missing("no C compiler for the guest's load")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        made = Path(name, "load")
        done = subprocess.run(
            [compiler, "-O2", "-Wall", "-static", "-o", made,
             Path(__file__).with_name("load.c")],
            capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing("the guest's load does not compile: "
                          + done.stderr.strip())
        return made.read_bytes()


class Guest:
    """Has started, and can be used after ready()."""

    def __init__(self, qemu: Qemu, console: Any, linux: Any) -> None:
        self.qemu, self._console, self._linux = qemu, console, linux
        self.disks: dict[str, str] = {}  # by serial number

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except self._linux.GuestError as error:
            raise RuntimeError(str(error)) from None

    def run(self, line: str) -> str:
        with self.errors():
            return str(self._console.run(line, 120))

    def ready(self) -> None:
        self.qemu.greet()
        with self.errors():
            self._console.wait_ready(120)
        # A SCSI disk comes some time after its adapter.
        self.run(
            "for n in $(seq 200); do [ $(ls /sys/block | grep -c '^sd') = "
            f"{len(QUEUES)} ] && break; usleep 100000; done")

    def read(self, scsi: bool, queues: int, depth: int,
             requests: int) -> float:
        """Reads 4 KiB blocks; returns the microseconds for one."""
        name = node(scsi, queues)
        find = ("cd /sys/block; grep -l {} sd*/device/vpd_pg80 | "
                "cut -d/ -f1" if scsi else "disk {}").format(name)
        if not (disk := self.disks.get(name)):
            disk = self.disks[name] = self.run(find)
        start = time.perf_counter()
        self.run(f"load /dev/{disk} {queues} {depth} "
                 f"{requests // queues}")
        return (time.perf_counter() - start) * 1e6 / requests


def node(scsi: bool, queues: int) -> str:
    return f"{'scsi' if scsi else 'blk'}{queues}"


@contextlib.contextmanager
def guest(build: Path) -> Iterator[Guest]:
    linux = load_guest()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="bench-"))
        try:
            args = linux.guest_args(
                folder, linux.MODULES + ("virtio_scsi", "sd_mod"),
                {"load": program()})
        except linux.GuestMissing as error:
            raise Missing(str(error)) from None
        console, far = socket.socketpair()
        stack.enter_context(console)
        with far:
            args += ["-machine", "pc", *IOTHREADS,
                     "-chardev", f"socket,id=console,fd={far.fileno()}",
                     "-serial", "chardev:console"]
            for scsi in False, True:
                for queues in QUEUES:
                    args += options(node(scsi, queues), scsi, queues, {})
            qemu = stack.enter_context(Qemu(build, args, (far.fileno(),)))
        yield Guest(qemu, linux.GuestConsole(console), linux)
