# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured of QEMU as a process and as a file."""
from __future__ import annotations

import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from .qemu import PROGRAM, Missing, Qemu

# Nobody runs in it: only what QEMU itself does is measured.
QTEST = ["-machine", "pc", "-accel", "qtest"]


def iothreads(count: int) -> list[str]:
    return [word for number in range(count)
            for word in ("-object", f"iothread,id=io{number}")]


def disks(count: int, threads: int) -> list[str]:
    """They hold the IOThreads in turn.  Behind bridges, and with nothing
    that costs time to plug: a thousand of them take some as it is."""
    args = []
    for number in range(count):
        bridge, place = divmod(number, 125)
        if not place:
            args += ["-device", f"pci-bridge,id=br{bridge},shpc=off,"
                     f"chassis_nr={bridge + 1}"]
        args += ["-blockdev", f"null-co,node-name=n{number}", "-device",
                 f"virtio-blk-pci,id=d{number},drive=n{number},"
                 f"bus=br{bridge},addr={place // 8 + 1:x}.{place % 8},"
                 "multifunction=on,disable-modern=on,vectors=0,num-queues=1,"
                 f"iothread=io{number % threads}"]
    return args


def start_up(build: Path, args: list[str], answer: bool) -> float:
    """Milliseconds from exec to the greeting, or to the first answer."""
    with Qemu(build, args) as qemu:
        if answer:
            qemu.greet()
        else:
            qemu.line()
        return (time.perf_counter() - qemu.start) * 1e3


def start_up_work(build: Path, args: list[str]) -> float:
    """Milliseconds of CPU time to the first answer, of all threads."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Qemu(build, args) as qemu:
        qemu.greet()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime
            - before.ru_utime - before.ru_stime) * 1e3


def shutdown(build: Path, args: list[str], how: str) -> float:
    with Qemu(build, args) as qemu:
        qemu.greet()
        return qemu.ended(how) * 1e3


def memory(build: Path, args: list[str], field: str) -> float:
    """MiB at rest."""
    with Qemu(build, args) as qemu:
        qemu.greet()
        time.sleep(0.3)
        text = Path(f"/proc/{qemu.process.pid}/smaps_rollup").read_text()
    found = re.search(rf"^{field}: +(\d+) kB$", text, re.M)
    if not found:
        raise Missing(f"the kernel does not tell {field}")
    return int(found[1]) / 1024


def size(build: Path, what: str) -> float:
    """MiB of the file, of the file without symbols, or of a part."""
    binary = build / PROGRAM
    if what == "file":
        return binary.stat().st_size / 2**20
    try:
        if what == "stripped":
            with tempfile.NamedTemporaryFile(prefix="bench-") as made:
                subprocess.run(["strip", "-o", made.name, binary], check=True)
                return Path(made.name).stat().st_size / 2**20
        said = subprocess.run(["size", binary], check=True, text=True,
                              stdout=subprocess.PIPE).stdout.splitlines()
    except FileNotFoundError as error:
        raise Missing(f"no program {error.filename}") from None
    return int(said[1].split()[said[0].split().index(what)]) / 2**20
