#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Block jobs x IOThreads x state of the VM: random commands, while a driver of
virtio-blk keeps requests in flight and knows what each block must hold. Some
images are behind an NBD server with latency, so that jobs, and requests, end
while something else happens."""
from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
for place in (ROOT / "tests/qemu-iotests",
              ROOT / "build/patched/src/tests/qemu-iotests"):
    sys.path.append(str(place))

from virtio_blk import READ, WRITE, Request, VirtioBlk  # noqa: E402

TIMEOUT = 60.0          # s, until an answer that does not come is a hang
SESSION = 100           # steps with one process
BLOCKS = 2048           # of 4 KiB
SIZE = BLOCKS * 4096
SLOT = 5
IOPS = 400               # of a slow image


class Failure(Exception):
    pass


def wait_until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise Failure(f"hang: {what}")
        time.sleep(0.005)


class Line:
    """A socket of lines; silence on it is a hang."""

    def __init__(self, path: pathlib.Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        wait_until(path.exists, str(path))
        self.socket.connect(str(path))
        self.file = self.socket.makefile("r")

    def ask(self, text: str) -> str:
        self.socket.sendall(text.encode() + b"\n")
        return self.read()

    def read(self) -> str:
        try:
            line = self.file.readline()
        except TimeoutError:
            raise Failure("hang: no answer") from None
        if not line:
            raise ConnectionError("closed")
        return line


class Session:
    """One QEMU, from its start to its end."""

    def __init__(self, qemu: pathlib.Path, folder: pathlib.Path,
                 rng: random.Random) -> None:
        self.build, self.folder, self.rng = qemu.parent, folder, rng
        self.names = iter(range(1 << 30))
        self.servers: list[subprocess.Popen[bytes]] = []
        self.log: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.model: dict[int, set[int]] = {}    # what a block may hold
        self.running = self.plugged = True
        self.fragile: set[str] = set()          # jobs not to be completed
        # Servers of images that are only slow
        self.slow: list[subprocess.Popen[bytes]] = []
        base, top = self.image("base"), folder / "top.qcow2"
        self.img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        self.process = subprocess.Popen(
            [qemu, "-accel", "qtest", "-machine", "pc", "-m", "64", "-display",
             "none", "-nodefaults", "-object", "iothread,id=io0", "-object",
             "iothread,id=io1",
             "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
             "-qtest", f"unix:{folder}/qtest,server=on,wait=off",
             "-qtest-log", "/dev/null"],
            stdin=subprocess.DEVNULL, stderr=open(folder / "stderr", "wb"))
        self.monitor = Line(folder / "qmp")
        self.monitor.read()
        self.ok("qmp_capabilities")
        self.qtest = Line(folder / "qtest")
        self.ok("nbd-server-start", addr={
            "type": "unix", "data": {"path": f"{folder}/nbd"}})
        self.ok("blockdev-add", **self.node("base", base, rng.random() < 0.4))
        self.ok("blockdev-add", **self.node("n0", top, rng.random() < 0.4,
                                            backing="base"))
        self.plug("n0")
        self.disk = VirtioBlk(self.qtest.ask, SLOT)

    def img(self, *arguments: object) -> None:
        subprocess.run([self.build / "qemu-img", *map(str, arguments)],
                       check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT)

    def image(self, name: str) -> pathlib.Path:
        path = self.folder / f"{name}.qcow2"
        self.img("create", "-f", "qcow2", path, SIZE)
        return path

    @staticmethod
    def listens(place: pathlib.Path) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(place)) == 0

    def serve(self, path: pathlib.Path, *options: str) -> dict[str, Any]:
        """Serve a file by NBD; return what is to be opened."""
        place = path.with_suffix(".sock")
        server = subprocess.Popen(
            [self.build / "qemu-nbd", "-t", "-e", "4", "-k", place, *options],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (self.slow if options[0] == "--object" else self.servers).append(
            server)
        wait_until(lambda: server.poll() is not None or self.listens(place),
                   str(place))
        return {"driver": "nbd", "server": {"type": "unix",
                                            "path": str(place)}}

    def node(self, name: str, path: pathlib.Path, slow: bool = False,
             **more: Any) -> dict[str, Any]:
        """An image, behind some latency if it is to be slow."""
        file: dict[str, Any] = {"driver": "file", "filename": str(path)}
        if slow:
            # It cannot grow there
            os.truncate(path, 2 * SIZE)
            file = self.serve(
                path, "--object", f"throttle-group,id=tg,x-iops-total={IOPS}",
                "--image-opts", "driver=throttle,throttle-group=tg,"
                f"file.driver=file,file.filename={path}")
        return {"driver": "qcow2", "node-name": name, "file": file, **more}

    def qmp(self, command: str, **arguments: Any) -> dict[str, Any]:
        arguments = {name.replace("_", "-"): value
                     for name, value in arguments.items()}
        self.log.append(f"{command} {json.dumps(arguments)}")
        answer = json.loads(self.monitor.ask(json.dumps(
            {"execute": command, "arguments": arguments})))
        while "event" in answer:
            self.events.append(answer)
            answer = json.loads(self.monitor.read())
        if "error" in answer:
            self.log.append("    " + answer["error"]["desc"])
        return answer

    def ok(self, command: str, **arguments: Any) -> Any:
        answer = self.qmp(command, **arguments)
        if "error" in answer:
            raise Failure(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(self, name: str) -> None:
        def came() -> bool:
            self.ok("query-status")
            return any(event["event"] == name for event in self.events)
        wait_until(came, name)
        self.events.clear()

    # The disk

    def active(self) -> str:
        for info in self.ok("query-block"):
            if "/d0/" in info.get("qdev", "") or info.get("qdev") == "d0":
                return info["inserted"]["node-name"]
        raise Failure("the disk has no node")

    def plug(self, node: str) -> None:
        self.ok("device_add", driver="virtio-blk-pci", id="d0", drive=node,
                addr=str(SLOT), iothread=self.rng.choice(["io0", "io1"]),
                share_rw=True)

    def lost(self) -> None:
        """The guest forgets its requests; they may have been done."""
        answered = self.disk.reap()
        self.check([each for each in answered if not each.status])
        # Those that a drained section held back are cancelled
        for request in (*self.disk.flying.values(), *(
                each for each in answered if each.status)):
            if request.kind == WRITE:
                self.model.setdefault(request.block, {0}).add(request.data[0])

    def check(self, answered: list[Request]) -> None:
        for request in answered:
            if request.status:
                raise Failure(f"I/O: status {request.status}")
            if request.kind == WRITE:
                self.model[request.block] = {request.data[0]}
                continue
            may = self.model.setdefault(request.block, {0})
            got = set(request.data)
            if len(got) != 1 or not got <= may:
                raise Failure(f"I/O: block {request.block} has {got}, "
                              f"not {may}")
            self.model[request.block] = got

    def submit(self) -> None:
        if not self.plugged:
            return
        self.check(self.disk.reap())
        busy = {request.block for request in self.disk.flying.values()}
        room = VirtioBlk.SLOTS - len(busy)
        requests = []
        for block in self.rng.sample(range(BLOCKS), min(8, room)):
            if block not in busy:
                kind = self.rng.choice([READ, WRITE])
                requests.append(Request(kind, block, bytes(
                    [self.rng.randrange(256)]) * 4096 if kind else b""))
        self.disk.submit(requests)

    def drain(self) -> None:
        if self.running and self.plugged and not any(
                info["status"] == "pending"
                for info in self.ok("query-jobs")):
            self.check(self.disk.drain(TIMEOUT))

    # The VM

    def stop(self) -> None:
        self.ok("stop")
        self.running = False

    def cont(self) -> None:
        self.ok("cont")
        self.running = True
        if self.plugged:
            self.disk.kick()

    def reset(self) -> None:
        if not self.plugged:
            return
        self.ok("system_reset")
        self.wait_event("RESET")
        self.lost()
        self.disk.start()

    def unplug(self) -> None:
        """And plug it again, when no export pins the node elsewhere."""
        # The filter of a job that ends meanwhile would be gone
        if any(info["status"] != "pending"
               for info in self.ok("query-jobs")):
            return
        if not self.running:
            self.cont()
        for info in self.ok("query-block-exports"):
            self.qmp("block-export-del", id=info["id"], mode="hard")
        wait_until(lambda: not self.ok("query-block-exports"), "exports")
        node = self.active()
        self.ok("device_del", id="d0")
        self.disk.qtest(f"outl 0xae08 {1 << SLOT:#x}")
        self.wait_event("DEVICE_DELETED")
        self.lost()
        self.plug(node)
        self.disk = VirtioBlk(self.qtest.ask, SLOT)

    def set_iothread(self) -> None:
        nodes = [info["node-name"]
                 for info in self.ok("query-named-block-nodes", flat=True)]
        self.qmp("x-blockdev-set-iothread", node_name=self.rng.choice(nodes),
                 iothread=self.rng.choice(["io0", "io1", None]), force=True)

    def export(self) -> None:
        ids = [info["id"] for info in self.ok("query-block-exports")]
        if len(ids) < 2:
            name = f"e{next(self.names)}"
            self.qmp("block-export-add", type="nbd", id=name, name=name,
                     node_name=self.active(),
                     iothread=self.rng.choice(["io0", "io1"]),
                     fixed_iothread=self.rng.random() < 0.3)
        else:
            self.qmp("block-export-del", id=ids[0], mode="hard")

    # Jobs

    def target(self) -> tuple[str, bool]:
        """The name of a new node, and whether it serves as the disk."""
        name = f"n{next(self.names)}"
        kind = self.rng.choice(
            ["good", "good", "slow", "slow", "full", "dying"])
        path = self.image(name)
        if kind in ("good", "slow"):
            self.ok("blockdev-add", **self.node(name, path, kind == "slow"))
        elif kind == "full":
            self.ok("blockdev-add", driver="blkdebug", node_name=name,
                    image={"driver": "null-co", "size": SIZE,
                           "read-zeroes": True},
                    inject_error=[{"event": "none", "iotype": "write",
                                   "errno": 28, "immediately":
                                   self.rng.random() < 0.5}])
        else:
            path = path.rename(path.with_suffix(".served"))
            self.ok("blockdev-add", node_name=name, **self.serve(
                path, "-f", "qcow2", str(path)))
        return name, kind in ("good", "slow")

    def jobs(self) -> list[str]:
        return [info["id"] for info in self.ok("query-jobs")]

    def start_job(self) -> None:
        if len(self.jobs()) >= 2:
            return
        name, kind = f"j{next(self.names)}", self.rng.choice(
            ["mirror", "mirror", "backup", "commit", "stream"])
        arguments: dict[str, Any] = {"job_id": name, "device": self.active(),
                                     "speed": self.rng.choice([0, 1 << 20]),
                                     "auto_finalize":
                                     self.rng.random() < 0.7,
                                     # With a name, it is what is plugged:
                                     # only a commit sees who writes below
                                     "filter_node_name": f"f{name}"}
        if kind == "commit" and self.rng.random() < 0.5:
            del arguments["filter_node_name"]
        if kind in ("commit", "stream"):
            self.qmp("block-" + kind, **arguments)
            return
        node, good = self.target()
        if not good:
            self.fragile.add(name)
        if kind == "backup":
            arguments["on_cbw_error"] = "break-snapshot"
        self.qmp("blockdev-" + kind, target=node, sync="full",
                 on_target_error=self.rng.choice(
                     ["report", "ignore", "stop", "enospc"]), **arguments)

    def kill_server(self) -> None:
        if self.servers:
            server = self.servers.pop()
            server.kill()
            server.wait()

    def job_verb(self) -> None:
        for name in self.rng.sample(self.jobs(), min(1, len(self.jobs()))):
            verb = self.rng.choice(["cancel", "force", "complete", "complete",
                                    "pause", "resume", "speed", "finalize"])
            if verb == "force":
                self.qmp("block-job-cancel", device=name, force=True)
            elif verb == "speed":
                self.qmp("block-job-set-speed", device=name, speed=self.rng
                         .choice([0, 1 << 16, 1 << 24]))
            elif verb != "complete" or name not in self.fragile:
                self.qmp(f"job-{verb}", id=name)

    def step(self) -> None:
        self.rng.choice([
            self.submit, self.submit, self.submit, self.drain, self.stop,
            self.cont, self.cont, self.reset, self.unplug, self.set_iothread,
            self.export, self.start_job, self.start_job, self.kill_server,
            self.job_verb, self.job_verb, self.job_verb])()

    def end(self) -> None:
        """Everything ends, and the disk holds what was written to it."""
        for name in self.jobs():
            self.qmp("block-job-cancel", device=name, force=True)
        wait_until(lambda: not self.jobs(), "jobs")
        self.cont()
        self.check(self.disk.drain(TIMEOUT))
        blocks = list(range(0, BLOCKS, VirtioBlk.SLOTS))
        for first in blocks:
            self.disk.submit(Request(READ, block) for block in range(
                first, min(first + VirtioBlk.SLOTS, BLOCKS)))
            self.check(self.disk.drain(TIMEOUT))
        self.ok("quit")
        self.process.wait(TIMEOUT)
        if self.process.returncode:
            raise Failure(f"crash: {self.process.returncode} at quit")
        for server in self.slow:
            server.terminate()
            server.wait(TIMEOUT)
        for path in self.folder.glob("*.qcow2"):
            self.img("check", path)

    def kill(self) -> None:
        for process in (self.process, *self.servers, *self.slow):
            process.kill()
            process.wait()


def session(qemu: pathlib.Path, seed: int, steps: int) -> None:
    with tempfile.TemporaryDirectory(prefix="block-jobs-") as folder:
        test = Session(qemu, pathlib.Path(folder), random.Random(seed))
        try:
            for _ in range(steps):
                test.step()
            test.end()
        except (Failure, ConnectionError, AssertionError,
                subprocess.SubprocessError) as failure:
            time.sleep(0.5)
            code = test.process.poll()
            last = "\n".join(test.log[-25:])
            errors = (test.folder / "stderr").read_text(errors="replace")
            sys.exit(f"{last}\n{errors[-2000:]}\nseed {seed}, exit code "
                     f"{code}: {type(failure).__name__} {failure}")
        finally:
            test.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("qemu", type=pathlib.Path,
                        help="qemu-system-x86_64, with the tools beside it")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--seed", type=int,
                        default=random.randrange(1 << 32))
    parser.add_argument("--seconds", type=float, help="stop after that")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    end = time.monotonic() + (options.seconds or float("inf"))
    done = 0
    while done < options.steps and time.monotonic() < end:
        steps = min(SESSION, options.steps - done)
        session(options.qemu, options.seed + done, steps)
        done += steps
    print(f"{done} steps")


if __name__ == "__main__":
    main()
