#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Storage that does not answer does not keep a program from ending for ever:
the second signal limits how long it may take
"""

import os
import signal
import subprocess
import time
from typing import List

from qemu_test import QemuSystemTest
from qemu_test.qmpprogram import Client, Program, programs

MIB = 1 << 20
# What the second signal promises, in seconds
LIMIT = 8.0


class QmpShutdownLimit(QemuSystemTest):
    """One test, as most of it is waiting."""

    def start(self, binary: str, name: str, server: str) -> Program:
        """Start a program that waits for storage which has stopped."""
        folder = os.path.join(self.socket_dir().name, name)
        os.mkdir(folder)
        option = '--blockdev' if 'storage-daemon' in binary else '-blockdev'
        program = Program(binary, folder, 1, [
            option, f'null-co,node-name=source,size={MIB},read-zeroes=on',
            option, 'nbd,node-name=lost,export=disk,'
            f'server.type=unix,server.path={server}'])
        self.addCleanup(program.end)
        program.start()
        return program

    @staticmethod
    def write(client: Client) -> None:
        """Have something in flight."""
        assert 'return' in client.execute('blockdev-mirror', {
            'job-id': 'job', 'device': 'source', 'target': 'lost',
            'sync': 'full'})

    def test(self) -> None:
        """Each program, told by a signal and by QMP; and stock QEMU"""
        binaries = programs(self.qemu_bin)
        if len(binaries) < 2:
            self.skipTest('no storage daemon was built')
        disk = self.scratch_file('disk')
        with open(disk, 'wb') as stream:
            stream.truncate(MIB)
        path = os.path.join(self.socket_dir().name, 'nbd')
        server = subprocess.Popen([  # pylint: disable=R1732
            binaries[1], '--blockdev', f'file,node-name=disk,filename={disk}',
            '--nbd-server', f'addr.type=unix,addr.path={path}',
            '--export', 'nbd,id=disk,node-name=disk,writable=on,name=disk'])
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        while not os.path.exists(path):
            time.sleep(0.01)

        running: List[Program] = []
        for number, binary in enumerate(binaries * 2):
            running.append(self.start(binary, str(number), path))
        stock = os.environ.get('QTEST_QEMU_STOCK_BINARY')
        if stock:
            running.append(self.start(stock, 'stock', path))
        clients = [program.connect() for program in running]
        for client in clients:
            self.addCleanup(client.close)
        server.send_signal(signal.SIGSTOP)
        for client in clients:
            self.write(client)

        for program, client in zip(running, clients):
            if program in running[2:4]:
                client.send('quit')
            else:
                # Sent together, these are one request
                program.kill()
                program.kill(signal.SIGHUP)
        time.sleep(1.5)
        for program in running:
            self.assertTrue(program.alive(), program.output())
            self.assertNotIn('again', program.output())
            program.kill()
        begin = time.monotonic()
        for program in running[:4]:
            self.assertEqual(program.wait(LIMIT + 2), 1)
            self.assertIn("Block node 'lost' (nbd) does not answer",
                          program.output())
            self.assertNotIn("'source'", program.output())
        self.assertGreater(time.monotonic() - begin, LIMIT / 2)
        for program in running[4:]:
            self.assertTrue(program.alive())


if __name__ == '__main__':
    QemuSystemTest.main()
