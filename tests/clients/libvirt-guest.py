#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt drives a Linux guest, first on stock QEMU and then on the patched.

    libvirt-guest.py [STOCK] PATCHED    (the two qemu-system-x86_64)

Each step has to end on both as it is expected to.  It needs libvirtd, its
QEMU driver and Python binding, and root; docs/testing.md says how to get
them.  libvirtd is started here, on folders that only it sees, and ends with
this.
"""
from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable

import libvirt
import libvirt_qemu

TOP = Path(__file__).resolve().parent.parent.parent
for where in "functional", "stress":
    sys.path.insert(0, str(TOP / "tests" / where))
sys.dont_write_bytecode = True

from parts import eventually, private_mounts  # noqa: E402
from qemu_test.linuxguest import (  # noqa: E402
    CPUS, KERNEL_ARGS, GuestConsole, find_kernel, make_initramfs)

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
WAIT = 30.0  # seconds, for what libvirt or the guest does later
ROUNDS = 10  # ends and starts, one after the other
# Of the host's libvirt nothing is used, and nothing changed.
FOLDERS = [f"{where}/libvirt" for where in
           ("/etc", "/run", "/var/cache", "/var/lib", "/var/log")]
CONFIG = """
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
"""
GUEST = f"""
<domain type='qemu'>
  <name>iothreads</name>
  <memory unit='MiB'>256</memory>
  <vcpu>{CPUS}</vcpu>
  <iothreads>3</iothreads>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{{kernel}}</kernel>
    <initrd>{{initrd}}</initrd>
    <cmdline>{KERNEL_ARGS}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>{{emulator}}</emulator>
    {{disks}}
    <controller type='scsi' index='0' model='virtio-scsi'>
      <driver iothread='3'/>
    </controller>
    <serial type='unix'><source mode='bind' path='{{serial}}'/></serial>
    <memballoon model='virtio'/>
  </devices>
</domain>"""


def mapping(*threads: int) -> str:
    return "<iothreads>" + "".join(
        f"<iothread id='{n}'/>" for n in threads) + "</iothreads>"


def hide() -> None:
    """Puts empty folders, of this process alone, in the place of these."""
    private_mounts()
    for folder in FOLDERS:
        Path(folder).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "libvirt", folder],
                       check=True)
    Path("/etc/libvirt/qemu.conf").write_text(CONFIG)


class Daemon:
    """libvirtd, and a connection to it."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.program: subprocess.Popen[bytes]
        self.conn: libvirt.virConnect

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.program = subprocess.Popen(["libvirtd"], stdout=log,
                                            stderr=log)

        def connect() -> bool:
            with contextlib.suppress(libvirt.libvirtError):
                self.conn = libvirt.open("qemu:///system")
                return True
            return False
        eventually(connect, "libvirtd")

    def kill(self) -> None:
        self.program.kill()
        self.program.wait()


