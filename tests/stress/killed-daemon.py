#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage daemon that is killed while a QEMU uses its exports.

By NBD, with and without reconnecting, and by vhost-user-blk.  Who survives
goes on, can give everything back, and ends.
"""
from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from parts import (Job, Qemu, Refused, eventually, main, nbd_address, null,
                   require, serve, start_nbd, unexport)

THREADS = ["io0", "io1"]
RAM = ["-machine", "pc,memory-backend=mem", "-m", "16", "-object",
       "memory-backend-memfd,id=mem,size=16M,share=on"]


def daemon(job: Job, kind: str, path: Path) -> Qemu:
    """Always at the same address, for who reconnects."""
    qsd = Qemu(job, True)
    qsd.cmd("object-add", {"qom-type": "iothread", "id": "io"})
    qsd.cmd("blockdev-add", null("disk", 500000))
    path.unlink(missing_ok=True)
    if kind == "nbd":
        start_nbd(qsd)
        serve(qsd, "disk", "disk", "io")
        path.symlink_to(qsd.folder / "nbd")
    else:
        qsd.cmd("block-export-add", {
            "type": "vhost-user-blk", "id": "disk", "node-name": "disk",
            "writable": True, "iothread": "io", "addr": nbd_address(path)})
    qsd.held({"io": ["disk", "disk"]})
    return qsd


def attach(qemu: Qemu, kind: str, path: Path, delay: int, device: bool
           ) -> list[str]:
    """What uses the daemon; returns who holds io0 by that."""
    if kind == "vhost":
        qemu.cmd("chardev-add", id="c", backend={"type": "socket", "data": {
            "server": False, "reconnect-ms": delay * 100, "addr": {
                "type": "unix", "data": {"path": str(path)}}}})
        qemu.cmd("device_add", {"driver": "vhost-user-blk-pci", "id": "dev",
                                "chardev": "c"})
        return []
    qemu.cmd("blockdev-add", {
        "driver": "nbd", "node-name": "n0", "export": "disk",
        "reconnect-delay": delay, "open-timeout": delay,
        "server": nbd_address(path)})
    if not device:
        qemu.cmd("x-blockdev-set-iothread", {
            "node-name": "n0", "iothread": "io0"})
        return ["n0"]
    qemu.cmd("device_add", {"driver": "virtio-blk-pci", "id": "dev",
                            "drive": "n0", "iothread": "io0"})
    return ["dev"]  # the node follows when a driver is ready


def work(qemu: Qemu, kind: str, plan: list[Any]) -> int:
    """Commands that meet the death of the daemon; how many were refused."""
    refused = 0
    for name, arguments in plan:
        try:
            if name == "io":
                if kind == "nbd":  # it waits for the answer, or not
                    qemu.hmp(f"qemu-io n0 \"{arguments}\"")
            elif name == "pause":
                time.sleep(arguments)
            else:
                qemu.cmd(name, arguments)
        except Refused:
            refused += 1
    return refused


def step(job: Job) -> None:
    rng = job.rng
    kind = rng.choice(["nbd", "nbd", "vhost"])
    delay, device = rng.choice([0, 0, 1]), rng.random() < .5
    again, quit_first = rng.random() < .4, rng.random() < .25
    moment = rng.choice([0, rng.uniform(0, .05), rng.uniform(0, .01)])
    plan: list[Any] = []
    for _ in range(rng.randint(3, 12)):
        plan.append(rng.choice([
            ("io", "read 0 64k"), ("io", "write -P 3 64k 1M"),
            ("io", "aio_write 0 1M"), ("io", "aio_read 1M 1M"),
            ("io", "flush"), ("pause", rng.uniform(0, .004)),
            ("stop", {}), ("cont", {}), ("system_reset", {}),
            ("x-blockdev-set-iothread", {
                "node-name": "n0", "force": True,
                "iothread": rng.choice(["io0", "io1", None])}),
            ("query-iothreads", {})]))
    job.step(f"{kind}, delay {delay}, device {device}, again {again}, quit "
             f"{quit_first}, killed after {moment:.4f}: {plan}")
    path = Path(job.folder, f"disk{job.number}")
    qsd = daemon(job, kind, path)
    qemu = Qemu(job, arguments=RAM)
    for name in THREADS:
        qemu.cmd("object-add", {"qom-type": "iothread", "id": name})
    held = attach(qemu, kind, path, delay, device)
    qemu.held({"io0": held, "io1": []})
    killer = threading.Timer(moment, qsd.kill)
    killer.start()
    job.counts["refused"] += work(qemu, kind, plan)
    killer.join()
    require(qsd.ended, "the daemon was not killed")
    if again:
        qsd = daemon(job, kind, path)
        if kind == "nbd" and delay:
            def reads() -> bool:
                # Where it is moved it may have to connect anew.
                return "error" not in qemu.hmp("qemu-io n0 \"read 0 4k\"")
            with contextlib.suppress(Refused):
                eventually(reads, "the node reconnects")
        job.counts["again"] += 1
    if not quit_first:
        if kind == "vhost" or device:
            qemu.unplug(["dev"], job.rng.random() < .5)
        if kind == "nbd":
            qemu.cmd("blockdev-del", {"node-name": "n0"})
        qemu.held(dict.fromkeys(THREADS, []))
        for name in THREADS:
            qemu.cmd("object-del", id=name)
    qemu.quit()
    if again:
        # The exports' client has gone: nothing keeps them.
        unexport(qsd, "disk")
        qsd.cmd("blockdev-del", {"node-name": "disk"})
        qsd.cmd("object-del", id="io")
        qsd.quit()


def run(job: Job) -> None:
    while job.number < job.steps:
        step(job)


if __name__ == "__main__":
    main(run, 25)
