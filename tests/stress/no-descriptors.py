#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that run out of file descriptors, at each of them in turn.

They fail or succeed, and either way the holders are right.  Some code gives
up by design: glib, when there is no descriptor to wake its loops.
"""
from __future__ import annotations

import itertools
import os
import resource
from typing import Any

from parts import (LIMIT, SIZE, Failure, Job, Nbd, Qemu, Timeout, main, null,
                   require, serve, start_nbd, unexport)

BY_DESIGN = "Creating pipes for GWakeup"
SYSTEM = ["iothread", "virtio-blk", "virtio-scsi", "balloon", "start",
          "vfio-user", "nbd", "vhost-user", "client", "file", "move"]
DAEMON = ["iothread", "nbd", "vhost-user", "client", "file", "move"]
RAM = ["-machine", "pc", "-m", "16"]
SESSION = 40  # steps of one program


def limit(qemu: Qemu, free: int | None) -> None:
    """Lets a program open so many descriptors more; None: all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = qemu.program.pid
    if free is not None:
        used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
        unused = (fd for fd in itertools.count() if fd not in used)
        soft = next(itertools.islice(unused, free, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def start(job: Job, daemon: bool) -> Qemu:
    qemu = Qemu(job, daemon, [] if daemon else RAM)
    for name in ("io0", "io1"):
        qemu.cmd("object-add", {"qom-type": "iothread", "id": name})
    for name in ("n0", "n1"):
        qemu.cmd("blockdev-add", null(name))
    start_nbd(qemu)
    serve(qemu, "e1", "n1", "io1")
    qemu.held({"io0": [], "io1": ["e1", "n1"]})
    (qemu.folder / "disk").touch()
    os.truncate(qemu.folder / "disk", SIZE)
    return qemu


def driver_ok(qemu: Qemu) -> None:
    """What a driver does last; then queues get their descriptors."""
    for register, value in ((0x10, 0x2000), (0x04, 5)):
        qemu.hmp(f"o /w 0xcf8 {0x80000000 | 16 << 11 | register:#x}")
        qemu.hmp(f"o /w 0xcfc {value:#x}")
    for status in (1, 3, 7):
        qemu.hmp(f"o /b 0x2012 {status}")


def attempt(qemu: Qemu, what: str) -> tuple[bool, list[tuple[str, Any]]]:
    """Tries it; was it done, and the commands that undo it."""
    device = {"id": "d0", "addr": "0x10", "iothread": "io0"}
    vfio = {"driver": "vfio-user-pci", "id": "d0", "x-msg-timeout": 200,
            "socket": {"type": "unix", "path": "/none"}}
    commands: dict[str, tuple[str, Any, list[tuple[str, Any]]]] = {
        "iothread": ("object-add", {"qom-type": "iothread", "id": "io2"},
                     [("object-del", {"id": "io2"})]),
        "virtio-blk": ("device_add", device | {
            "driver": "virtio-blk-pci", "drive": "n0"}, []),
        "virtio-scsi": ("device_add", device | {
            "driver": "virtio-scsi-pci"}, []),
        "balloon": ("device_add", device | {
            "driver": "virtio-balloon-pci", "free-page-hint": True}, []),
        "vfio-user": ("device_add", vfio, []),
        "nbd": ("block-export-add", {
            "type": "nbd", "id": "e0", "node-name": "n0",
            "iothread": "io0"}, [("block-export-del", {"id": "e0"})]),
        "vhost-user": ("block-export-add", {
            "type": "vhost-user-blk", "id": "e0", "node-name": "n0",
            "iothread": "io0", "addr": {
                "type": "unix", "path": str(qemu.folder / "v")}},
            [("block-export-del", {"id": "e0"})]),
        "file": ("blockdev-add", {
            "driver": "file", "node-name": "f0",
            "filename": str(qemu.folder / "disk")},
            [("blockdev-del", {"node-name": "f0"})]),
        "move": ("x-blockdev-set-iothread", {
            "node-name": "n0", "iothread": "io0"},
            [("x-blockdev-set-iothread", {
                "node-name": "n0", "iothread": None})])}
    name, arguments, undo = commands[what]
    return qemu.done(name, arguments), undo


def step(job: Job, qemu: Qemu, what: str, free: int) -> None:
    job.step(f"{what} with {free} free")
    before = qemu.holders()
    if what == "start":
        require(attempt(qemu, "virtio-blk")[0], "not plugged")
        limit(qemu, free)
        driver_ok(qemu)
        done = True
        undo: list[tuple[str, Any]] = []
    elif what == "client":
        limit(qemu, free)
        # A server that cannot accept tries again.
        nbd = Nbd(qemu.folder / "nbd", "e1", greet=False)
        qemu.cmd("query-version")
        limit(qemu, None)
        nbd.take(18)
        nbd.socket.sendall(nbd.opening)
        nbd.take(10)
        require(nbd.read(0, 512)[0] == 0, "read")
        nbd.close()
        done, undo = True, []
    else:
        limit(qemu, free)
        done, undo = attempt(qemu, what)
    limit(qemu, None)
    job.counts["done" if done else "refused"] += 1
    if not done:
        require(qemu.holders() == before, f"a refusal left traces: {before} "
                f"{qemu.holders()}")
    for name, arguments in undo if done else []:
        if name == "block-export-del":
            unexport(qemu, arguments["id"])
            qemu.cmd("x-blockdev-set-iothread", {
                "node-name": "n0", "iothread": None})
        else:
            qemu.cmd(name, arguments)
    if done and what in ("virtio-blk", "virtio-scsi", "balloon", "start",
                         "vfio-user"):
        qemu.unplug(["d0"])
    require(qemu.holders() == before, f"not as before: {before} "
            f"{qemu.holders()}")


def by_design(qemu: Qemu) -> bool:
    qemu.program.wait(LIMIT)
    return BY_DESIGN in qemu.program.output()


def run(job: Job) -> None:
    while job.number < job.steps:
        daemon = job.rng.random() < .3
        qemu = start(job, daemon)
        steps = [(job.rng.choice(DAEMON if daemon else SYSTEM),
                  job.rng.randint(0, 8)) for _ in range(SESSION)]
        for what, free in steps[:job.steps - job.number]:
            try:
                step(job, qemu, what, free)
            except (EOFError, Failure, OSError, Timeout):
                if qemu.program.alive() and qemu.program.wait(1) is None \
                        or not by_design(qemu):
                    raise
                job.counts["gave up by design"] += 1
                job.programs.remove(qemu)
                qemu = start(job, daemon)
        qemu.quit()


if __name__ == "__main__":
    main(run, 160)
