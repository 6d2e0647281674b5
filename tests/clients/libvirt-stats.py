#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long libvirt's bulk statistics take, of many guests.

    libvirt-stats.py GUESTS STOCK PATCHED    (the two qemu-system-x86_64)

What `virsh domstats` asks for, of so many paused guests with four disks on
stock QEMU, and as many on the patched one, in turn.  What it needs, and how
libvirtd is started, is as in tests/clients/libvirt-guest.py.
"""
from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

import libvirt

TOP = Path(__file__).resolve().parent.parent.parent
ROUNDS = 15
DISK = """
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' iothread='1'/>
      <source file='{image}'/><target dev='vd{letter}' bus='virtio'/>
    </disk>"""
GUEST = """
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>32</memory><vcpu>2</vcpu>
  <iothreads>1</iothreads>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices><emulator>{emulator}</emulator>{disks}
    <memballoon model='virtio'/></devices>
</domain>"""


def main() -> int:
    spec = importlib.util.spec_from_file_location(
        "libvirt_guest", TOP / "tests/clients/libvirt-guest.py")
    assert spec and spec.loader
    clients = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clients)
    clients.hide()
    count, kinds = int(sys.argv[1]), dict(zip(("stock", "patched"),
                                              sys.argv[2:]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        daemon = clients.Daemon(folder / "log")
        daemon.start()
        guests: dict[str, list[libvirt.virDomain]] = {}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        try:
            for kind, emulator in kinds.items():
                guests[kind] = []
                for number in range(count):
                    disks = ""
                    for letter in "abcd":
                        image = folder / f"{kind}{number}{letter}"
                        image.write_bytes(b"")
                        image.open("r+b").truncate(1 << 20)
                        disks += DISK.format(image=image, letter=letter)
                    guests[kind].append(daemon.conn.createXML(GUEST.format(
                        name=f"{kind}{number}", emulator=emulator,
                        disks=disks), libvirt.VIR_DOMAIN_START_PAUSED))
            for _ in range(ROUNDS):
                for kind in kinds:
                    start = time.monotonic()
                    found = daemon.conn.domainListGetStats(guests[kind], 0, 0)
                    times[kind].append(time.monotonic() - start)
                    assert len(found) == count
                    assert all(stats["block.count"] == 4
                               for _, stats in found)
        finally:
            for each in guests.values():
                for domain in each:
                    domain.destroy()
            daemon.kill()
    for kind, samples in times.items():
        middle = statistics.quantiles(samples, n=4)
        print(f"{kind}: {statistics.median(samples):.3f} s, middle half"
              f" {middle[0]:.3f} to {middle[2]:.3f}")
    print("ratio %.2f" % statistics.median(
        after / before for before, after in zip(*times.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
