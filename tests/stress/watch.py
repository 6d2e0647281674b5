#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a command that has to end, and to leave no process behind.

Usage: watch.py SECONDS FOLDER CMD...

A hang ends with exit code 124 and gdb's backtraces in FOLDER/backtrace.
"""
from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def backtrace(pid: int) -> str:
    """All threads of a process; empty where gdb cannot tell."""
    try:
        return subprocess.run(
            ["gdb", "-nx", "-q", "-batch", "-p", str(pid), "-ex",
             "set debuginfod enabled off", "-ex", "thread apply all bt"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, errors="replace", timeout=120,
            check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def below(pid: int) -> list[int]:
    """All processes that run, and that pid or its children began."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace")


def main() -> int:
    limit, folder, words = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    # What loses its parent becomes a child of this process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    proc = subprocess.Popen(words)
    try:
        code = proc.wait(limit)
    except subprocess.TimeoutExpired:
        code = 124
        print(f"HANG: no end within {limit:g} s", flush=True)
        with open(folder / "backtrace", "w", encoding="utf-8") as out:
            for pid in below(os.getpid()):
                if "qemu" in command(pid).split(" ")[0]:
                    out.write(f"{pid} {command(pid)}\n{backtrace(pid)}\n")
    # What is ending may take a moment, on a busy machine.
    end = time.monotonic() + 10
    while (left := below(os.getpid())) and code != 124 and \
            time.monotonic() < end:
        time.sleep(.05)
    for pid in left:
        if code != 124:
            print(f"LEFT RUNNING: {command(pid)}", flush=True)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return code if code or not left else 1


if __name__ == "__main__":
    sys.exit(main())
