#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
QMP: shutdown while a command waits for storage

It takes no longer than a throttle lets it, and neither the guest nor exports
go on while it waits.
"""

import os
import signal
import socket
import struct
import subprocess
import time
from typing import List, Optional

from qemu_test import QemuSystemTest
from qemu_test.qmpprogram import (
    PATIENCE, Client, Program, deadline, programs)

MIB = 1 << 20
# Far less than the throttle makes it take, in seconds
SOON = 3.0
# jmp $
LOOP = b'\xeb\xfe'


class QmpShutdownWaits(QemuSystemTest):
    """One test per kind of wait."""

    def setUp(self) -> None:
        super().setUp()
        self.count = 0
        self.programs = programs(self.qemu_bin)
        stock = os.environ.get('QTEST_QEMU_STOCK_BINARY')
        self.stock = programs(stock) if stock else []

    def start(self, binary: str, arguments: Optional[List[str]] = None
              ) -> Program:
        """Start a program."""
        self.count += 1
        folder = os.path.join(self.socket_dir().name, str(self.count))
        os.mkdir(folder)
        program = Program(binary, folder, 1, arguments)
        self.addCleanup(program.end)
        program.start()
        return program

    def connect(self, program: Program) -> Client:
        """Connect to its monitor."""
        client = program.connect()
        self.addCleanup(client.close)
        return client

    def image(self, client: Client, node: str) -> None:
        """Make a qcow2 image in a node, and its node disk."""
        client.execute('blockdev-create', {'job-id': 'job', 'options': {
            'driver': 'qcow2', 'file': node, 'size': MIB,
            'cluster-size': 65536}})
        for _ in deadline(PATIENCE, 'the image is not created'):
            jobs = client.execute('query-jobs')['return']
            if jobs[0]['status'] == 'concluded':
                break
        self.assertNotIn('error', jobs[0])
        client.execute('job-dismiss', {'id': 'job'})

    def begin_resize(self, client: Client) -> None:
        """Begin a command that writes a lot to the disk."""
        client.send('block_resize', {'node-name': 'disk', 'size': 64 << 40},
                    ident=1)
        time.sleep(0.3)

    def throttled(self, binary: str) -> float:
        """Return how long a shutdown takes while a throttled command runs."""
        file = self.scratch_file(f'disk{self.count}')
        with open(file, 'wb'):
            pass
        dash = '--' if 'storage-daemon' in binary else '-'
        program = self.start(binary, [
            f'{dash}object', 'throttle-group,id=group,x-bps-total=16384',
            f'{dash}blockdev', f'file,node-name=file,filename={file}'])
        client = self.connect(program)
        self.image(client, 'file')
        for options in (
                {'driver': 'throttle', 'node-name': 'slow', 'file': 'file',
                 'throttle-group': 'group'},
                {'driver': 'qcow2', 'node-name': 'disk', 'file': 'slow'}):
            self.assertIn('return', client.execute('blockdev-add', options))
        self.begin_resize(client)
        program.kill()
        begin = time.monotonic()
        self.assertEqual(program.wait(60), 0)
        seconds = time.monotonic() - begin
        self.log.info('%s: %.2f s', binary, seconds)
        if binary not in self.stock:
            self.assertIn('return', client.answer(1))
        return seconds

    def test_throttled(self) -> None:
        """Shutdown does not take as long as a throttle says"""
        for binary in self.programs:
            with self.subTest(binary):
                self.assertLess(self.throttled(binary), SOON)

    def test_lost(self) -> None:
        """While a command waits for storage that is lost, the guest stops"""
        if len(self.programs) < 2:
            self.skipTest('no storage daemon was built')
        file = self.scratch_file('disk')
        with open(file, 'wb') as stream:
            stream.truncate(4 * MIB)
        path = os.path.join(self.socket_dir().name, 'nbd')
        server = subprocess.Popen([  # pylint: disable=R1732
            self.programs[1],
            '--blockdev', f'file,node-name=disk,filename={file}',
            '--nbd-server', f'addr.type=unix,addr.path={path}',
            '--export', 'nbd,id=disk,node-name=disk,writable=on,name=disk'])
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        for _ in deadline(PATIENCE, 'no server'):
            if os.path.exists(path):
                break
        bios = self.scratch_file('bios')
        with open(bios, 'wb') as stream:
            stream.write(LOOP * (65536 // len(LOOP)))
        own = os.path.join(self.socket_dir().name, 'own')

        program = Program(self.qemu_bin, self.socket_dir().name, 1, [
            '-machine', 'isapc', '-bios', bios, '-blockdev',
            f'nbd,node-name=lost,export=disk,server.type=unix,'
            f'server.path={path}', '-blockdev',
            f'nbd,node-name=other,export=disk,read-only=on,server.type=unix,'
            f'server.path={path}'])
        program.command[program.command.index('qtest')] = 'tcg'
        self.addCleanup(program.end)
        program.start()
        client = self.connect(program)
        self.image(client, 'lost')
        client.execute('blockdev-add', {
            'driver': 'qcow2', 'node-name': 'disk', 'file': 'lost'})
        client.execute('nbd-server-start', {
            'addr': {'type': 'unix', 'data': {'path': own}}})
        client.execute('block-export-add', {
            'type': 'nbd', 'id': 'other', 'node-name': 'other'})
        with self.export(own, 'other') as user:
            self.assertGreater(self.used(program), 0.02)
            server.send_signal(signal.SIGSTOP)
            self.begin_resize(client)
            # The export cannot be closed before its request ends
            user.sendall(self.request(0, MIB))
            time.sleep(0.3)
            program.kill()
            for _ in deadline(PATIENCE, 'the guest does not stop'):
                if self.used(program) < 0.02:
                    break
            self.assertTrue(program.alive())
            # The connection is closed: exports have been stopped
            self.assertEqual(user.recv(1), b'')
        server.send_signal(signal.SIGCONT)
        self.assertEqual(program.wait(PATIENCE), 0)
        self.assertIn('return', client.answer(1))

    @staticmethod
    def export(path: str, name: str) -> socket.socket:
        """Connect to an export."""
        user = socket.socket(socket.AF_UNIX)
        user.connect(path)
        user.settimeout(PATIENCE)
        # No zeroes; NBD_OPT_EXPORT_NAME
        user.sendall(struct.pack('>I8sII', 3, b'IHAVEOPT', 1, len(name))
                     + name.encode())
        greeting = b''
        while len(greeting) < 18 + 10:
            part = user.recv(28 - len(greeting))
            assert part, 'no such export'
            greeting += part
        return user

    @staticmethod
    def request(kind: int, size: int) -> bytes:
        """Return a request to an export, 0 to read and 1 to write."""
        return struct.pack('>IHHQQI', 0x25609513, 0, kind, 7, 0, size)

    def stalled(self, program: Program, write: bool) -> None:
        """A client of an export does not go on, and the program is ended"""
        client = self.connect(program)
        path = os.path.join(self.socket_dir().name, f'{self.count}', 'nbd')
        client.execute('nbd-server-start', {
            'addr': {'type': 'unix', 'data': {'path': path}}})
        client.execute('block-export-add', {
            'type': 'nbd', 'id': 'null', 'node-name': 'null',
            'writable': True})
        with self.export(path, 'null') as user:
            if write:
                user.sendall(self.request(1, MIB) + b'x' * 1000)
            else:
                user.sendall(self.request(0, MIB) * 8)
            time.sleep(0.3)
            program.kill()
            status = program.wait(SOON)
            if program.command[0] in self.stock and not write:
                self.assertIsNone(status)
            else:
                self.assertEqual(status, 0)

    def test_stalled(self) -> None:
        """Clients that stop within a write, or do not read their answers"""
        for binary in self.programs + self.stock:
            for write in True, False:
                with self.subTest(binary, write=write):
                    dash = '--' if 'storage-daemon' in binary else '-'
                    self.stalled(self.start(binary, [
                        f'{dash}blockdev',
                        f'null-co,node-name=null,size={MIB},read-zeroes=on']),
                        write)

    @staticmethod
    def used(program: Program) -> float:
        """Return the time that all threads use in half a second."""
        def now() -> float:
            with open(f'/proc/{program.pid}/stat', encoding='ascii') as stream:
                fields = stream.read().rpartition(')')[2].split()
            return ((int(fields[11]) + int(fields[12]))
                    / os.sysconf('SC_CLK_TCK'))

        before = now()
        time.sleep(0.5)
        return now() - before


if __name__ == '__main__':
    QemuSystemTest.main()
