# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs of QEMU's own build measure."""
from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Mapping

from .qemu import PROGRAM, Missing


LOOP = "tests/bench/benchmark-aio-load"


def output(program: Path, args: list[str],
           more: Mapping[str, str] | None = None) -> str:
    if not program.exists():
        raise Missing(f"{program.name} is not built")
    # Its exit code does not matter: it may judge what it has measured.
    done = subprocess.run([program, *args], text=True, timeout=300,
                          env={**os.environ, **(more or {})}, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if skipped := re.search(r"# SKIP (.*)", done.stdout):
        raise Missing(f"{program.name}: {skipped[1]}")
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    found = [float(each) for each in re.findall(pattern, text, re.M)]
    if not found:
        raise RuntimeError("no figure in: " + text.strip()[-300:])
    return found


def holds(build: Path, count: int | None, walk: bool = False) -> float:
    """Nanoseconds for a get and a put on so many holds, or microseconds to
    walk over them; without a count, how much the slowest differs."""
    name = "" if count is None else f"/{count}"
    said = output(build / "tests/bench/benchmark-iothread-holds",
                  ["-p", f"/iothread-holds/bench{name}"])
    found = numbers(r"([\d.]+) ms to tell$" if walk else
                    r"holds: (\d+) ns for a get and a put", said)
    return max(found) / min(found) if count is None else \
        found[0] * (1000 if walk else 1)


def unmap(build: Path, patched: Path) -> float:
    """Milliseconds, the median of 100 blobs; stock has no such program."""
    said = output(patched / "tests/qtest/virtio-gpu-blob-test",
                  ["-p", "/x86_64/virtio-gpu-blob/latency"],
                  {"QTEST_QEMU_BINARY": str(build / PROGRAM)})
    return numbers(r"unmap of \d+ blobs: median ([\d.]+) ms", said)[0]


@functools.cache
def loop_program(build: Path, patched: Path) -> Path:
    """The benchmark of event loops.  Stock does not have it: what compiled
    and linked it for the patched QEMU does so in the folder of stock."""
    if build != patched and (patched / LOOP).exists():
        (build / f"{LOOP}.p").mkdir(exist_ok=True)
        source = f"../src/{LOOP}.c"
        for made in f"{LOOP}.p/{Path(LOOP).name}.c.o", LOOP:
            command = subprocess.run(
                ["ninja", "-C", patched, "-t", "commands", "-s", made],
                check=True, text=True, stdout=subprocess.PIPE
            ).stdout.splitlines()[-1]
            subprocess.run(command.replace(
                f" {source}", f" {(patched / source).resolve()}"),
                shell=True, cwd=build, check=True)
    return build / LOOP


def loop(build: Path, patched: Path, case: str) -> float:
    """Nanoseconds for a turn of an event loop whose handlers do nothing: the
    best of many rounds, which the host has disturbed least."""
    return numbers(r": ([\d.]+) ns at best", output(
        loop_program(build, patched), ["-p", f"/aio-load/bench/{case}"]))[0]
