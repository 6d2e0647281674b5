# SPDX-License-Identifier: GPL-2.0-or-later
"""
An X server for tests of displays, which needs no screen
"""

import os
import shutil
import subprocess
import unittest


def start_xserver(test: unittest.TestCase) -> None:
    """
    Start an X server that ends with the test, and have SDL show there what
    OpenGL draws in software.
    """
    if not shutil.which('Xvfb'):
        test.skipTest('no Xvfb')
    read, write = os.pipe()
    # pylint: disable=consider-using-with
    server = subprocess.Popen(
        ['Xvfb', '-displayfd', str(write), '-screen', '0', '1280x1024x24',
         '-nolisten', 'tcp', '-noreset'],
        pass_fds=[write], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    # Cleanups come after tearDown(): QEMU is gone by then
    test.addCleanup(server.wait)
    test.addCleanup(server.terminate)
    os.close(write)
    with os.fdopen(read) as stream:
        number = stream.readline().strip()
    if not number:
        test.skipTest('Xvfb cannot be started')
    os.environ.update(DISPLAY=f':{number}', LIBGL_ALWAYS_SOFTWARE='1',
                      SDL_VIDEODRIVER='x11')
