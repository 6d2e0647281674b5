#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
QMP: shutdown ends whatever the dispatcher of commands is doing, and what a
client is told first and last

gdb holds a thread where the order of things matters, and makes each case
happen every time.  Each is shown for the system emulator and for the storage
daemon, and on stock QEMU ($QTEST_QEMU_STOCK_BINARY), which hangs.
"""

import json
import os
import socket
import time
from typing import Callable, List, Optional, Sequence

from qemu_test import QemuSystemTest
from qemu_test.qmpprogram import (
    OTHERS, Client, Debugger, Json, Program, programs)

# How long a program may take to end, in seconds
SOON = 20.0
# How long one that has nothing to wait for is watched not to end
LONG = 2.0


class Held:
    """A program whose main thread comes into a certain state and ends."""

    def __init__(self, binary: str, folder: str, stdin: str = '/dev/null',
                 arguments: Optional[List[str]] = None,
                 clients: Sequence[int] = (0, 1)) -> None:
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.program = Program(binary, folder, arguments=arguments)
        self.gdb = Debugger(self.program, stdin)
        self.clients: List[Client] = []
        try:
            for number in clients:
                self.clients.append(self.program.connect(number))
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End all of it."""
        for client in self.clients:
            client.close()
        self.gdb.end()

    def one_more(self) -> None:
        """
        Stop the main thread, to go round its loop just once more.

        It sleeps in the loop.  The signal comes before anything else, so
        that it wakes nobody later.
        """
        self.program.asleep()
        self.gdb.interrupt()
        self.program.kill()

    def queue(self, client: int, command: str = 'query-version',
              arguments: Optional[Json] = None, ident: int = 1) -> None:
        """Have the monitors' thread queue a request."""
        self.clients[client].send(command, arguments, ident)
        self.clients[client].barrier()


def pending(held: Held) -> None:
    """Shut down while a bottom half is pending."""
    held.one_more()
    held.queue(0)
    held.gdb.release()


def waking(held: Held) -> None:
    """Shut down before a thread wakes the dispatcher."""
    held.program.asleep()
    held.gdb.hold(OTHERS, 'aio_co_wake')
    held.clients[0].send('query-version', ident=1)
    thread = held.gdb.held()
    held.program.kill()
    held.program.asleep()
    held.gdb.release(thread)


