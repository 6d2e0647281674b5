#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that runs out where a program is ready for that.

Jobs, NBD requests, image formats: they fail or succeed, and the holders are
right.  The program is a plain build: sanitizers have a malloc of their own.
"""
from __future__ import annotations

import mmap
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

from parts import (SIZE, Holders, Job, Nbd, Qemu, errno, eventually, main,
                   null, require, serve, start_nbd)

THREADS = ["io0", "io1"]
SESSION = 60  # steps of one program
BLOCK = 1 << 16
PROGRAMS = ["qemu-system-x86_64", "storage-daemon/qemu-storage-daemon"]
FORMATS = ["qcow2", "qed", "vdi", "vmdk", "vpc", "parallels", "qcow"]


def shim(job: Job) -> str:
    path = Path(job.folder, "no-memory.so")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(path),
                    str(Path(__file__).with_suffix(".c")), "-ldl"],
                   check=True)
    return str(path)


def memalign(program: Path) -> str:
    """Where in a program the two functions are, as hexadecimal numbers:
    which may fail and which not."""
    found = {}
    for line in subprocess.run(
            ["nm", "-S", str(program)], stdout=subprocess.PIPE, text=True,
            check=True).stdout.splitlines():
        words = line.split()
        if len(words) == 4:
            found[words[3]] = f"{words[0]} {words[1]}"
    return f"{found['qemu_try_memalign']} {found['qemu_memalign']}"


class Session:
    def __init__(self, job: Job, preload: str) -> None:
        self.job = job
        knobs = Path(job.folder, "knobs")
        knobs.write_bytes(bytes(4096))
        with open(knobs, "r+b") as stream:
            self.knobs = mmap.mmap(stream.fileno(), 4096)
        os.environ["STRESS_NO_MEMORY"] = str(knobs)
        daemon = job.rng.random() < .7
        os.environ["STRESS_MEMALIGN"] = memalign(
            job.build / PROGRAMS[daemon])
        self.qemu = Qemu(job, daemon, preload=preload)
        self.thread: str | None = "io0"
        for name in THREADS:
            self.qemu.cmd("object-add", {"qom-type": "iothread", "id": name})
        self.create("disk", "qcow2", True)
        self.open("disk", "qcow2", "n0")
        self.qemu.cmd("blockdev-add", null("null"))
        self.path = start_nbd(self.qemu)
        serve(self.qemu, "e0", "n0", "io0")
        self.check()

    def rate(self, permille: int) -> None:
        self.knobs[:4] = struct.pack("<L", permille)

    def failed(self) -> int:
        count: int = struct.unpack("<L", self.knobs[4:8])[0]
        return count

    def create(self, name: str, kind: str, must: bool = False) -> bool:
        """Makes an image, by a job."""
        path = self.qemu.folder / name
        path.unlink(missing_ok=True)
        path.touch()
        file = {"driver": "file", "node-name": "create",
                "filename": str(path)}
        self.qemu.cmd("blockdev-add", file)
        self.qemu.cmd("blockdev-create", {
            "job-id": "create", "options": {
                "driver": kind, "file": "create", "size": SIZE}})
        error = self.job_end("create")
        self.qemu.cmd("blockdev-del", {"node-name": "create"})
        require(not must or not error, error)
        return not error

    def job_end(self, name: str) -> str:
        self.qemu.event("JOB_STATUS_CHANGE", id=name, status="concluded")
        error: str = [job for job in self.qemu.cmd("query-jobs")
                      if job["id"] == name][0].get("error", "")
        self.qemu.cmd("job-dismiss", id=name)
        return error

    def image(self, name: str, kind: str, node: str) -> dict[str, Any]:
        return {"driver": kind, "node-name": node, "file": {
            "driver": "file", "node-name": node + "-file",
            "filename": str(self.qemu.folder / name)}}

    def open(self, name: str, kind: str, node: str) -> None:
        self.qemu.cmd("blockdev-add", self.image(name, kind, node))

    def step(self) -> None:
        rng = self.job.rng
        what = rng.choices(["io", "image", "mirror", "backup", "move",
                            "snapshot", "resize"], [6, 4, 3, 3, 2, 2, 1])[0]
        rate = rng.choice([0, 20, 100, 300, 1000])
        kind = rng.choice(FORMATS)
        thread = rng.choice([*THREADS, None])
        writes = [(rng.random() < .5, rng.randrange(SIZE // BLOCK),
                   rng.choice([512, 4096, BLOCK])) for _ in range(20)]
        self.job.step(f"{what}, {rate} of 1,000 fail, {kind}, {thread}")
        self.rate(rate)
        done = True
        if what == "io":
            done = self.io(writes)
        elif what == "move":
            self.qemu.cmd("x-blockdev-set-iothread", {
                "node-name": "n0", "iothread": thread, "force": True})
            self.thread = thread
        elif what == "image":
            done = self.try_image(kind)
        elif what == "snapshot":
            done = self.qemu.done("blockdev-snapshot-internal-sync",
                                  {"device": "n0", "name": "s"})
            self.rate(0)
            if done:
                self.qemu.cmd("blockdev-snapshot-delete-internal-sync",
                              {"device": "n0", "name": "s"})
        elif what == "resize":
            done = self.qemu.done("block_resize", {
                "node-name": "n0", "size": SIZE})
        else:
            done = self.job_on(what)
        self.rate(0)
        if what in ("mirror", "backup", "image"):
            self.home()
        self.job.counts[what + (" done" if done else " failed")] += 1
        self.check()

    def io(self, plan: list[tuple[bool, int, int]]) -> bool:
        """A request that gets no memory is refused, or its client."""
        done = True
        try:
            nbd = Nbd(self.path, "e0")
            for writes, block, size in plan:
                error = nbd.write(block * BLOCK, bytes(size)) if writes \
                    else nbd.read(block * BLOCK, size)[0]
                done = done and not error
                require(error in (0, errno.ENOMEM), f"NBD: error {error}")
            nbd.close()
        except ConnectionError:
            done = False
        self.rate(0)
        nbd = Nbd(self.path, "e0")
        require(not nbd.read(0, 4096)[0], "read")
        nbd.close()
        return done

    def try_image(self, kind: str) -> bool:
        if not self.create("image", kind):
            return False
        done = self.qemu.done("blockdev-add",
                              self.image("image", kind, "n1"))
        if done:
            if self.thread:
                self.qemu.cmd("x-blockdev-set-iothread", {
                    "node-name": "n1", "iothread": self.thread})
                self.check("n1", "n1-file")
            self.rate(0)
            self.qemu.cmd("blockdev-del", {"node-name": "n1"})
        return done

    def job_on(self, what: str) -> bool:
        """Copies from n0 to null."""
        if what == "mirror":
            begun = self.qemu.done("blockdev-mirror", {
                "job-id": "job", "device": "n0", "target": "null",
                "sync": "full", "auto-dismiss": False,
                "on-source-error": "report", "on-target-error": "report"})
        elif self.thread:
            return True  # stock QEMU asserts that nodes do not move then
        else:
            begun = self.qemu.done("blockdev-backup", {
                "job-id": "job", "device": "n0", "target": "null",
                "sync": "full", "auto-dismiss": False})
        if not begun:
            return False
        if what == "mirror":
            eventually(lambda: self.qemu.cmd("query-jobs")[0]["status"] in (
                "ready", "concluded"), "mirror ends")
            self.rate(0)
            ready = self.qemu.done("job-cancel", id="job")
            return not self.job_end("job") or ready
        return not self.job_end("job")

    def home(self) -> None:
        """Nodes that lose a parent, as a job is, may go home."""
        self.qemu.cmd("x-blockdev-set-iothread", {
            "node-name": "null", "iothread": None})
        self.thread = self.qemu.place("n0", THREADS)

    def check(self, *more: str) -> None:
        expected: Holders = {name: [] for name in THREADS}
        if self.thread:
            expected[self.thread] = ["e0", "n0", "n0-file", *more]
        self.qemu.held(expected)

    def end(self) -> None:
        self.qemu.cmd("nbd-server-stop")
        self.qemu.cmd("blockdev-del", {"node-name": "n0"})
        self.qemu.cmd("blockdev-del", {"node-name": "null"})
        for name in THREADS:
            self.qemu.cmd("object-del", id=name)
        self.qemu.quit()
        self.job.counts["allocations failed"] += self.failed()
        self.knobs.close()


def run(job: Job) -> None:
    preload = shim(job)
    while job.number < job.steps:
        session = Session(job, preload)
        for _ in range(min(SESSION, job.steps - job.number)):
            session.step()
        session.end()
    require(job.counts["allocations failed"], "no allocation failed")


if __name__ == "__main__":
    main(run, 300)
