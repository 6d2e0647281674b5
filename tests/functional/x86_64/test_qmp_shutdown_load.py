#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
QMP: shutdown ends under load, whatever asks for it

Clients send commands as fast as they are taken, by monitors with and without
out-of-band commands, and at a random moment the program is told to end: by a
signal, by a command, by the guest, while a block job runs, while the clients
go away.  Stock QEMU ($QTEST_QEMU_STOCK_BINARY) does the same for comparison.

$QMP_SHUTDOWN_RUNS and $QMP_SHUTDOWN_DAEMON_RUNS say how often.
"""

import collections
import os
import random
import select
import shutil
import socket
import sys
import time
from typing import List, Tuple

from qemu_test import QemuSystemTest
from qemu_test.qmpprogram import Client, Program, deadline, programs

RUNS = int(os.environ.get('QMP_SHUTDOWN_RUNS', 350))
DAEMON_RUNS = int(os.environ.get('QMP_SHUTDOWN_DAEMON_RUNS', 150))
STOCK_RUNS = 100
# No shutdown may take longer, in seconds
LIMIT = 5.0
# What is taken for a hang of stock QEMU, of which there are many
STOCK_LIMIT = 2.0

MIB = 1 << 20
LONG_ANSWER = b'{"execute": "query-commands"}'
COMMANDS = [
    b'{"execute": "query-version"}',
    b'{"execute": "query-jobs"}',
    b'{"execute": "query-named-block-nodes"}',
    b'{"execute": "block_resize", "arguments":'
    b' {"node-name": "disk", "size": 2097152}}',
    LONG_ANSWER,
    b'{"execute": "block_resize", "arguments":'
    b' {"node-name": "disk", "size": 1048576}}',
]


class Load:
    """A client that sends commands all the time."""

    def __init__(self, client: Client, rng: random.Random) -> None:
        self.client = client
        # Long answers give the most chances of bad timing
        kinds = ([LONG_ANSWER] if rng.random() < 0.5
                 else rng.sample(COMMANDS, rng.randint(1, 3)))
        commands = rng.choices(kinds, k=400)
        self.data = memoryview(b'\r\n'.join(commands) + b'\r\n')
        self.position = 0

    def pump(self) -> None:
        """Send what is taken, and drop what was received but its end."""
        self.client.fill()
        self.client.buffer = self.client.buffer.rpartition(b'\n')[2]
        try:
            self.position += self.client.socket.send(
                self.data[self.position:self.position + 4096])
            self.position %= len(self.data)
        except OSError:
            pass


def pump(loads: List[Load], seconds: float) -> None:
    """Keep all clients going for a time."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        alive = [load for load in loads if not load.client.closed]
        if not alive:
            return
        for load in alive:
            load.pump()
        select.select([load.client.socket for load in alive], [], [],
                      min(left, 0.002))


