# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU process, and the client that asks it by QMP."""
from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Sequence

PROGRAM = "qemu-system-x86_64"
TIMEOUT = 120


class Missing(Exception):
    """What a row needs is not there."""


class Qemu:
    """Has started, and answers after greet(); ends with its block."""

    def __init__(self, build: Path, args: Sequence[str],
                 files: Sequence[int] = (), under: Sequence[str] = ()
                 ) -> None:
        """The words of `under` are a program that runs another."""
        near, far = socket.socketpair()
        near.settimeout(TIMEOUT)
        self.stream = near.makefile("rw")
        near.close()  # the stream keeps it
        self.errors = tempfile.TemporaryFile()
        words = [*under, str(build / PROGRAM), "-nodefaults", "-no-user-config",
                 "-display", "none", "-run-with", "exit-with-parent=on",
                 "-chardev", f"socket,id=qmp,fd={far.fileno()}",
                 "-mon", "chardev=qmp,mode=control", *args]
        self.start = time.perf_counter()
        with far:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=self.errors,
                stderr=self.errors, pass_fds=(far.fileno(), *files))

    def __enter__(self) -> Qemu:
        return self

    def __exit__(self, kind: type[BaseException] | None,
                 error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def gone(self) -> RuntimeError:
        self.process.kill()
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip()
        return RuntimeError(
            f"QEMU ended with code {self.process.returncode}: "
            + (said.splitlines() or ["it said nothing"])[-1])

    def line(self) -> str:
        try:
            line = self.stream.readline()
        except ConnectionError:
            line = ""
        if not line:
            raise self.gone()
        return line

    def greet(self) -> None:
        self.line()
        self.cmd("qmp_capabilities")

    def send(self, name: str, **arguments: object) -> None:
        self.stream.write(json.dumps(
            {"execute": name, "arguments": arguments}) + "\n")

    def answer(self) -> None:
        """Waits for the answer, and leaves it as it is: parsing it would
        be the client's time."""
        self.stream.flush()
        while not (line := self.line()).startswith('{"return"'):
            if line.startswith('{"error"'):
                raise RuntimeError(line.strip())

    def cmd(self, name: str, **arguments: object) -> None:
        self.send(name, **arguments)
        self.answer()

    def deleted(self, device: str) -> None:
        """Waits until QEMU tells that the device has gone."""
        self.stream.flush()
        while '"DEVICE_DELETED"' not in (line := self.line()) or \
                f'"device": "{device}"' not in line:
            pass

    def ended(self, how: str) -> float:
        """Ends QEMU by `quit` or SIGTERM; returns how long it took."""
        # Popen.wait() with a time limit looks only now and then.
        watch = os.pidfd_open(self.process.pid)
        try:
            start = time.perf_counter()
            if how == "quit":
                self.send("quit")
                self.stream.flush()
            else:
                self.process.send_signal(signal.SIGTERM)
            if not select.select([watch], [], [], 30)[0]:
                raise RuntimeError(f"QEMU did not end within 30 s of {how}")
            return time.perf_counter() - start
        finally:
            os.close(watch)