class Guest:
    """One domain, from its definition to its end."""

    def __init__(self, daemon: Daemon, emulator: str, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        self.serial = folder / "serial"
        self.files = 0
        self.failed = 0
        self.removed = threading.Event()
        self.watch()
        kernel, modules = find_kernel()
        initrd = folder / "initrd"
        initrd.write_bytes(make_initramfs(
            modules, ("virtio_blk", "virtio_scsi", "sd_mod"), {}))
        self.domain = daemon.conn.defineXML(GUEST.format(
            emulator=emulator, kernel=kernel, initrd=initrd,
            serial=self.serial,
            disks=self.disk("vda", "iothread='1'") + self.disk(
                "vdb", "queues='4'", mapping(1, 2))))
        self.console: GuestConsole

    def watch(self) -> None:
        self.daemon.conn.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
            lambda *_: self.removed.set(), None)

    def file(self) -> Path:
        self.files += 1
        return self.folder / f"{self.files}.qcow2"

    def disk(self, name: str, driver: str, more: str = "",
             bus: str = "virtio") -> str:
        path = self.file()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path,
                        "64M"], check=True)
        return (f"<disk type='file'><driver name='qemu' type='qcow2' {driver}"
                f">{more}</driver><source file='{path}'/><target dev='{name}'"
                f" bus='{bus}'/><serial>{name}</serial></disk>")

    def step(self, what: str, run: Callable[[], Any], refused: bool = False
             ) -> None:
        """Does it, and says whether it ended as expected."""
        start = time.monotonic()
        try:
            run()
            outcome = "done"
        except libvirt.libvirtError as error:
            outcome = f"refused: {error}"
        except Exception as error:  # pylint: disable=broad-except
            outcome = f"{type(error).__name__}: {error}"
        wrong = not outcome.startswith("refused" if refused else "done")
        self.failed += wrong
        print(f"  {'FAILED ' if wrong else ''}{what}: {outcome}"
              f" ({time.monotonic() - start:.1f} s)", flush=True)

    # --- What the guest does ----------------------------------------------

    def talk(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.serial))
        self.console = GuestConsole(sock)

    def start(self) -> None:
        self.domain.create()
        self.talk()
        self.console.wait_ready()

    def use(self, *disks: str) -> None:
        """Data through each virtqueue, compared."""
        for name in disks:
            self.console.run(f"io {name}")

    # --- What libvirt does ------------------------------------------------

    def attach(self, xml: str) -> None:
        self.domain.attachDeviceFlags(xml, LIVE)

    def detach(self, xml: str) -> None:
        self.removed.clear()
        self.domain.detachDeviceFlags(xml, LIVE)
        if not self.removed.wait(WAIT):
            raise TimeoutError("the guest does not let it go")

    def threads(self) -> set[int]:
        return {each[0] for each in self.domain.ioThreadInfo(LIVE)}

    def statistics(self) -> None:
        """What libvirt tells of IOThreads is there, and no more."""
        (_, found), = self.daemon.conn.domainListGetStats(
            [self.domain], libvirt.VIR_DOMAIN_STATS_IOTHREAD)
        assert found["iothread.count"] == len(self.threads()), found
        self.daemon.conn.domainListGetStats([self.domain], 0)

    def snapshot(self, *disks: str) -> None:
        self.domain.snapshotCreateXML(
            "<domainsnapshot><name>s</name><disks>" + "".join(
                f"<disk name='{name}'><source file='{self.file()}'/></disk>"
                for name in disks) + "</disks></domainsnapshot>",
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)

    def pivot(self, disk: str) -> None:
        def done() -> bool:
            try:
                self.domain.blockJobAbort(
                    disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            except libvirt.libvirtError as error:
                if "not ready" not in str(error):
                    raise
                return False
            return True
        eventually(done, f"the job of {disk}")

    def commit(self, disk: str) -> None:
        self.domain.blockCommit(disk, None, None, 0,
                                libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        self.pivot(disk)

    def copy(self, disk: str) -> None:
        self.domain.blockCopy(
            disk, f"<disk type='file'><source file='{self.file()}'/>"
            "<driver type='qcow2'/></disk>", {},
            libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
        self.pivot(disk)

    def pull(self, disk: str) -> None:
        self.domain.blockPull(disk, 0, 0)
        eventually(lambda: not self.domain.blockJobInfo(disk),
                   f"the job of {disk}")

    def backup(self, *disks: str) -> None:
        """By NBD, of disks in IOThreads."""
        path = self.folder / "nbd"
        self.domain.backupBegin(
            "<domainbackup mode='pull'><server transport='unix' "
            f"socket='{path}'/><disks>" + "".join(
                f"<disk name='{name}' backup='yes' type='file'>"
                f"<scratch file='{self.file()}'/></disk>" for name in disks)
            + "</disks></domainbackup>", None, 0)
        try:
            for name in disks:
                subprocess.run(
                    ["qemu-img", "convert", "-O", "qcow2", "nbd+unix:///"
                     f"{name}?socket={path}", self.file()], check=True,
                    timeout=WAIT)
        finally:
            self.domain.abortJob()
            eventually(lambda: self.domain.jobInfo()[0]
                       == libvirt.VIR_DOMAIN_JOB_NONE, "the backup's end")

    def save(self) -> None:
        """To a file and back: the same guest goes on."""
        path = self.folder / "saved"
        self.domain.save(str(path))
        self.daemon.conn.restore(str(path))
        self.talk()

    def reset(self) -> None:
        self.domain.reset()
        self.console.wait_ready()

    def lose(self) -> None:
        """libvirtd is killed while QEMU answers it; a new one goes on."""
        for _ in range(ROUNDS):
            asking = threading.Thread(target=self.ask)
            asking.start()
            time.sleep(.05)
            self.daemon.kill()
            asking.join()
            self.daemon.start()
            self.watch()
            self.domain = self.daemon.conn.lookupByName("iothreads")
            self.threads()

    def ask(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            while True:
                self.qmp("query-qmp-schema")

    def qmp(self, command: str, **arguments: object) -> Any:
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(
            self.domain, json.dumps({"execute": command, **(
                {"arguments": arguments} if arguments else {})}), 0))
        if "error" in answer:
            raise libvirt.libvirtError(answer["error"]["desc"])
        return answer["return"]

    def rounds(self) -> None:
        """A SIGTERM each, which libvirt makes a SIGKILL if nothing ends."""
        for _ in range(ROUNDS):
            self.domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
            self.domain.create()


def drive(guest: Guest, patched: bool) -> None:
    """The steps, in their order."""
    step = guest.step
    step("start", guest.start)
    step("I/O", lambda: guest.use("vda", "vdb"))
    step("statistics", guest.statistics)
    step("polling", lambda: guest.domain.setIOThreadParams(
        1, {"poll_max_ns": 50000}, LIVE))
    step("delete an IOThread in use",
         lambda: guest.domain.delIOThread(1, LIVE), refused=True)
    step("add an IOThread", lambda: guest.domain.addIOThread(9, LIVE))
    disk = guest.disk("vdc", "iothread='9'")
    step("attach a disk", lambda: guest.attach(disk))
    step("its I/O", lambda: guest.use("vdc"))
    step("detach it", lambda: guest.detach(disk))
    step("delete the IOThread", lambda: guest.domain.delIOThread(9, LIVE))
    step("add it again", lambda: guest.domain.addIOThread(9, LIVE))
    mapped = guest.disk("vdd", "queues='2'", mapping(9, 1))
    step("attach a disk with a mapping", lambda: guest.attach(mapped))
    step("its I/O", lambda: guest.use("vdd"))
    disks = ("vda", "vdb", "vdd")
    for name in disks:
        step(f"write to {name} from now on",
             lambda name=name: guest.console.run(f"churn {name}"))
    step("snapshot", lambda: guest.snapshot(*disks))
    for name in disks[:2]:
        step(f"commit {name}", lambda name=name: guest.commit(name))
        step(f"copy {name}", lambda name=name: guest.copy(name))
    step("pull vdd", lambda: guest.pull("vdd"))
    step("throttle", lambda: guest.domain.setBlockIoTune(
        "vda", {"total_iops_sec": 5000}, LIVE))
    step("resize", lambda: guest.domain.blockResize(
        "vda", 80 << 20, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES))
    step("backup", lambda: guest.backup(*disks))
    step("detach the disk with a mapping, in use",
         lambda: guest.detach(mapped))
    step("delete its IOThread", lambda: guest.domain.delIOThread(9, LIVE))
    scsi = ("<controller type='scsi' index='1' model='virtio-scsi'>"
            "<driver iothread='2'/></controller>")
    step("attach a SCSI controller", lambda: guest.attach(scsi))
    unit = guest.disk("sda", "", bus="scsi").replace(
        "</disk>", "<address type='drive' controller='1'/></disk>")
    step("attach a SCSI disk", lambda: guest.attach(unit))
    step("its I/O", lambda: guest.console.run(
        "until dd if=/dev/sda of=/dev/null bs=4k count=64 iflag=direct; "
        "do usleep 20000; done"))
    step("detach it", lambda: guest.detach(unit))
    step("detach the controller", lambda: guest.detach(scsi))
    step("suspend", lambda: guest.domain.suspend())
    step("resume", lambda: guest.domain.resume())
    step("reset", guest.reset)
    step("I/O", lambda: guest.use("vda", "vdb"))
    step("balloon", lambda: guest.domain.setMemoryFlags(200 << 10, LIVE))
    step("save and restore", guest.save)
    step("I/O", lambda: guest.use("vda", "vdb"))
    step(f"libvirtd is killed {ROUNDS} times", guest.lose)
    step("I/O", lambda: guest.use("vda", "vdb"))
    step("object-del of an IOThread in use, past libvirt",
         lambda: guest.qmp("object-del", id="iothread1"), refused=patched)
    step(f"{ROUNDS} ends and starts", guest.rounds)
    step("end", lambda: guest.domain.destroyFlags(
        libvirt.VIR_DOMAIN_DESTROY_GRACEFUL))


def main() -> int:
    emulators = [os.path.abspath(path) for path in sys.argv[1:]]
    if len(emulators) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    hide()
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def events() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()
    threading.Thread(target=events, daemon=True).start()
    failed = 0
    for number, emulator in enumerate(emulators, 1):
        print(emulator, flush=True)
        # A short path: there are sockets in it.
        with tempfile.TemporaryDirectory(prefix="libvirt-") as folder:
            os.environ["PATH"] = (f"{Path(emulator).parent}:"
                                  + os.environ["PATH"])
            daemon = Daemon(Path(folder) / "log")
            daemon.start()
            guest = Guest(daemon, emulator, Path(folder))
            try:
                drive(guest, number == len(emulators))
            finally:
                with contextlib.suppress(libvirt.libvirtError):
                    guest.domain.destroy()
                guest.domain.undefine()
                daemon.kill()
            failed += guest.failed
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
