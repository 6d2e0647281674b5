#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that is full under an export whose node moves between IOThreads.

It is a tmpfs, mounted where only this process and its children see it.
"""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from parts import (SIZE, Holders, Job, Nbd, Qemu, errno, eventually, main,
                   null, private_mounts, require, serve, start_nbd)

ROOM = 2 << 20  # of the tmpfs; SIZE does not fit
BLOCK = 1 << 16
THREADS = ["io0", "io1"]
SESSION = 150  # steps of one program


def mount(folder: Path) -> None:
    private_mounts()
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "stress",
                    str(folder)], check=True)


class Disk:
    """An export, and what a client knows to be on it."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        for file in folder.iterdir():
            file.unlink()
        self.qemu = Qemu(job, job.rng.random() < .5)
        self.known: dict[int, int | None] = {}
        self.thread: str | None = "io0"
        for name in THREADS:
            self.qemu.cmd("object-add", {"qom-type": "iothread", "id": name})
        (folder / "disk").touch()
        self.driver = job.rng.choice(["raw", "qcow2"])
        file = {"driver": "file", "filename": str(folder / "disk")}
        if self.driver == "qcow2":
            self.qemu.cmd("blockdev-add", file | {"node-name": "create"})
            self.qemu.cmd("blockdev-create", {
                "job-id": "create", "options": {
                    "driver": "qcow2", "file": "create", "size": SIZE}})
            self.qemu.event("JOB_STATUS_CHANGE", id="create",
                            status="concluded")
            self.qemu.cmd("job-dismiss", id="create")
            self.qemu.cmd("blockdev-del", {"node-name": "create"})
        else:
            os.truncate(folder / "disk", SIZE)
        self.qemu.cmd("blockdev-add", {
            "driver": self.driver, "node-name": "n0",
            "file": file | {"node-name": "f0"}})
        self.qemu.cmd("blockdev-add", null("source"))
        path = start_nbd(self.qemu)
        serve(self.qemu, "e0", "n0", "io0")
        self.nbd = Nbd(path, "e0")

    def step(self) -> None:
        rng = self.job.rng
        what = rng.choices(["write", "read", "move", "fill", "free",
                            "mirror", "flush"], [12, 6, 4, 2, 2, 1, 1])[0]
        number = rng.randrange(SIZE // BLOCK)
        self.job.step(f"{what} {number}")
        if what == "write":
            self.write(number, rng.randrange(1, 256))
        elif what == "read":
            self.read(number)
        elif what == "flush":
            self.expect(self.nbd.flush())
        elif what == "move":
            self.thread = rng.choice([*THREADS, None])
            self.qemu.cmd("x-blockdev-set-iothread", {
                "node-name": "n0", "iothread": self.thread, "force": True})
        elif what == "free":
            (self.folder / "filler").unlink(missing_ok=True)
        elif what == "fill":
            with open(self.folder / "filler", "ab", 0) as stream:
                try:
                    while stream.write(bytes(4096)):
                        pass
                except OSError as error:
                    require(error.errno == errno.ENOSPC, error)
        else:
            self.mirror(rng.choice(["io0", None]))
        self.check()

    def expect(self, error: int) -> bool:
        self.job.counts["ENOSPC" if error else "done"] += 1
        require(error in (0, errno.ENOSPC), f"NBD: error {error}")
        return not error

    def write(self, number: int, value: int) -> None:
        before = self.known.get(number, 0)
        done = self.expect(self.nbd.write(number * BLOCK,
                                          bytes([value]) * BLOCK))
        # A write that fails may have got through in part.
        self.known[number] = value if done else \
            value if before == value else None

    def read(self, number: int) -> None:
        error, data = self.nbd.read(number * BLOCK, BLOCK)
        require(not error, f"read: error {error}")
        value = self.known.get(number, 0)
        require(value is None or data == bytes([value]) * BLOCK,
                f"block {number} is not {value}")

    def mirror(self, thread: str | None) -> None:
        """A job that writes to the full disk fails and leaves nothing."""
        target = self.folder / "target"
        target.touch()
        os.truncate(target, SIZE)
        self.qemu.cmd("blockdev-add", {
            "driver": "file", "node-name": "target",
            "filename": str(target)})
        self.qemu.cmd("x-blockdev-set-iothread", {
            "node-name": "source", "iothread": thread})
        self.qemu.cmd("blockdev-mirror", {
            "job-id": "job", "device": "n0", "target": "target",
            "sync": "full", "auto-dismiss": False})

        def state() -> str:
            text: str = self.qemu.cmd("query-jobs")[0]["status"]
            return text
        eventually(lambda: state() in ("ready", "concluded"), "job ends")
        if state() == "ready":
            self.qemu.done("job-cancel", id="job")
            eventually(lambda: state() == "concluded", "job ends")
        failed = "error" in self.qemu.cmd("query-jobs")[0]
        self.job.counts["failed jobs" if failed else "jobs"] += 1
        self.qemu.cmd("job-dismiss", id="job")
        self.qemu.cmd("blockdev-del", {"node-name": "target"})
        target.unlink()
        self.qemu.cmd("x-blockdev-set-iothread", {
            "node-name": "source", "iothread": None})
        self.thread = self.qemu.place("n0", THREADS)

    def check(self) -> None:
        expected: Holders = {name: [] for name in THREADS}
        if self.thread:
            expected[self.thread] = ["e0", "n0", "f0"]
        self.qemu.held(expected)

    def end(self) -> None:
        self.nbd.close()
        self.qemu.cmd("nbd-server-stop")
        self.qemu.cmd("blockdev-del", {"node-name": "n0"})
        self.qemu.cmd("blockdev-del", {"node-name": "source"})
        for name in THREADS:
            self.qemu.cmd("object-del", id=name)
        self.qemu.quit()


def run(job: Job) -> None:
    folder = Path(job.folder, "full")
    try:
        mount(folder)
    except (PermissionError, subprocess.CalledProcessError) as error:
        print(f"SKIP: cannot mount: {error}")
        sys.exit(77)
    try:
        while job.number < job.steps:
            disk = Disk(job, folder)
            for _ in range(min(SESSION, job.steps - job.number)):
                disk.step()
            disk.end()
    finally:
        job.end()
        subprocess.run(["umount", str(folder)], check=False)


if __name__ == "__main__":
    main(run, 600)
