#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the few steps of virtio-gpu-blob-test's random test that a failure
takes.  The environment is that of the test itself (QTEST_QEMU_BINARY).

Usage: shrink-virtio-gpu-blob.py TEST-PROGRAM SEED STEP

SEED and STEP are what the failing test said.
"""
from __future__ import annotations

import os
import subprocess
import sys

TIMEOUT = 120  # seconds; a hang is a failure as well


def words(steps: list[int]) -> str:
    return ",".join(map(str, steps))


def fails(program: str, seed: int, steps: list[int]) -> bool:
    env = os.environ | {"VIRTIO_GPU_BLOB_SEED": str(seed),
                        "VIRTIO_GPU_BLOB_STEPS": words(steps)}
    try:
        return subprocess.run(
            [program, "-p", "/x86_64/virtio-gpu-blob/random"], env=env,
            timeout=TIMEOUT, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def shrink(program: str, seed: int, steps: list[int]) -> list[int]:
    """Leaves out halves, then quarters, ... as long as it fails."""
    size = len(steps) // 2
    while size:
        start = 0
        while start < len(steps):
            fewer = steps[:start] + steps[start + size:]
            if fewer and fails(program, seed, fewer):
                steps = fewer
                print(f"{len(steps)} steps", flush=True)
            else:
                start += size
        size //= 2
    return steps


def main() -> None:
    program, seed, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    steps = list(range(last + 1))
    if not fails(program, seed, steps):
        sys.exit("it does not fail with these")
    steps = shrink(program, seed, steps)
    print(f"VIRTIO_GPU_BLOB_SEED={seed} VIRTIO_GPU_BLOB_STEPS={words(steps)}")


if __name__ == "__main__":
    main()
