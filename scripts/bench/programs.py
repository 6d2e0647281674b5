# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs of QEMU's own build measure."""
from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Mapping

from .qemu import PROGRAM, Missing


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
    found = numbers(r"([\d.]+) ms to walk$" if walk else
                    r"holds: (\d+) ns for a get and a put", said)
    return max(found) / min(found) if count is None else \
        found[0] * (1000 if walk else 1)


def unmap(build: Path, patched: Path) -> float:
    """Milliseconds, the median of 100 blobs; stock has no such program."""
    said = output(patched / "tests/qtest/virtio-gpu-blob-test",
                  ["-p", "/x86_64/virtio-gpu-blob/latency"],
                  {"QTEST_QEMU_BINARY": str(build / PROGRAM)})
    return numbers(r"unmap of \d+ blobs: median ([\d.]+) ms", said)[0]
