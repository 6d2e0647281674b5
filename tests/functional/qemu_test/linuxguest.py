# SPDX-License-Identifier: GPL-2.0-or-later
"""
A small real Linux guest, made on the spot from the host's own packages

The kernel and its modules come from $QEMU_TEST_LINUX_ROOT (default: /), the
user space is a static busybox.  Nothing is downloaded.  The guest's init reads
commands from the serial console, and answers each with what it prints and its
exit status.

This file imports nothing from the package around it, so that a script from
outside of the test framework can load it by its path.
"""

import gzip
import lzma
import os
from pathlib import Path
import re
import shutil
import socket
import stat
import time
from typing import (Any, Callable, Dict, List, Mapping, Optional, Sequence,
                    Tuple)

# Four CPUs make the driver use four virtqueues per disk.
CPUS = 4

# What kernel packages do not build in; virtio_pci they do.
MODULES = ('virtio_blk',)

# loglevel=1 leaves the console to the dialogue: of the kernel's own messages
# only a panic is shown.  The rest is about timers, which under TCG may be too
# late for the kernel's plausibility checks when the host is busy.
KERNEL_ARGS = 'console=ttyS0 loglevel=1 tsc=reliable no_timer_check'

INIT = r'''#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
stty -echo -opost
for module in /lib/*.ko; do
    insmod "$module"
done

# disk SERIAL: wait for the disk with that serial number, print its name
disk() {
    end=$(($(date +%s) + 20))
    until name=$(grep -lx "$1" /sys/block/*/serial 2>/dev/null); do
        if [ $(date +%s) -gt $end ]; then
            echo "no disk $1 within 20 s" >&2
            return 1
        fi
        usleep 20000
    done
    name=${name#/sys/block/}
    echo "${name%/serial}"
}

# gone SERIAL: wait until no disk has that serial number
gone() {
    while grep -qx "$1" /sys/block/*/serial 2>/dev/null; do
        usleep 20000
    done
}

# copy FROM TO FLAG: 1 MiB from each CPU, all at the same time
copy() {
    jobs=
    for cpu in $(seq 0 $(($(nproc) - 1))); do
        taskset -c $cpu dd if="$1" of="$2" "$3" bs=64k count=16 \
            skip=$((cpu * 16)) seek=$((cpu * 16)) conv=notrunc 2>/dev/null &
        jobs="$jobs $!"
    done
    for job in $jobs; do
        wait "$job" || return 1
    done
}

# io SERIAL: write random data to the disk, from each CPU and so through each
# virtqueue, past the page cache; read it back the same way, and compare.
# Prints the number of bytes and their SHA-256.
io() {
    dev=/dev/$(disk "$1") || return 1
    size=$(($(nproc) * 1048576))
    rm -f /tmp/read
    head -c $size /dev/urandom >/tmp/written &&
        copy /tmp/written $dev oflag=direct &&
        copy $dev /tmp/read iflag=direct &&
        cmp /tmp/read /tmp/written &&
        echo "$size $(sha256sum </tmp/written | cut -d' ' -f1)"
}

# churn SERIAL: write to the disk in the background until that fails.  Not by
# the disk's name: once that is free, dd would make a plain file of it.
churn() {
    dev=/dev/$(disk "$1") || return 1
    while dd if=/tmp/written of=/proc/self/fd/3 bs=64k count=16 seek=128 \
        oflag=direct
    do :; done 3<>$dev 2>/dev/null &
}

# queues SERIAL: the numbers of its virtqueues that have completed requests
queues() {
    virtio=$(basename $(readlink /sys/block/$(disk "$1")/device))
    awk -v name="^$virtio-req" '$NF ~ name {
        n = 0
        for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i
        if (n) print substr($NF, index($NF, ".") + 1)
    }' /proc/interrupts
}

mkdir /tmp
echo 'guest ready'
while read -r line; do
    eval "$line"
    echo "[exit $?]"
done
'''


class GuestMissing(Exception):
    """The host lacks something that the guest is made of."""


class GuestError(Exception):
    """The guest failed, or it did not answer in time."""


def has_magic(path: Path, offset: int, magic: bytes) -> bool:
    """Tell whether the file has these bytes at that offset."""
    with open(path, 'rb') as stream:
        stream.seek(offset)
        return stream.read(len(magic)) == magic


def find_kernel() -> Tuple[Path, Path]:
    """Return the newest kernel that we may read, and its modules."""
    root = Path(os.environ.get('QEMU_TEST_LINUX_ROOT') or '/')
    found = []
    for kernel in root.glob('boot/vmlinuz-*'):
        version = kernel.name[len('vmlinuz-'):]
        for lib in ('lib', 'usr/lib'):
            modules = root / lib / 'modules' / version
            if (modules.is_dir() and os.access(kernel, os.R_OK)
                    and has_magic(kernel, 0x202, b'HdrS')):
                found.append((kernel.stat().st_mtime, kernel, modules))
    if not found:
        raise GuestMissing(
            f'no readable x86 boot/vmlinuz-* with lib/modules in {root}'
            ' (another directory: QEMU_TEST_LINUX_ROOT)')
    _, kernel, modules = max(found)
    return kernel, modules


def find_busybox() -> Path:
    """Return a busybox that runs without any library."""
    for path in ('/bin/busybox', shutil.which('busybox')):
        if path and os.access(path, os.X_OK):
            with open(path, 'rb') as stream:
                head = stream.read(4096)
            # e_machine is EM_X86_64, and no program header asks for a
            # loader: its name would stand right after the headers
            if head[18:20] == b'\x3e\0' and b'/ld-' not in head:
                return Path(path)
    raise GuestMissing('no static x86_64 busybox'
                       ' (Debian: package busybox-static)')


