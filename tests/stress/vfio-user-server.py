#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""vfio-user servers, other QEMUs, that die or stop while they are used."""
from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from parts import Job, Qemu, eventually, main

SHARED = "vfio-user"  # the IOThread of all connections
SESSION = 20  # steps of one client
DEVICES = ["c0", "c1"]


class Server:
    """A device of another QEMU, offered for one client after the other."""

    def __init__(self, job: Job, name: str) -> None:
        self.job, self.path = job, Path(job.folder, name)
        self.qemu: Qemu | None = None

    def offer(self) -> None:
        if self.qemu is None:
            self.qemu = Qemu(self.job, arguments=[
                "-machine", "x-remote,vfio-user=on,auto-shutdown=off",
                "-device", "virtio-rng-pci,id=dev"])
        self.qemu.done("object-del", id="server")
        self.path.unlink(missing_ok=True)
        self.qemu.cmd("object-add", {
            "qom-type": "x-vfio-user-server", "id": "server",
            "device": "dev", "socket": {
                "type": "unix", "path": str(self.path)}})

    def kill(self) -> None:
        if self.qemu:
            self.qemu.kill()
            self.qemu = None


def hurt(server: Server, how: str, moment: float) -> None:
    time.sleep(moment)
    if how == "kill":
        server.kill()
    elif how == "pause" and server.qemu:
        server.qemu.program.kill(signal.SIGSTOP)
        time.sleep(.4)  # longer than the client waits
        server.qemu.program.kill(signal.SIGCONT)


def during(server: Server, how: str, moment: float) -> threading.Thread:
    thread = threading.Thread(target=hurt, args=(server, how, moment))
    thread.start()
    return thread


def check(client: Qemu, live: list[str]) -> None:
    """With the last device its IOThread goes."""
    client.held({SHARED: live} if live else {})
    if not live:
        eventually(lambda: SHARED not in client.holders(), "IOThread goes")


def step(job: Job, client: Qemu, servers: dict[str, Server],
         live: list[str]) -> None:
    rng = job.rng
    name = rng.choice(DEVICES)
    how = rng.choice(["kill", "kill", "pause", "nothing"])
    moment = rng.choice([0, rng.uniform(0, .01), rng.uniform(0, .08)])
    reset, eject = rng.random() < .5, rng.random() < .5
    server = servers[name]
    job.step(f"{'unplug' if name in live else 'plug'} {name}, {how} after "
             f"{moment:.4f}")
    if name not in live:
        server.offer()
        hurting = during(server, how, moment)
        if client.done("device_add", {
                "driver": "vfio-user-pci", "id": name, "x-msg-timeout": 300,
                "socket": {"type": "unix", "path": str(server.path)}}):
            live.append(name)
            job.counts["plugged"] += 1
        else:
            job.counts["refused"] += 1
        hurting.join()
        if reset:
            client.cmd("system_reset")
    else:
        hurting = during(server, how, moment)
        if reset:
            client.cmd("system_reset")
        client.unplug([name], eject)
        live.remove(name)
        job.counts["unplugged"] += 1
        hurting.join()
    check(client, live)
    if server.qemu and not server.qemu.program.alive():
        code = server.qemu.program.wait(1)
        print(f"the server ended with {code}")
        job.counts["server ended"] += 1
        server.qemu.clean()
        server.qemu.ended = True
        server.qemu = None


def run(job: Job) -> None:
    servers = {name: Server(job, name) for name in DEVICES}
    while job.number < job.steps:
        client = Qemu(job, arguments=["-machine", "pc", "-m", "16", "-S"])
        live: list[str] = []
        for _ in range(min(SESSION, job.steps - job.number)):
            step(job, client, servers, live)
        if job.rng.random() < .5:
            client.unplug(live, False)
            check(client, [])
        client.quit()
    for server in servers.values():
        server.kill()


if __name__ == "__main__":
    main(run, 60)
