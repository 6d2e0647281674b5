#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Random drivers of virtio devices; a step is a second for each device."""
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
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    build = options.build.resolve()
    test = build / "tests" / "qtest" / "virtio-hardening-test"
    env = os.environ | {
        "QTEST_QEMU_BINARY": str(build / "qemu-system-x86_64"),
        "QTEST_VIRTIO_RANDOM_SECONDS": str(options.steps)}
    # GLib takes the seed as four numbers of 32 bits.
    done = subprocess.run(
        [test, "--tap", "--seed", f"R02S{options.seed:032x}",
         "-p", "/x86_64/virtio-hardening/random"], env=env,
        cwd=build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        errors="replace", check=False)
    # What QEMU says of each wrong request is not of interest.
    print(*(line for line in done.stdout.splitlines()
            if not line.startswith("qemu-system-x86_64: virtio")), sep="\n")
    counted = re.findall(r"(?m)^# (\d+) programs$", done.stdout)
    if done.returncode or not counted:
        sys.exit(f"FAILED: exit code {done.returncode}")
    print(f"{sum(map(int, counted))} steps, seed {options.seed}")


if __name__ == "__main__":
    main()
