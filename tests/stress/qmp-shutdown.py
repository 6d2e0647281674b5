#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends that meet clients of many kinds, at a random moment.

Each program has clients that read and such that do not, that go away, that
send out-of-band commands, or have a command in flight that takes its time.
"""
from __future__ import annotations

import os
import random
import select
import signal
import socket
import time
from typing import Any

from parts import SIZE, Client, Job, Qemu, Timeout, main, require

KINDS = ["reader", "reader", "oob", "slow", "vanishing", "half", "coroutine",
         "idle", "hotplug"]
WAYS = ["signal", "signal", "interrupt", "quit", "quit", "job", "everyone",
        "disconnect"]
LIMIT = 5.0  # seconds that an end may take, by far enough
SLOWER = float(os.environ.get("STRESS_SLOWER", 1))
Command = tuple[str, dict[str, Any]]

COMMANDS: list[Command] = [
    ("query-version", {}), ("query-jobs", {}), ("query-commands", {}),
    ("query-commands", {}), ("query-iothreads", {}),
    ("query-named-block-nodes", {}), ("nonsense", {}),
    ("block_resize", {"node-name": "slow", "size": SIZE}),
    ("blockdev-add", {"driver": "null-co", "node-name": "new"}),
    ("blockdev-del", {"node-name": "new"})]
SLOW: list[Command] = [
    ("block_resize", {"node-name": "disk", "size": SIZE}),
    ("block_resize", {"node-name": "disk", "size": 2 * SIZE})]
HOTPLUG: list[Command] = [
    ("object-add", {"qom-type": "iothread", "id": "io9"}),
    ("query-iothreads", {}), ("query-block", {}),
    ("x-blockdev-set-iothread", {"node-name": "disk", "iothread": "io9"}),
    ("object-del", {"id": "io9"}),
    ("x-blockdev-set-iothread", {"node-name": "disk", "iothread": None}),
    ("object-del", {"id": "io9"})]
OOB: list[Command] = [("yank", {"instances": []}), ("migrate-pause", {}),
                      ("nonsense", {})]


class Load:
    """A client that keeps its monitor busy in its own way."""

    def __init__(self, client: Client, kind: str, seed: int) -> None:
        self.client, self.kind = client, kind
        self.rng = random.Random(seed)
        pool = {"coroutine": SLOW, "hotplug": HOTPLUG}.get(kind, COMMANDS)
        data = b""
        for number in range(200):
            name, arguments = pool[number % len(pool)] \
                if kind == "hotplug" else self.rng.choice(pool)
            key = "execute"
            if kind == "oob" and self.rng.random() < .5:
                key, (name, arguments) = "exec-oob", self.rng.choice(OOB)
            data += repr({key: name, "id": number, "arguments": arguments}
                         ).replace("'", '"').replace("None", "null") \
                .encode() + b"\r\n"
        self.data = data
        self.position = 0
        self.gone = False
        self.moment = self.rng.uniform(0, .08)

    def pump(self, elapsed: float) -> None:
        if self.kind in ("reader", "oob", "coroutine", "hotplug"):
            self.client.fill()
            self.client.buffer = self.client.buffer.rpartition(b"\n")[2]
        elif self.kind == "slow" and self.rng.random() < .1:
            try:  # a little of it
                self.client.socket.recv(200)
            except OSError:
                pass
        if self.kind in ("vanishing", "half") and elapsed > self.moment:
            self.leave()
            return
        if self.kind == "idle":
            return
        try:
            size = 4096 if self.kind != "half" else self.rng.randint(1, 99)
            sent = self.client.socket.send(
                self.data[self.position:self.position + size])
            self.position = (self.position + sent) % len(self.data)
        except OSError:
            pass

    def leave(self) -> None:
        if self.kind == "half" and not self.gone:
            try:
                self.client.socket.shutdown(socket.SHUT_RD)
            except OSError:
                pass
        self.gone = True
        self.client.close()


def pump(loads: list[Load], begin: float, seconds: float, qemu: Qemu) -> None:
    """Keeps the clients going, as long as the program runs at most."""
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end and qemu.program.alive():
        live = [load for load in loads if not load.gone]
        for load in live:
            load.pump(now - begin)
        sockets = [load.client.socket for load in live
                   if not load.gone and not load.client.closed]
        select.select(sockets, [], [], .002)


def start(job: Job) -> tuple[Qemu, list[Load]]:
    rng = job.rng
    daemon = rng.random() < .4
    kinds = [rng.choice(KINDS) for _ in range(rng.randint(1, 4))]
    option = "--blockdev" if daemon else "-blockdev"
    arguments = [] if daemon else ["-machine", "pc", "-m", "16"]
    for name, latency in (("slow", 10**6), ("source", 10**6),
                          ("target", 10**6)):
        arguments += [option, f"null-co,node-name={name},size={1 << 20},"
                      f"latency-ns={latency}"]
    path = os.path.join(job.folder, f"disk{job.number}")
    with open(path, "wb") as stream:
        stream.truncate(SIZE)
    arguments += [option, f"file,node-name=disk,filename={path}"]
    # The first monitor belongs to the job itself.
    paths = [os.path.join(job.folder, f"m{job.number}-{i}")
             for i in range(len(kinds))]
    dash = "--" if daemon else "-"
    for number, socket_path in enumerate(paths):
        arguments += [f"{dash}chardev", f"socket,id=x{number},"
                      f"path={socket_path},server=on,wait=off"]
        arguments += ["--monitor", f"chardev=x{number}"] if daemon else [
            "-mon", f"chardev=x{number},mode=control"]
    qemu = Qemu(job, daemon, arguments)
    loads = [Load(Client(qemu.program, socket_path, kind == "oob"), kind,
                  rng.getrandbits(32))
             for kind, socket_path in zip(kinds, paths)]
    return qemu, loads


def step(job: Job) -> None:
    rng = job.rng
    job.step()
    way = rng.choice(WAYS)
    moment = rng.choice([0, rng.uniform(0, .02), rng.uniform(0, .1)])
    qemu, loads = start(job)
    print(f"{way} after {moment:.4f}: "
          f"{', '.join(load.kind for load in loads)}", flush=True)
    if way == "job":
        qemu.cmd("blockdev-mirror", {
            "job-id": "job", "device": "source", "target": "target",
            "sync": "full", "speed": 65536})
    begin = time.monotonic()
    pump(loads, begin, moment * SLOWER, qemu)
    before = time.monotonic()
    if way in ("quit", "everyone"):
        qemu.client.send("quit")
        for load in loads if way == "everyone" else []:
            try:
                load.client.send("quit")
            except OSError:
                pass
    else:
        qemu.program.kill(signal.SIGINT if way == "interrupt"
                          else signal.SIGTERM)
    if way == "disconnect":
        for load in loads:
            load.leave()
    pump(loads, begin, LIMIT * SLOWER, qemu)
    code = qemu.program.wait(max(
        0, before + LIMIT * SLOWER - time.monotonic()))
    if code is None:
        raise Timeout("it does not end")
    qemu.ended = True
    job.counts[way] += 1
    for load in loads:
        if not load.gone and load.kind in ("reader", "oob", "coroutine"):
            while not load.client.closed:  # what is left in the socket
                load.client.fill()
            last = load.client.buffer.rpartition(b"\n")[2]
            require(not last, f"half an answer: {last!r}")
        load.client.close()
    require(code == 0, f"ended with exit code {code}")
    qemu.clean()
    job.programs.remove(qemu)
    qemu.client.close()


def run(job: Job) -> None:
    while job.number < job.steps:
        step(job)


if __name__ == "__main__":
    main(run, 60)
