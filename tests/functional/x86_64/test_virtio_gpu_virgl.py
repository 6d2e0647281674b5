#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
OpenGL programs in a Linux guest on virtio-gpu-gl, with blobs that the host
maps for them, and resets in the middle of that

The guest's kernel and init come from qemu_test/linuxguest.py: without that
file (it belongs to another part of the series) the tests are skipped.  The
programs run on a Linux user space in $QEMU_TEST_LINUX_ROOT/mesa/root.squashfs,
where the tests are skipped, too, if it is missing.  Of Debian it has the
packages libgl1-mesa-dri, libegl1, libgles2 and kmscube with all that these
depend on, unpacked, as well as empty folders dev, proc, sys and tmp.
"""

import logging
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import time
from typing import Callable, List, Set, Tuple

from qemu_test import QemuSystemTest
from qemu_test.xserver import start_xserver
try:
    from qemu_test.linuxguest import GuestConsole, GuestMissing, guest_args
    HAVE_GUEST = True
except ImportError:
    HAVE_GUEST = False

RESETS = 3
ROUNDS = 20
BUFFERS = 8
# Neither a power of two nor whole pages
BYTES = 100000
# Under TCG, on a busy host
BOOT_TIMEOUT = 240
PROGRAM_TIMEOUT = 90


def map_count(events: str) -> Tuple[int, int, Set[str]]:
    """
    Return how many blobs were mapped and unmapped, and which ones are mapped
    at the end.  What an unmap does in several steps is one unmap here.
    """
    maps, unmaps = 0, 0
    mapped: Set[str] = set()
    for what, res in re.findall(
            r'virtio_gpu_cmd_res_(map|unmap)_blob res (0x[0-9a-f]+),', events):
        if what == 'map':
            maps += 1
            mapped.add(res)
        elif res in mapped:
            unmaps += 1
            mapped.remove(res)
    return maps, unmaps, mapped


class VirtioGPUVirgl(QemuSystemTest):
    """A guest with Mesa on a virtio-gpu-gl-pci that offers blobs."""

    timeout = 900
    guest: 'GuestConsole'

    def build_program(self) -> str:
        """Build the guest's own program, return the name of a disk image."""
        cc = shutil.which('cc')
        if not cc or subprocess.run(
                ['pkg-config', '--exists', 'egl', 'glesv2'],
                check=False).returncode:
            self.skipTest('no C compiler, or no EGL and OpenGL ES for it')
        program = Path(self.scratch_file('virgl_blobs'))
        subprocess.run(
            [cc, '-O2', '-Wall', '-o', program,
             self.data_file('qemu_test', 'virgl_blobs.c'),
             '-lEGL', '-lGLESv2'], check=True)
        # A disk has whole sectors
        os.truncate(program, -(-program.stat().st_size // 512) * 512)
        return str(program)

    def disk(self, name: str, file: str) -> List[str]:
        """Return the arguments for a read-only disk that is this file."""
        return ['-blockdev', f'driver=raw,node-name={name},read-only=on,'
                f'file.driver=file,file.filename={file}',
                '-device', f'virtio-blk-pci,drive={name},serial={name}']

    def start(self) -> None:
        """Start the machine, and wait for its guest."""
        if not HAVE_GUEST:
            self.skipTest('no qemu_test/linuxguest.py')
        self.require_accelerator('tcg')
        self.require_device('virtio-gpu-gl-pci')
        self.set_machine('pc')
        events = subprocess.run([self.qemu_bin, '-d', 'help'], check=False,
                                capture_output=True, encoding='utf-8')
        if 'trace:' not in events.stdout + events.stderr:
            self.skipTest('QEMU does not write trace events to its log')
        mesa = Path(os.environ.get('QEMU_TEST_LINUX_ROOT') or '/',
                    'mesa/root.squashfs')
        if not mesa.exists():
            self.skipTest(f'no {mesa}')
        try:
            args = guest_args(self.workdir,
                              ['virtio_blk', 'squashfs', 'virtio_gpu'])
        except GuestMissing as missing:
            self.skipTest(str(missing))
        args += self.disk('mesa', str(mesa))
        args += self.disk('program', self.build_program())

        start_xserver(self)
        self.events = Path(self.log_file('events.log'))
        self.vm.set_console()
        self.vm.add_args(
            *args, '-smp', '2', '-m', '1G', '-vga', 'none',
            '-display', 'sdl,gl=on',
            '-device', 'virtio-gpu-gl-pci,hostmem=64M,blob=on',
            '-d', 'trace:virtio_gpu_cmd_res_*map_blob',
            '-D', str(self.events))
        self.vm.launch()
        self.boot()

    def boot(self) -> None:
        """Wait for the guest, and make Mesa's user space usable there."""
        self.guest = GuestConsole(self.vm.console_socket,
                                  logging.getLogger('console').debug)
        self.guest.wait_ready(BOOT_TIMEOUT)
        self.guest.run(
            'mkdir /mesa && mount -t squashfs /dev/$(disk mesa) /mesa &&'
            ' for i in dev proc sys; do mount -o bind /$i /mesa/$i; done &&'
            ' mount -t tmpfs tmp /mesa/tmp && export HOME=/tmp &&'
            ' dd if=/dev/$(disk program) of=/mesa/tmp/virgl_blobs &&'
            ' chmod +x /mesa/tmp/virgl_blobs')

    def run_mesa(self, *words: object) -> str:
        """Run a program on Mesa's user space, return what it prints."""
        return self.guest.run(
            f'chroot /mesa {shlex.join(map(str, words))} 2>&1',
            PROGRAM_TIMEOUT)

    def start_mesa(self, *words: object) -> None:
        """Start such a program in the background."""
        self.guest.run(f'chroot /mesa {shlex.join(map(str, words))}'
                       f' >/tmp/{Path(str(words[0])).name}.log 2>&1 &')

    def check_renderer(self, output: str) -> None:
        """Not a renderer in the guest: the host's, through the device."""
        self.assertRegex(output, r'renderer: "?virgl \(')

    def blobs_in_window(self) -> int:
        """Return how many blobs the guest, which has booted, can see."""
        tree = self.vm.cmd('human-monitor-command', command_line='info mtree')
        # What is in the window is indented more than that, and follows it
        window = re.search(r'^( +)\S.* virtio-gpu-hostmem\r?\n((?:\1 .*\n)*)',
                           tree, re.MULTILINE)
        self.assertTrue(window, tree)
        return len(window[2].splitlines())

    def wait_until(self, what: str, happened: Callable[[], bool]) -> None:
        """Wait for something that the guest or the device does."""
        end = time.monotonic() + PROGRAM_TIMEOUT
        while not happened():
            self.assertLess(time.monotonic(), end, f'never: {what}')
            time.sleep(0.05)

    def check_blobs(self) -> None:
        """Have the guest map and unmap blobs."""
        output = self.run_mesa('/tmp/virgl_blobs', ROUNDS, BUFFERS, BYTES)
        self.check_renderer(output)
        self.assertIn(f'compared: {ROUNDS * BUFFERS // 2}', output)

    def check_cube(self) -> None:
        """Have the guest show something."""
        output = self.run_mesa('/usr/bin/kmscube', '-c', 30)
        self.check_renderer(output)
        self.assertRegex(output, r'Rendered 29 frames')

    def check_kernel(self) -> None:
        """The guest's driver must have had nothing to complain about."""
        log = self.guest.run('dmesg | grep -i -e virtio_gpu -e "drm\\]"')
        self.assertIn('+host_visible', log)
        self.assertNotIn('*ERROR*', log)

    def test_render(self) -> None:
        """Draw, and set modes."""
        self.start()
        self.check_cube()
        self.check_kernel()

    def test_blobs(self) -> None:
        """Map blobs, let guest and host use them, and unmap them."""
        self.start()
        self.check_blobs()
        self.check_kernel()
        # The guest does not wait for all answers at the end of a program
        self.wait_until('unmapped', lambda: self.blobs_in_window() == 0)
        maps, unmaps, mapped = map_count(self.events.read_text())
        self.log.info('%d blobs mapped, %d unmapped', maps, unmaps)
        self.assertGreaterEqual(maps, ROUNDS * BUFFERS)
        self.assertEqual(unmaps, maps)
        self.assertEqual(mapped, set())

    def test_resets(self) -> None:
        """
        Reset while a program has blobs, another gets new ones all the time,
        and a third one draws.
        """
        self.start()
        for i in range(RESETS):
            self.start_mesa('/tmp/virgl_blobs', 0, BUFFERS, BYTES)
            self.wait_until('mapped',
                            lambda: self.blobs_in_window() >= BUFFERS)
            self.start_mesa('/usr/bin/kmscube')
            self.start_mesa('/tmp/virgl_blobs', 1000000, BUFFERS, BYTES)
            self.wait_until('more mapped',
                            lambda: self.blobs_in_window() > BUFFERS)
            self.guest.run(f'sleep {0.1 * i:.1f}')

            self.log.info('reset %d with %d blobs', i + 1,
                          self.blobs_in_window())
            self.vm.cmd('system_reset')
            self.boot()
            self.assertEqual(self.blobs_in_window(), 0)
            self.check_kernel()
        self.check_blobs()
        self.check_cube()
        self.check_kernel()
        self.assertEqual(self.vm.cmd('query-status')['status'], 'running')


if __name__ == '__main__':
    QemuSystemTest.main()
