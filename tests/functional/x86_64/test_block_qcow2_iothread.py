#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
qcow2: closing a node in an IOThread while its cache clean timer starts

gdb holds the IOThread right before the timer sleeps for the first time, so
that it gets to sleep after the main thread has told it to end.  On stock QEMU
($QTEST_QEMU_STOCK_BINARY) the main thread waits for it for ten minutes.
"""

import os
import subprocess
import time

from qemu_test import QemuSystemTest
from qemu_test.qmpprogram import (
    OTHERS, Debugger, Program, Timeout)

# How long closing may take, and how long stock QEMU is watched
SOON = 20.0
LONG = 3.0
# How long the main thread has to get to where it waits
MOMENT = 2.0


class Qcow2IOThread(QemuSystemTest):
    """One test per version."""

    def close(self, binary: str, timeout: float) -> None:
        """Close a node whose timer is just going to sleep."""
        folder = os.path.join(self.socket_dir().name,
                              os.path.basename(binary))
        os.mkdir(folder)
        disk = os.path.join(folder, 'disk')
        subprocess.run([
            os.environ['QEMU_TEST_QEMU_IMG'], 'create', '-q', '-f', 'qcow2',
            disk, '1M'], check=True)
        bios = os.path.join(folder, 'bios')
        with open(bios, 'wb') as stream:
            stream.truncate(65536)
        # A device keeps the file's node, and what stands on it, in io0
        program = Program(binary, folder, 1, [
            '-machine', 'pc', '-bios', bios, '-object', 'iothread,id=io0',
            '-blockdev', f'file,node-name=file,filename={disk},read-only=on',
            '-device', 'virtio-scsi,iothread=io0',
            '-device', 'scsi-hd,drive=file,share-rw=on'])
        why = Debugger.refused(program)
        if why:
            self.skipTest(why)
        gdb = Debugger(program)
        self.addCleanup(gdb.end)
        client = program.connect()
        self.addCleanup(client.close)

        self.assertIn('return', client.execute('blockdev-reopen', {
            'options': [{'driver': 'file', 'node-name': 'file',
                         'filename': disk, 'read-only': False}]}))
        gdb.hold(OTHERS, 'qemu_co_sleep_ns_wakeable')
        client.send('blockdev-add', {
            'driver': 'qcow2', 'node-name': 'disk', 'file': 'file'})
        thread = gdb.held()
        self.assertIn('return', client.receive(timeout))
        client.send('blockdev-del', {'node-name': 'disk'}, 1)
        # Either it is answered at once, or the main thread gets to wait
        time.sleep(MOMENT)
        gdb.release(thread)
        answer = client.receive(timeout)
        self.assertEqual(answer, {'return': {}, 'id': 1})

    def test_close(self) -> None:
        """The timer ends, and the node is closed"""
        self.close(self.qemu_bin, SOON)

    def test_close_stock(self) -> None:
        """Stock QEMU hangs"""
        stock = os.environ.get('QTEST_QEMU_STOCK_BINARY')
        if not stock:
            self.skipTest('QTEST_QEMU_STOCK_BINARY names no stock QEMU')
        with self.assertRaises(Timeout):
            self.close(stock, LONG)


if __name__ == '__main__':
    QemuSystemTest.main()
