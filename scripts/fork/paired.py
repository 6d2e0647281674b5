#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the series costs: stock and patched QEMU in turn, as ratios.

Both run side by side and idle; each row is measured on one, then on the
other, in changing order, ROUNDS times.  A ratio is the median of the ratios
of the pairs: above 1, the patched QEMU takes longer.

Usage: paired.py [--json FILE] [--rounds N] STOCK PATCHED [ROW...]
"""
from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Callable, Iterator

from demo import load_guest

MAPPING = [{"iothread": "io0"}, {"iothread": "io1"}]
IOTHREADS = 64
DISK_MIB = 64


class Qemu:
    """A QEMU that can be asked by QMP, and its guest's console."""

    def __init__(self, binary: str, folder: Path, args: list[str]) -> None:
        paths = folder / "qmp", folder / "console"
        words = [binary, "-display", "none"]
        for path, option in zip(paths, ("-qmp", "-serial")):
            words += [option, f"unix:{path},server=on,wait=off"]
        self.process = subprocess.Popen(words + args)
        self.qmp, self.console = map(self._connect, paths)
        self.stream = self.qmp.makefile("rw")
        self.stream.readline()
        self.cmd("qmp_capabilities")

    def _connect(self, path: Path) -> socket.socket:
        end = time.monotonic() + 30
        while True:
            try:
                made = socket.socket(socket.AF_UNIX)
                made.connect(str(path))
                return made
            except OSError:
                made.close()
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def _line(self) -> str:
        line = self.stream.readline()
        if not line:
            raise RuntimeError("QEMU has gone")
        return line

    def cmd(self, name: str, **arguments: object) -> None:
        """Waits for the answer, and leaves it as it is: parsing it would
        be the client's time."""
        self.stream.write(json.dumps({
            "execute": name, "arguments": arguments}) + "\n")
        self.stream.flush()
        while not (line := self._line()).startswith('{"return"'):
            if line.startswith('{"error"'):
                raise RuntimeError(line)

    def deleted(self, device: str) -> None:
        """Waits until QEMU tells that the device has gone."""
        while '"DEVICE_DELETED"' not in (line := self._line()) or \
                f'"device": "{device}"' not in line:
            pass

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def bare() -> list[str]:
    """Nobody runs in it: only what QEMU itself does is measured."""
    args = ["-machine", "pc", "-accel", "qtest", "-nodefaults",
            "-blockdev", "null-co,node-name=n0"]
    for number in range(IOTHREADS):
        args += ["-object", f"iothread,id=io{number}"]
    return args


def plug(**device: object) -> Callable[[Qemu], None]:
    def rounds(qemu: Qemu) -> None:
        for _ in range(100):
            qemu.cmd("device_add", id="d0", **device)
            qemu.cmd("device_del", id="d0")
            # Without a guest, it is a reset that completes the unplug.
            qemu.stream.write('{ "execute": "system_reset" }\n')
            qemu.stream.flush()
            qemu.deleted("d0")
    return rounds


def query(qemu: Qemu) -> None:
    for _ in range(500):
        qemu.cmd("query-iothreads")


def commands(qemu: Qemu) -> None:
    for _ in range(5000):
        qemu.cmd("query-name")


BARE: dict[str, Callable[[Qemu], None]] = {
    "plug and unplug virtio-blk": plug(
        driver="virtio-blk-pci", drive="n0", iothread="io0"),
    "plug and unplug virtio-blk, mapped": plug(**{
        "driver": "virtio-blk-pci", "drive": "n0", "num-queues": 4,
        "iothread-vq-mapping": MAPPING}),
    "plug and unplug virtio-scsi": plug(
        driver="virtio-scsi-pci", iothread="io0"),
    f"query-iothreads, {IOTHREADS} IOThreads": query,
    "QMP command": commands}
# Guest rows: disk, queues, requests at a time.
GUEST = {f"guest reads {disk}, {queues} queues x {depth}": (disk, queues, depth)
         for disk in ("virtio-blk", "virtio-scsi")
         for queues, depth in ((1, 1), (4, 8))}