class Shutdown:
    """One program, under load until its end."""

    def __init__(self, binary: str, folder: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        daemon = 'storage-daemon' in binary
        ways = ['signal', 'signal', 'quit', 'job', 'disconnect']
        self.way = self.rng.choice(ways + ['guest'] * (not daemon))
        os.mkdir(folder)
        disk = os.path.join(folder, 'disk')
        with open(disk, 'wb') as stream:
            stream.truncate(MIB)
        option = '--blockdev' if daemon else '-blockdev'
        arguments = [option, f'file,node-name=disk,filename={disk}']
        for node in ('source', 'target'):
            arguments += [option, f'null-co,node-name={node},size={MIB},'
                          'latency-ns=1000000']
        if self.way == 'guest':
            self.qtest = os.path.join(folder, 'qtest')
            bios = os.path.join(folder, 'bios')
            with open(bios, 'wb') as stream:
                stream.truncate(65536)
            arguments += ['-machine', 'isapc', '-bios', bios, '-device',
                          'isa-debug-exit', '-qtest',
                          f'unix:{self.qtest},server=on,wait=off']
        self.monitors = self.rng.randint(1, 3)
        self.program = Program(binary, folder, self.monitors + 1, arguments)
        self.clients: List[Client] = []

    def run(self, limit: float) -> Tuple[str, float]:
        """Return how it ended, and how long that took."""
        try:
            self.program.start()
            # The first one has nothing to do but to quit
            self.clients = [
                self.program.connect(i, i > 0 and self.rng.random() < 0.6)
                for i in range(self.monitors + 1)]
            return self.go(limit)
        finally:
            for client in self.clients:
                client.close()
            self.program.end()
            shutil.rmtree(self.folder)

    def go(self, limit: float) -> Tuple[str, float]:
        """The same, of a program that runs."""
        if self.way == 'job':
            self.clients[0].execute('blockdev-mirror', {
                'job-id': 'job', 'device': 'source', 'target': 'target',
                'sync': 'full', 'speed': 65536})
        loads = [Load(client, self.rng) for client in self.clients[1:]]
        pump(loads, self.rng.uniform(0, 0.05))

        begin = time.monotonic()
        if self.way == 'quit':
            self.clients[0].send('quit')
        elif self.way == 'guest':
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(self.qtest)
                stream.sendall(b'outl 0x501 0\n')
                pump(loads, 0.005)
        else:
            self.program.kill()
        if self.way == 'disconnect':
            for load in loads:
                load.client.close()
            loads = []
        pump(loads, limit)
        code = self.program.wait(max(0.0, begin + limit - time.monotonic()))
        seconds = time.monotonic() - begin
        if code is None:
            return 'hung', seconds
        if code != (1 if self.way == 'guest' else 0):
            return f'ended with {code}', seconds
        if any(load.client.buffer for load in loads):
            return 'half an answer', seconds
        return 'ended', seconds


class QmpShutdownLoad(QemuSystemTest):
    """One test per program."""

    def many(self, binary: str, runs: int, limit: float
             ) -> 'collections.Counter[str]':
        """Run a program many times, and count how it ended."""
        folder = self.socket_dir().name
        seed = int(os.environ.get('QMP_SHUTDOWN_SEED') or
                   random.randrange(1 << 32))
        self.log.info('seed %d', seed)

        def one(number: int) -> Tuple[str, str, float]:
            shutdown = Shutdown(binary, os.path.join(folder, str(number)),
                                seed + number)
            outcome, seconds = shutdown.run(limit)
            if outcome != 'ended':
                self.log.info('seed %d, %s: %s', seed + number, shutdown.way,
                              outcome)
            return shutdown.way, outcome, seconds

        # One at a time: its clients are to be as fast as they can
        results = [one(number) for number in range(runs)]
        outcomes = collections.Counter(outcome for _, outcome, _ in results)
        print(f'# {binary}: {runs} shutdowns under load (seed {seed}): '
              + ', '.join(f'{outcomes[outcome]} {outcome}'
                          for outcome in sorted(outcomes))
              + f'; the longest took {max(r[2] for r in results):.2f} s',
              file=sys.__stdout__, flush=True)
        return outcomes

    def check(self, number: int, runs: int) -> None:
        """Run a program, and that of stock QEMU."""
        found = programs(self.qemu_bin)
        if number >= len(found):
            self.skipTest('no storage daemon was built')
        outcomes = self.many(found[number], runs, LIMIT)
        stock = os.environ.get('QTEST_QEMU_STOCK_BINARY')
        if stock:
            self.many(programs(stock)[number], STOCK_RUNS, STOCK_LIMIT)
        self.assertEqual(outcomes, {'ended': runs})

    def test_system(self) -> None:
        """The system emulator"""
        self.check(0, RUNS)

    def test_daemon(self) -> None:
        """The storage daemon"""
        self.check(1, DAEMON_RUNS)


if __name__ == '__main__':
    QemuSystemTest.main()
