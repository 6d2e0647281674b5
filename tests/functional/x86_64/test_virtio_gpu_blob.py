#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Linux' own driver on virtio-gpu-gl, with a host visible window, on a machine
that is reset again and again

QEMU runs on an X server of ours, with OpenGL in software. The guest is made
from the host's kernel package, see qemu_test/linuxguest.py: without that file
(it belongs to another part of the series) the test is skipped.
"""

import logging

from qemu_test import QemuSystemTest
from qemu_test.xserver import start_xserver
try:
    from qemu_test.linuxguest import GuestConsole, GuestMissing, guest_args
    HAVE_GUEST = True
except ImportError:
    HAVE_GUEST = False

RESETS = 10
# Under TCG, on a busy host
BOOT_TIMEOUT = 120


class VirtioGPUBlob(QemuSystemTest):
    """A guest with a virtio-gpu-gl-pci that offers blobs."""

    timeout = 900

    def check_guest(self) -> None:
        """Wait for the guest, and see that its driver drives the device."""
        guest = GuestConsole(self.vm.console_socket,
                             logging.getLogger('console').debug)
        guest.wait_ready(BOOT_TIMEOUT)
        self.assertEqual(
            guest.run('cat /sys/class/drm/card0-Virtual-1/status'),
            'connected')
        # The driver has found the window, and has set a mode
        log = guest.run('dmesg | grep -i -e virtio_gpu -e "drm\\]"')
        self.assertIn('+virgl', log)
        self.assertIn('+resource_blob', log)
        self.assertIn('+host_visible', log)
        self.assertNotIn('*ERROR*', log)
        self.assertEqual(
            guest.run('cat /sys/class/graphics/fb0/virtual_size'),
            '1280,800')
        # What is drawn gets to the device: the driver waits for its fences
        guest.run('dd if=/dev/urandom of=/dev/fb0 bs=64k count=16')
        guest.run('echo 1 >/sys/class/graphics/fb0/blank &&'
                  ' echo 0 >/sys/class/graphics/fb0/blank')
        self.assertNotIn('*ERROR*', guest.run('dmesg'))

    def test_resets(self) -> None:
        """Reset the machine; each time the driver starts from scratch."""
        if not HAVE_GUEST:
            self.skipTest('no qemu_test/linuxguest.py')
        self.require_accelerator('tcg')
        self.require_device('virtio-gpu-gl-pci')
        self.set_machine('pc')
        try:
            args = guest_args(self.workdir, ['virtio_gpu'])
        except GuestMissing as missing:
            self.skipTest(str(missing))

        start_xserver(self)
        self.vm.set_console()
        self.vm.add_args(
            *args, '-smp', '1', '-vga', 'none', '-display', 'sdl,gl=on',
            '-device', 'virtio-gpu-gl-pci,hostmem=64M,blob=on')
        self.vm.launch()
        self.check_guest()
        for i in range(RESETS):
            self.log.info('reset %d', i + 1)
            self.vm.cmd('system_reset')
            self.check_guest()
        self.assertEqual(self.vm.cmd('query-status')['status'], 'running')


if __name__ == '__main__':
    QemuSystemTest.main()