def guest(linux: ModuleType, folder: Path) -> list[str]:
    args: list[str] = linux.guest_args(
        str(folder), linux.MODULES + ("virtio_scsi", "sd_mod"))
    args += ["-machine", "pc", "-object", "iothread,id=io0",
             "-object", "iothread,id=io1"]
    for queues in 1, 4:
        for disk in "blk", "scsi":
            args += ["-blockdev", f"null-co,node-name={disk}{queues},"
                     f"size={DISK_MIB << 20},read-zeroes=off"]
        threads = {"iothread-vq-mapping": MAPPING} if queues > 1 else \
            {"iothread": "io0"}
        args += ["-device", json.dumps({
            "driver": "virtio-blk-pci", "drive": f"blk{queues}",
            "serial": f"blk{queues}", "num-queues": queues, **threads}),
            "-device", json.dumps({
                "driver": "virtio-scsi-pci", "id": f"hba{queues}",
                "num_queues": queues, **threads}),
            "-device", json.dumps({
                "driver": "scsi-hd", "drive": f"scsi{queues}",
                "bus": f"hba{queues}.0", "serial": f"scsi{queues}"})]
    return args


def reader(linux: ModuleType, consoles: dict[Qemu, object], disk: str,
           queues: int, depth: int) -> Callable[[Qemu], None]:
    """Reads 4 KiB at a time past the page cache, from each CPU that has a
    queue, so many readers at a time."""
    count = (DISK_MIB << 8) // (4 if queues * depth == 1 else 8)
    find = f"disk blk{queues}" if disk == "virtio-blk" else (
        f"cd /sys/block; grep -l scsi{queues} sd*/device/vpd_pg80 | "
        "cut -d/ -f1")
    line = (f"f=/dev/$({find}); for cpu in $(seq 0 {queues - 1}); do "
            f"for n in $(seq {depth}); do taskset -c $cpu dd if=$f "
            f"of=/dev/null bs=4k count={count // depth} iflag=direct "
            "2>/dev/null & done; done; wait")
    return lambda qemu: consoles[qemu].run(  # type: ignore[attr-defined]
        line, 120)


@contextlib.contextmanager
def pair(binaries: list[str], args: list[str]) -> Iterator[list[Qemu]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name, \
            contextlib.ExitStack() as stack:
        both = []
        for kind, binary in zip(("stock", "patched"), binaries):
            folder = Path(name) / kind
            folder.mkdir()
            both.append(Qemu(binary, folder, args))
            stack.callback(both[-1].end)
        yield both


def measure(name: str, both: list[Qemu], run: Callable[[Qemu], object],
            rounds: int) -> dict[str, object]:
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for which in ((0, 1), (1, 0))[number % 2]:
            start = time.perf_counter()
            run(both[which])
            if number:  # the first round warms up
                times[which].append(time.perf_counter() - start)
    ratios = sorted(b / a for a, b in zip(*times))
    quarter = len(ratios) // 4
    row: dict[str, object] = {
        "row": name, "stock": times[0], "patched": times[1],
        "ratio": statistics.median(ratios),
        "low": ratios[quarter], "high": ratios[-1 - quarter]}
    print(f"{name:42}{statistics.median(times[0]) * 1e3:9.1f} ms"
          f"{statistics.median(times[1]) * 1e3:9.1f} ms"
          f"{row['ratio']:8.3f}  {row['low']:.3f} to {row['high']:.3f}",
          flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("binaries", nargs=2, metavar="QEMU")
    parser.add_argument("rows", nargs="*", metavar="ROW",
                        help="part of a row's name")
    args = parser.parse_args()

    def wanted(name: str) -> bool:
        return not args.rows or any(row in name for row in args.rows)

    found = []
    print(f"{'':42}{'stock':>12}{'patched':>12}{'ratio':>8}  middle half")
    if rows := list(filter(wanted, BARE)):
        with pair(args.binaries, bare()) as both:
            found += [measure(name, both, BARE[name], args.rounds)
                      for name in rows]
    if rows := list(filter(wanted, GUEST)):
        linux = load_guest()
        with tempfile.TemporaryDirectory(prefix="bench-") as name, \
                pair(args.binaries, guest(linux, Path(name))) as both:
            consoles = {qemu: linux.GuestConsole(qemu.console)
                        for qemu in both}
            for console in consoles.values():
                console.wait_ready()
            found += [measure(row, both, reader(linux, consoles, *GUEST[row]),
                              args.rounds) for row in rows]
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
