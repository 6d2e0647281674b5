# SPDX-License-Identifier: GPL-2.0-or-later
"""What the jobs that inject faults share: programs, clients, the verdict."""
from __future__ import annotations

import argparse
import collections
import errno
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Sequence

TOP = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP / "tests" / "functional"))

from qemu_test.qmpprogram import Client, Program, Timeout  # noqa: E402
from watch import backtrace  # noqa: E402

LIMIT = 30.0  # seconds that an orderly end may take
BAD = re.compile(r"ERROR: \w+Sanitizer.*|WARNING: ThreadSanitizer.*|"
                 r".*runtime error:.*|.*Assertion.*|.*: ERROR:.*")
SIZE = 1 << 24  # of disks
Holders = dict[str, list[str]]


class Failure(Exception):
    """What should not be."""


def require(condition: object, text: object) -> None:
    if not condition:
        raise Failure(str(text))


def eventually(condition: Callable[[], object], text: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        require(time.monotonic() < end, f"never: {text}")
        time.sleep(0.005)


def private_mounts() -> None:
    """What is mounted from now on, this process and its children see."""
    os.unshare(os.CLONE_NEWNS)
    if " shared:" in Path("/proc/self/mountinfo").read_text():
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)


class Refused(Exception):
    """The program answered with an error."""


class Qemu:
    """A program with a monitor."""

    def __init__(self, job: "Job", daemon: bool = False,
                 arguments: Sequence[str] = (), preload: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(dir=job.folder))
        self.program = Program(str(job.build / (
            "storage-daemon/qemu-storage-daemon" if daemon else
            "qemu-system-x86_64")), str(self.folder), 1, list(arguments))
        self.ended = False
        self.asked = 0
        self.events: list[dict[str, Any]] = []
        job.programs.append(self)
        if preload:
            os.environ["LD_PRELOAD"] = preload
        try:
            self.program.start()
        finally:
            os.environ.pop("LD_PRELOAD", None)
        self.sockets: list[Client] = []
        self.client = self.connect()

    def connect(self, number: int = 0, oob: bool = False) -> Client:
        self.sockets.append(self.program.connect(number, oob))
        return self.sockets[-1]

    def cmd(self, name: str, arguments: dict[str, Any] | None = None,
            **more: Any) -> Any:
        """Executes a command; Refused if it is not done."""
        self.asked += 1
        self.client.send(name, {**(arguments or {}), **more}, self.asked)
        while True:
            message = self.client.receive()
            if "event" in message:
                self.events.append(message)
                continue
            require(message.get("id") == self.asked,
                    f"not the answer to {name}: {message}")
            if "error" in message:
                raise Refused(message["error"]["desc"])
            return message["return"]

    def done(self, name: str, arguments: dict[str, Any] | None = None,
             **more: Any) -> bool:
        """Tells whether a command was done."""
        try:
            self.cmd(name, arguments, **more)
        except Refused:
            return False
        return True

    def event(self, name: str, **data: Any) -> None:
        """Waits for an event, and takes it."""
        def there() -> bool:
            self.cmd("query-version")
            for number, event in enumerate(self.events):
                if event["event"] == name and data.items() <= \
                        event.get("data", {}).items():
                    del self.events[number]
                    return True
            return False
        eventually(there, f"event {name} {data}")

    def hmp(self, line: str) -> str:
        text: str = self.cmd("human-monitor-command",
                             {"command-line": line})
        return text

    def holders(self) -> Holders:
        """Who holds each IOThread, the monitor left out."""
        return {thread["id"]: sorted(
            holder.get("device") or holder.get("id") or
            holder.get("node-name") or holder["qom-path"]
            for holder in thread["holders"] if holder["type"] != "monitor")
            for thread in self.cmd("query-iothreads", internal=True)}

    def place(self, node: str, threads: Sequence[str]) -> str | None:
        """Where a node is: one that loses a parent may go home."""
        found = self.holders()
        return next((name for name in threads if node in found[name]), None)

    def held(self, expected: Holders) -> None:
        """Checks who holds which IOThread."""
        found = {name: held for name, held in self.holders().items()
                 if held or name in expected}
        expected = {name: sorted(held) for name, held in expected.items()}
        require(found == expected, f"held: {found}\nexpected: {expected}")

    def unplug(self, names: Sequence[str], eject: bool = True) -> None:
        """Does what a guest would do, or a reset does it."""
        slots = {device["qdev_id"]: device["slot"] for bus in
                 self.cmd("query-pci") for device in bus["devices"]}
        for name in names:
            self.cmd("device_del", id=name)
            if eject:
                self.hmp("o /w 0xae10 0")
                self.hmp(f"o /w 0xae08 {1 << slots[name]:#x}")
        if names and not eject:
            self.cmd("system_reset")
        for name in names:
            self.event("DEVICE_DELETED", device=name)

    def quit(self) -> None:
        """Ends in order, with nothing to complain of."""
        self.cmd("quit")
        code = self.program.wait(LIMIT)
        if code is None:
            raise Timeout("quit: no end")
        self.ended = True
        require(code == 0, f"ended with exit code {code}")
        self.clean()

    def close(self) -> None:
        for client in self.sockets:
            client.close()

    def clean(self) -> None:
        bad = BAD.search(self.program.output())
        require(not bad, bad and bad[0])

    def kill(self) -> None:
        """Ends at once; what it said until then counts."""
        if not self.ended:
            self.ended = True
            self.close()
            self.program.kill(signal.SIGKILL)
            self.program.wait(LIMIT)
            self.clean()