class QmpShutdown(QemuSystemTest):
    """One test per case, program and version."""

    def setUp(self) -> None:
        super().setUp()
        self.count = 0
        self.programs = programs(self.qemu_bin)

    def stock(self) -> List[str]:
        """Return the programs of stock QEMU."""
        binary = os.environ.get('QTEST_QEMU_STOCK_BINARY')
        if not binary:
            self.skipTest('QTEST_QEMU_STOCK_BINARY names no stock QEMU')
        return programs(binary)

    def held(self, binary: str, stdin: str = '/dev/null',
             arguments: Optional[List[str]] = None,
             clients: Sequence[int] = (0, 1)) -> Held:
        """Start a program in gdb."""
        why = Debugger.refused(Program(binary, self.workdir))
        if why:
            self.skipTest(why)
        self.count += 1
        held = Held(binary, os.path.join(self.socket_dir().name,
                                         str(self.count)), stdin, arguments,
                    clients)
        self.addCleanup(held.end)
        return held

    def check_ends(self, held: Held) -> None:
        """Check that a program ends, and well."""
        code = held.gdb.wait(SOON)
        if code is None:
            self.fail(f'hangs in {held.gdb.frames()}')
        self.assertEqual(code, 0, held.program.output())

    def check_hangs(self, held: Held) -> None:
        """Check that a program hangs, and where."""
        self.assertIsNone(held.gdb.wait(LONG), held.program.output())
        before = held.program.cpu()
        self.assertIsNone(held.gdb.wait(LONG))
        self.assertLess(held.program.cpu() - before, LONG / 10)
        self.assertIn('monitor_cleanup', held.gdb.frames())

    def check(self, case: Callable[[Held], None]) -> None:
        """Check that both programs end."""
        for binary in self.programs:
            with self.subTest(binary):
                held = self.held(binary)
                case(held)
                self.check_ends(held)

    def check_stock(self, case: Callable[[Held], None]) -> None:
        """Check that both stock programs hang."""
        for binary in self.stock():
            with self.subTest(binary):
                held = self.held(binary)
                case(held)
                self.check_hangs(held)

    def test_pending(self) -> None:
        """A request was taken, and its bottom half is pending"""
        self.check(pending)

    def test_pending_stock(self) -> None:
        """The same hangs on stock QEMU"""
        self.check_stock(pending)

    def test_waking(self) -> None:
        """A thread has decided to wake the dispatcher, but has not yet"""
        self.check(waking)

    def test_waking_stock(self) -> None:
        """The same hangs on stock QEMU"""
        self.check_stock(waking)

    def test_queued(self) -> None:
        """What was begun is answered; what was not is not executed"""
        for binary in self.programs:
            with self.subTest(binary):
                held = self.held(binary)
                files = [os.path.join(held.folder, name) for name in 'abcd']
                held.one_more()
                for number, file in enumerate(files):
                    # Two each of two monitors
                    held.queue(number // 2, 'chardev-add', {
                        'id': f'c{number}', 'backend': {
                            'type': 'file', 'data': {'out': file}}}, number)
                held.gdb.release()
                self.check_ends(held)
                answers = [message for client in held.clients
                           for message in client.rest()
                           if 'event' not in message]
                # It is either monitor's turn
                self.assertEqual(len(answers), 1)
                self.assertEqual(answers[0]['return'], {})
                self.assertIn(answers[0]['id'], (0, 2))
                self.assertEqual(
                    [os.path.exists(file) for file in files],
                    [number == answers[0]['id'] for number in range(4)])

    def resize(self, binary: str) -> Json:
        """Return the answer to a coroutine command at the last moment."""
        disk = self.scratch_file(f'disk{self.count}')
        with open(disk, 'wb') as stream:
            stream.truncate(1 << 20)
        dash = '--' if 'storage-daemon' in binary else '-'
        held = self.held(binary, arguments=[
            f'{dash}blockdev', f'file,node-name=disk,filename={disk}'])
        held.one_more()
        held.queue(0, 'block_resize', {'node-name': 'disk', 'size': 2 << 20})
        held.gdb.release()
        self.check_ends(held)
        answer = held.clients[0].answer(1)
        self.assertEqual(os.path.getsize(disk) == 2 << 20,
                         'return' in answer)
        return answer

    def test_resize(self) -> None:
        """A coroutine command is executed before anything goes away"""
        for binary in self.programs:
            with self.subTest(binary):
                self.assertEqual(self.resize(binary), {'return': {}, 'id': 1})

    def test_resize_stock(self) -> None:
        """Stock QEMU executes it after its block node has gone"""
        for binary in self.stock():
            with self.subTest(binary):
                self.assertIn('Cannot find',
                              self.resize(binary)['error']['desc'])

    def started(self, binary: str, monitors: int) -> Program:
        """Start a program that has so many monitors."""
        self.count += 1
        folder = os.path.join(self.socket_dir().name, str(self.count))
        os.mkdir(folder)
        program = Program(binary, folder, monitors)
        self.addCleanup(program.end)
        program.start()
        return program

    def last_answers(self, binary: str) -> bytes:
        """Return what a client gets that reads slowly, beside one that never
        reads."""
        program = self.started(binary, 3)
        never, reader, other = (program.connect(i) for i in range(3))
        for client in (never, reader, other):
            self.addCleanup(client.close)
        for number in range(8):
            never.send('query-qmp-schema')
            reader.send('query-qmp-schema', ident=number)
        # The monitors take turns
        for _ in range(20):
            other.execute('query-version')
            reader.fill(4096)
        other.send('quit')
        while not reader.closed:
            time.sleep(0.01)
            reader.fill()
        self.assertEqual(program.wait(SOON), 0)
        return reader.buffer

    def test_last_answers(self) -> None:
        """A client that reads gets its answers"""
        for binary in self.programs:
            with self.subTest(binary):
                text = self.last_answers(binary)
                self.assertEqual(text.count(b'{"return": '), 8)
                self.assertTrue(text.endswith(b'}\r\n'))

    def test_last_answers_stock(self) -> None:
        """From stock QEMU it gets half an answer"""
        for binary in self.stock():
            with self.subTest(binary):
                self.assertFalse(self.last_answers(binary).endswith(b'\n'))

    def many_answers(self, binary: str, until_end: bool = False) -> bytes:
        """Return what a client gets that looks away for a moment, or until the
        end, while more small answers come than its socket takes."""
        program = self.started(binary, 1)
        client = program.connect()
        self.addCleanup(client.close)
        client.socket.sendall(600 * b'{"execute": "query-version"}\n')
        client.send('quit')
        if until_end:
            program.wait(SOON)
        else:
            time.sleep(0.05)
        while not client.closed:
            client.fill()
        self.assertEqual(program.wait(SOON), 0)
        return client.buffer

    def test_many_answers(self) -> None:
        """Not having read for a moment loses nothing"""
        for binary in self.programs:
            with self.subTest(binary):
                text = self.many_answers(binary)
                self.assertEqual(text.count(b'{"return": '), 601)
                self.assertTrue(text.endswith(b'}\r\n'))

    def test_many_answers_stock(self) -> None:
        """Stock QEMU drops what does not fit, and waits for nobody"""
        for binary in self.stock():
            with self.subTest(binary):
                text = self.many_answers(binary, until_end=True)
                self.assertLess(text.count(b'{"return": '), 601)

    def first_message(self, binary: str) -> Json:
        """Return what a client is told first, as an event comes."""
        held = self.held(binary, clients=[1])
        held.gdb.hold(OTHERS, 'monitor_qmp_event')
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SOON)
            client.connect(held.program.paths[0])
            thread = held.gdb.held()
            held.gdb.call(
                'qapi_event_send_block_export_deleted(\\"none\\")', thread)
            held.gdb.release(thread)
            with client.makefile() as stream:
                message: Json = json.loads(stream.readline())
        self.assertEqual(held.clients[0].receive()['event'],
                         'BLOCK_EXPORT_DELETED')
        return message

    def test_greeting(self) -> None:
        """A client is greeted before it is told of events"""
        for binary in self.programs:
            with self.subTest(binary):
                self.assertIn('QMP', self.first_message(binary))

    def test_greeting_stock(self) -> None:
        """Stock QEMU may tell it of an event first"""
        for binary in self.stock():
            with self.subTest(binary):
                self.assertIn('event', self.first_message(binary))

    def test_no_reader(self) -> None:
        """A client that does not read does not delay the end"""
        for binary in self.programs:
            with self.subTest(binary):
                program = self.started(binary, 1)
                client = program.connect()
                self.addCleanup(client.close)
                for _ in range(8):
                    client.send('query-qmp-schema')
                program.asleep()
                time.sleep(0.5)
                begin = time.monotonic()
                program.kill()
                self.assertEqual(program.wait(SOON), 0)
                self.assertLess(time.monotonic() - begin, 0.75)


if __name__ == '__main__':
    QemuSystemTest.main()