def read_module(modules: Path, name: str) -> Dict[str, bytes]:
    """Return the named module, uncompressed, after those that it needs."""
    pattern = name.replace('_', '[-_]')
    builtin = (modules / 'modules.builtin').read_text(encoding='ascii')
    if re.search(f'/{pattern}[.]ko$', builtin, re.MULTILINE):
        return {}
    opens: Dict[str, Callable[..., Any]] = {
        '.ko': open, '.xz': lzma.open, '.gz': gzip.open}
    for path in modules.rglob(f'{pattern}.ko*'):
        if path.suffix not in opens:
            raise GuestMissing(f'cannot uncompress {path}')
        with opens[path.suffix](path, 'rb') as stream:
            data = stream.read()
        found = {}
        depends = re.search(rb'\0depends=([^\0]*)', data)
        for needed in depends[1].decode().split(',') if depends else ():
            if needed:
                found.update(read_module(modules, needed))
        found[name] = data
        return found
    raise GuestMissing(f'no module {name} in {modules}')


def make_initramfs(modules: Path, names: Sequence[str],
                   programs: Mapping[str, bytes]) -> bytes:
    """
    Return the guest's user space as a cpio archive (format "newc"), with
    these kernel modules and programs.
    """
    # The kernel opens /dev/console before init can mount anything there.
    console = os.makedev(5, 1)
    entries = [(name, stat.S_IFDIR | 0o755, b'', 0)
               for name in ('bin', 'dev', 'lib', 'proc', 'sys')]
    entries += [
        ('dev/console', stat.S_IFCHR | 0o600, b'', console),
        ('bin/busybox', stat.S_IFREG | 0o755, find_busybox().read_bytes(), 0),
        ('init', stat.S_IFREG | 0o755, INIT.encode(), 0)]
    entries += [(f'bin/{name}', stat.S_IFREG | 0o755, data, 0)
                for name, data in programs.items()]
    files: Dict[str, bytes] = {}
    for name in names:
        files.update(read_module(modules, name))
    for i, (name, data) in enumerate(files.items()):
        # init loads them in the order of their names
        entries.append((f'lib/{i:02}-{name}.ko', stat.S_IFREG | 0o644,
                        data, 0))
    entries.append(('TRAILER!!!', 0, b'', 0))

    archive = bytearray()
    for ino, (name, mode, data, rdev) in enumerate(entries, 1):
        header = (ino, mode, 0, 0, 1, 0, len(data), 0, 0,
                  os.major(rdev), os.minor(rdev), len(name) + 1, 0)
        archive += b'070701' + b''.join(b'%08x' % field for field in header)
        for part in (name.encode() + b'\0', data):
            archive += part
            archive += bytes(-len(archive) % 4)
    return bytes(archive)


def guest_args(directory: str, names: Sequence[str] = MODULES,
               programs: Optional[Mapping[str, bytes]] = None
               ) -> List[str]:
    """
    Make the guest in that directory, return QEMU's arguments for it.

    The guest loads the kernel modules of these names, and has these programs
    in its PATH: name and contents, which must not need a library.
    """
    kernel, modules = find_kernel()
    initramfs = Path(directory, 'initramfs.cpio')
    initramfs.write_bytes(make_initramfs(modules, names,
                                         programs or {}))
    return ['-nodefaults', '-no-user-config',
            '-accel', 'tcg,thread=multi', '-cpu', 'max',
            '-smp', str(CPUS), '-m', '256M',
            '-kernel', str(kernel), '-initrd', str(initramfs),
            '-append', KERNEL_ARGS]


class GuestConsole:
    """The dialogue with the guest, over the socket of its serial console."""

    def __init__(self, sock: socket.socket,
                 log: Optional[Callable[[str], None]] = None) -> None:
        self._sock = sock
        self._log = log
        self._text = ''

    def _wait_for(self, pattern: str, timeout: float) -> 're.Match[str]':
        end = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self._text, re.DOTALL)
            if match:
                if self._log:
                    self._log(self._text[:match.end()].strip())
                self._text = self._text[match.end():]
                return match
            left = end - time.monotonic()
            why = f'no answer within {timeout} s' if left <= 0 else ''
            if re.search('Kernel panic.*\n', self._text):
                why = 'kernel panic'
            if not why:
                self._sock.settimeout(left)
                try:
                    data = self._sock.recv(4096)
                    self._text += data.decode('ascii', 'replace')
                    why = '' if data else 'QEMU has closed the console'
                except socket.timeout:
                    continue
            if why:
                raise GuestError(f'guest: {why}; its last words:'
                                 f' {self._text[-1000:].strip()!r}')

    def wait_ready(self, timeout: float = 90) -> None:
        """Wait until the guest has booted."""
        self._wait_for('guest ready\n', timeout)

    def send(self, command: str) -> None:
        """Have the guest execute the command, without waiting for it."""
        if self._log:
            self._log(f'$ {command}')
        self._sock.sendall(command.encode() + b'\n')

    def run(self, command: str, timeout: float = 30) -> str:
        """Have the guest execute the command, return what that prints."""
        self.send(command)
        match = self._wait_for(r'^(.*?)\[exit (\d+)\]\n', timeout)
        if match[2] != '0':
            raise GuestError(f'guest: {command!r} failed with status'
                             f' {match[2]}: {match[1].strip()!r}')
        return match[1].strip()
