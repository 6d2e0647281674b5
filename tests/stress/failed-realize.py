#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that fail to realize, early and late, beside such as do not."""
from __future__ import annotations

import socket
from typing import Any

from parts import Job, Qemu, eventually, main, null, require

THREADS = ["io0", "io1", "io2"]
NODES = ["n0", "n1", "n2", "n3"]
SESSION = 60  # steps until everything is taken away
Args = dict[str, Any]

# Not more than 1,024 queues of virtio-blk: stock QEMU aborts.
# Not disable-legacy with disable-modern: stock QEMU keeps such a device, and
# its drive, for ever.
# The option ROM is looked for when all the rest of a device is there.
LATE: list[Args] = [{"romfile": "/none"}, {"romfile": "/none", "rombar": 1}]
BAD: dict[str, list[Args]] = {
    "virtio-blk-pci": LATE * 3 + [
        {"ioeventfd": False}, {"queue-size": 3}, {"queue-size": 4096},
        {"num-queues": 0}, {"logical_block_size": 3},
        {"physical_block_size": 3}, {"drive": "none"}, {"seg-max-adjust": 7},
        {"bootindex": 1}, {"addr": "0x1"}, {"bus": "none"},
        {"max-discard-sectors": 1 << 31}, {"discard_granularity": 3},
        {"iommu_platform": True, "disable-legacy": "off"},
        {"iothread": "none"}, {"iothread": "io0", "iothread-vq-mapping": [
            {"iothread": "io1"}]}],
    "virtio-scsi-pci": LATE * 3 + [
        {"ioeventfd": False}, {"virtqueue_size": 3}, {"num_queues": 0},
        {"num_queues": 2000}, {"addr": "0x1"}, {"iothread": "none"},
        {"iommu_platform": True, "disable-legacy": "off"}],
    "virtio-balloon-pci": LATE * 3 + [
        {"iothread": "none"}, {"addr": "0x1"}, {"free-page-hint": True},
        {"iommu_platform": True, "disable-legacy": "off"}],
    "vfio-user-pci": LATE}
BAD_MAPPINGS: list[list[Args]] = [
    [{"iothread": "io0"}, {"iothread": "none"}],
    [{"iothread": "io0"}, {"iothread": "io1"}, {"iothread": "io0"}],
    [{"iothread": "io0", "vqs": [0, 1]}, {"iothread": "io1", "vqs": [1]}],
    [{"iothread": "io0", "vqs": [0]}, {"iothread": "io1", "vqs": [9]}],
    [{"iothread": "io0", "vqs": [0]}, {"iothread": "io1"}],
    [{"iothread": "io0", "vqs": [0, 1]}],
    [{"iothread": "io0"}, {"iothread": "/objects/io0"}, {"iothread": ""}]]


def good(job: Job, driver: str) -> Args:
    """What a device takes that is to work."""
    rng = job.rng
    args: Args = {"driver": driver}
    if driver == "vfio-user-pci":
        return args | {"x-msg-timeout": 200}
    if driver == "virtio-blk-pci":
        args |= {"drive": rng.choice(NODES), "share-rw": True}
    if driver == "virtio-balloon-pci":
        return args | {"iothread": rng.choice(THREADS),
                       "free-page-hint": rng.random() < .7}
    if rng.random() < .5:
        return args | {"iothread": rng.choice(THREADS)}
    queues = rng.randint(1, 4)
    threads = rng.sample(THREADS, rng.randint(1, min(queues, 3)))
    return args | {
        "num-queues" if "blk" in driver else "num_queues": queues,
        "iothread-vq-mapping": [{"iothread": name} for name in threads]}


def graph(qemu: Qemu) -> list[Any]:
    """Block nodes, who uses them and how."""
    found = qemu.cmd("x-debug-query-block-graph")
    names = {node["id"]: (node["type"], node["name"])
             for node in found["nodes"]}
    return sorted(names.values()) + sorted(
        (names[edge["parent"]], names[edge["child"]], edge["name"],
         sorted(edge["perm"])) for edge in found["edges"])


def places(qemu: Qemu) -> list[Any]:
    """What a device that failed must leave as it was."""
    return [qemu.holders(), graph(qemu),
            sorted(item["name"] for item in qemu.cmd(
                "qom-list", path="/machine/peripheral")),
            sorted(device["qdev_id"] for bus in qemu.cmd("query-pci")
                   for device in bus["devices"])]


def step(job: Job, qemu: Qemu, live: list[str]) -> None:
    rng = job.rng
    driver = rng.choices([*BAD], [5, 4, 2, 1])[0]
    works = rng.random() < .3 and driver != "vfio-user-pci"
    args = good(job, driver)
    name = f"d{job.number}"
    before = places(qemu)
    if works and len(live) < 8:
        job.step(f"plug {name}: {args}")
        if qemu.done("device_add", args | {"id": name}):
            live.append(name)
            job.counts["plugged"] += 1
        else:  # nodes that an earlier device has in another IOThread
            require(places(qemu) == before, "a refusal left traces")
        return
    if driver == "virtio-scsi-pci" and live and rng.random() < .2:
        args = {"driver": "scsi-hd", "bus": "none.0", "drive": "n0"}
    elif driver in ("virtio-blk-pci", "virtio-scsi-pci") and \
            rng.random() < .4:
        args.pop("iothread", None)
        args["iothread-vq-mapping"] = rng.choice(BAD_MAPPINGS)
        args["num-queues" if "blk" in driver else "num_queues"] = 2
    elif driver == "vfio-user-pci":
        path = qemu.folder / f"s{job.number}"
        args["socket"] = {"type": "unix", "path": str(path)}
        if rng.random() < .5:  # a server that never answers
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
                server.listen()
                fail(job, qemu, name, args, before)
            return
    else:
        args |= rng.choice(BAD[driver])
    fail(job, qemu, name, args, before)


def fail(job: Job, qemu: Qemu, name: str, args: Args, before: list[Any]
         ) -> None:
    job.step(f"fail {name}: {args}")
    if qemu.done("device_add", args | {"id": name}):
        # Some values are no failure for every driver and version.
        job.counts["not refused"] += 1
        qemu.unplug([name])
    else:
        job.counts["refused"] += 1
    require(qemu.holders() == before[0], f"holders were {before[0]}\n"
            f"are {qemu.holders()}")
    # RCU lets go of a device, and that of its drive.
    eventually(lambda: places(qemu) == before, "all is as before")
    for more in job.rng.choice([[], [], [], ["stop"], ["stop", "cont"],
                                ["cont"], ["system_reset"]]):
        qemu.cmd(more)


def run(job: Job) -> None:
    while job.number < job.steps:
        qemu = Qemu(job, arguments=["-machine", "pc", "-m", "16"])
        for name in THREADS:
            qemu.cmd("object-add", {"qom-type": "iothread", "id": name})
        for name in NODES:
            qemu.cmd("blockdev-add", null(name))
        live: list[str] = []
        for _ in range(min(SESSION, job.steps - job.number)):
            step(job, qemu, live)
            if live and job.rng.random() < .1:
                gone = live.pop(job.rng.randrange(len(live)))
                qemu.unplug([gone])
        if job.rng.random() < .3:
            qemu.quit()  # with all that is plugged
            continue
        qemu.unplug(live)
        for name in NODES:
            qemu.cmd("blockdev-del", {"node-name": name})
        qemu.held(dict.fromkeys(THREADS, []))
        for name in job.rng.sample(THREADS, 3):
            qemu.cmd("object-del", id=name)
        qemu.quit()


if __name__ == "__main__":
    main(run, 120)
