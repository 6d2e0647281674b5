#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Random virtio-gpu commands; what fails is shrunk to a few steps."""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--replay", metavar="STEPS")
    options = parser.parse_args()
    build = options.build.resolve()
    test = build / "tests" / "qtest" / "virtio-gpu-blob-test"
    env = os.environ | {
        "QTEST_QEMU_BINARY": str(build / "qemu-system-x86_64"),
        "VIRTIO_GPU_BLOB_SEED": str(options.seed),
        "VIRTIO_GPU_BLOB_COUNT": str(options.steps)}
    if options.replay:
        env["VIRTIO_GPU_BLOB_STEPS"] = options.replay
    done = subprocess.run(
        [test, "--tap", "-p", "/x86_64/virtio-gpu-blob/random"], env=env,
        cwd=build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        errors="replace", check=False)
    print(done.stdout, flush=True)
    if not done.returncode and re.search("(?m)^ok 1 .*# SKIP", done.stdout):
        sys.exit(77)
    counted = re.search(r"(\d+) commands, (\d+) resets", done.stdout)
    if not done.returncode and counted:
        print(f"{int(counted[1]) + int(counted[2])} steps, seed "
              f"{options.seed}")
        return
    last = re.search(r"failed in step (\d+)", done.stdout)
    if last and not options.replay:
        subprocess.run(
            [sys.executable, Path(__file__).with_name(
                "shrink-virtio-gpu-blob.py"), test, str(options.seed),
             last[1]], env=env, cwd=build, check=False)
    sys.exit(f"FAILED: exit code {done.returncode}")


if __name__ == "__main__":
    main()