class Job:
    """A run: its seed, its programs, what was done."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self.build: Path = options.build.resolve()
        self.seed: int = options.seed
        self.steps: int = options.steps
        self.options = options
        self.folder = folder
        self.rng = random.Random(options.seed)
        self.programs: list[Qemu] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.number = 0

    def step(self, what: object = "") -> None:
        self.number += 1
        print(f"step {self.number}: {what}", flush=True)

    def tell(self) -> None:
        """What the programs said, and where those that run are."""
        for qemu in self.programs:
            print(f"--- {' '.join(qemu.program.command)}\n"
                  f"{qemu.program.output()[-30000:]}")
            code = qemu.program.wait(1)
            print(backtrace(qemu.program.pid) if code is None else
                  f"exit code {code}")

    def end(self) -> None:
        for qemu in self.programs:
            qemu.close()
            qemu.program.end()


def main(run: Callable[[Job], None], steps: int) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=Path, required=True,
                        help="the folder with the programs")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=steps)
    options = parser.parse_args()
    # Its end by a signal ends the programs as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="st", dir="/tmp") as folder:
        job = Job(options, folder)
        try:
            run(job)
        except (Failure, Refused, Timeout, EOFError, OSError,
                struct.error) as error:
            traceback.print_exc(file=sys.stdout)
            job.tell()
            sys.exit(f"FAILED in step {job.number}: "
                     f"{type(error).__name__} {error}")
        finally:
            job.end()
    print(f"{job.number} steps, seed {job.seed}: " + ", ".join(
        f"{name} {n}" for name, n in sorted(job.counts.items())))


# --- NBD ------------------------------------------------------------------

GREETING = struct.Struct(">8s8sH")
READ, WRITE, DISCONNECT, FLUSH = range(4)


def request(kind: int, offset: int, size: int, data: bytes = b"") -> bytes:
    return struct.pack(">LHHQQL", 0x25609513, 0, kind, offset, offset,
                       size) + data


class Nbd:
    """A client of an NBD export that may behave badly."""

    def __init__(self, path: str | Path, name: str, greet: bool = True
                 ) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT)
        self.socket.connect(str(path))
        self.opening = struct.pack(">L8sLL", 3, b"IHAVEOPT", 1,
                                   len(name)) + name.encode()
        if greet:
            self.take(18)
            self.socket.sendall(self.opening)
            self.take(10)

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("closed")
            data += more
        return data

    def reply(self, size: int = 0) -> tuple[int, int, bytes]:
        """The error, which request it is about, and what was read."""
        magic, error, handle = struct.unpack(">LLQ", self.take(16))
        require(magic == 0x67446698, f"NBD: reply {magic:#x}")
        return error, handle, self.take(0 if error else size)

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        self.socket.sendall(request(READ, offset, size))
        error, _, data = self.reply(size)
        return error, data

    def write(self, offset: int, data: bytes) -> int:
        self.socket.sendall(request(WRITE, offset, len(data), data))
        return self.reply()[0]

    def flush(self) -> int:
        self.socket.sendall(request(FLUSH, 0, 0))
        return self.reply()[0]

    def close(self) -> None:
        self.socket.close()


def null(name: str, latency: int = 0) -> dict[str, Any]:
    return {"driver": "null-co", "node-name": name, "size": SIZE,
            "read-zeroes": True, "latency-ns": latency}


def start_nbd(qemu: Qemu) -> Path:
    path = qemu.folder / "nbd"
    qemu.cmd("nbd-server-start", addr={
        "type": "unix", "data": {"path": str(path)}})
    return path


def nbd_address(path: str | Path) -> dict[str, Any]:
    return {"type": "unix", "path": str(path)}


def serve(qemu: Qemu, name: str, node: str, thread: str | None = None,
          **more: Any) -> None:
    """Exports a node by NBD."""
    where = {"iothread": thread} if thread else {}
    qemu.cmd("block-export-add", {
        "type": "nbd", "id": name, "name": name, "node-name": node,
        "writable": True, **where, **more})


def unexport(qemu: Qemu, name: str) -> None:
    """Ends an export whatever its clients do, and waits for that."""
    qemu.cmd("block-export-del", id=name, mode="hard")
    eventually(lambda: name not in [
        export["id"] for export in qemu.cmd("query-block-exports")],
        f"export {name} goes")


__all__ = ["DISCONNECT", "FLUSH", "GREETING", "LIMIT", "READ", "SIZE",
           "WRITE", "Client", "Failure", "Holders", "Job", "Nbd", "Program",
           "Qemu", "Refused", "Timeout", "errno", "eventually", "json",
           "main", "nbd_address", "null", "request", "require", "serve",
           "start_nbd", "unexport"]
