#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that move to other IOThreads, by the functional test of that: under
its driver (random moves, jobs, resets, unplug) and under a Linux guest."""
import argparse
import os
import sys
import unittest
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--build", type=Path, required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--steps", type=int, required=True, help="moves of each")
args = parser.parse_args()

build = args.build.resolve()
source = build.parent / "src"
os.environ.update({
    "QEMU_BUILD_ROOT": str(build), "MESON_BUILD_ROOT": str(build),
    "QEMU_TEST_QEMU_BINARY": str(build / "qemu-system-x86_64"),
    "QEMU_TEST_MOVES": str(args.steps), "QEMU_TEST_SEED": str(args.seed),
    "QEMU_TEST_SLOWER": os.environ.get("STRESS_SLOWER", "4")})
sys.path[:0] = [str(source / "python"), str(source / "tests/functional"),
                str(source / "tests/functional/x86_64")]
from test_iothread_move import IOThreadMove  # noqa: E402

tests = unittest.TestSuite(map(IOThreadMove, ("test_random", "test_guest")))
result = unittest.TextTestRunner(verbosity=2).run(tests)
print(f"{2 * args.steps} steps")
sys.exit(not result.wasSuccessful())
