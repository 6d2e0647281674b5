#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD clients that die while the node that they use moves."""
from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

from parts import (FLUSH, READ, SIZE, WRITE, Holders, Job, Nbd, Qemu, main,
                   null, request, require, serve, start_nbd,
                   unexport)

THREADS = ["io0", "io1", "io2"]
SESSION = 40  # steps of one program


def die(path: str, seed: int) -> None:
    """A client that ends somewhere, by closing or by a reset."""
    rng = random.Random(seed)
    stage = rng.choice(["connect", "option", "half", "idle"] + ["load"] * 6)
    time.sleep(rng.uniform(0, .004))
    with contextlib.suppress(OSError):
        nbd = Nbd(path, rng.choice(["e0", "e0", "e1", "none"]),
                  stage not in ("connect", "option"))
        try:
            if stage == "option":
                nbd.socket.sendall(nbd.opening[:rng.randint(0, 18)])
            elif stage == "load":
                load(nbd, rng)
            elif stage == "half":
                nbd.socket.sendall(request(WRITE, 0, 65536, bytes(
                    rng.randint(0, 65535)))[rng.randint(0, 1) * 5:])
            time.sleep(rng.uniform(0, .004))
            if rng.random() < .3:
                nbd.socket.shutdown(rng.choice([
                    socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
                time.sleep(rng.uniform(0, .002))
        finally:
            nbd.close()


def load(nbd: Nbd, rng: random.Random) -> None:
    """Many requests at once, whose answers nobody may read."""
    nbd.socket.settimeout(.05)
    for _ in range(rng.randint(1, 60)):
        kind = rng.choice([READ, READ, WRITE, FLUSH])
        size = 0 if kind == FLUSH else rng.choice([512, 4096, 65536])
        nbd.socket.sendall(request(
            kind, rng.randrange(SIZE // 65536) * 65536, size,
            bytes(size) if kind == WRITE else b""))
        if rng.random() < .2:
            nbd.socket.recv(rng.choice([1, 16, 4096]))


def start(job: Job) -> Qemu:
    qemu = Qemu(job, job.rng.random() < .5)
    for name in THREADS:
        qemu.cmd("object-add", {"qom-type": "iothread", "id": name})
    qemu.cmd("blockdev-add", null("n0", job.rng.choice([0, 1000000])))
    qemu.cmd("blockdev-add", null("n1"))
    start_nbd(qemu)
    return qemu


def step(job: Job, qemu: Qemu, place: dict[str, str | None]) -> None:
    """Clients and commands at the same time, and then all is as told."""
    rng, path = job.rng, qemu.folder / "nbd"
    seeds = [rng.getrandbits(32) for _ in range(rng.randint(1, 6))]
    moves = [(rng.choice(["n0", "n0", "n1"]), rng.choice([*THREADS, None]))
             for _ in range(rng.randint(0, 6))]
    ends = rng.random()
    pauses = [rng.choice([0, rng.uniform(0, .003)]) for _ in moves]
    job.step(f"{len(seeds)} clients, {moves}, {ends:.2f}")
    clients = [threading.Thread(target=die, args=(str(path), seed))
               for seed in seeds]
    for client in clients:
        client.start()
    for (node, thread), pause in zip(moves, pauses):
        time.sleep(pause)
        qemu.cmd("x-blockdev-set-iothread", {
            "node-name": node, "iothread": thread, "force": True})
        place[node] = thread
        job.counts["moves"] += 1
    if ends < .15:  # an export goes, while its clients do
        unexport(qemu, "e0")
        serve(qemu, "e0", "n0", place["n0"])
    elif ends < .25:
        qemu.cmd("nbd-server-stop")
        start_nbd(qemu)
        serve(qemu, "e0", "n0", place["n0"])
        serve(qemu, "e1", "n1", place["n1"])
    for client in clients:
        client.join()
    job.counts["clients"] += len(clients)
    expected: Holders = {name: [] for name in THREADS}
    for export, (node, thread) in zip(("e0", "e1"), sorted(place.items())):
        if thread:
            expected[thread] += [node, export]
    qemu.held(expected)
    nbd = Nbd(path, "e0")
    require(nbd.read(0, 512) == (0, bytes(512)), "a good client reads")
    nbd.close()


def run(job: Job) -> None:
    while job.number < job.steps:
        qemu = start(job)
        place: dict[str, str | None] = {"n0": "io0", "n1": None}
        serve(qemu, "e0", "n0", "io0")
        serve(qemu, "e1", "n1")
        for _ in range(min(SESSION, job.steps - job.number)):
            step(job, qemu, place)
        seeds = [job.rng.getrandbits(32) for _ in range(4)]
        clients = [threading.Thread(target=die, args=(
            str(qemu.folder / "nbd"), seed)) for seed in seeds]
        busy = job.rng.random() < .5
        for client in clients if busy else []:
            client.start()
        if job.rng.random() < .5:
            qemu.cmd("nbd-server-stop")
            for node in place:
                qemu.cmd("blockdev-del", {"node-name": node})
            qemu.held({name: [] for name in THREADS})
            for name in THREADS:
                qemu.cmd("object-del", id=name)
        qemu.quit()
        for client in clients if busy else []:
            client.join()


if __name__ == "__main__":
    main(run, 200)
