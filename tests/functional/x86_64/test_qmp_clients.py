#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
QMP clients: each gets its own answers, and all of them

A FIFO as the configuration of blkdebug keeps the main thread busy for as long
as a test likes, while the monitors' thread goes on.
"""

import array
import contextlib
import itertools
import json
import os
import random
import select
import socket
import struct
import subprocess
import time
from typing import Any, Dict, Iterator, List, Optional, Set

from qemu_test import QemuSystemTest

Json = Dict[str, Any]

PATIENCE = 30.0
STREAMS = int(os.environ.get('QMP_CLIENTS_STREAMS', 150))


class Client:
    """One connection to a monitor."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(PATIENCE)
        self.stream = self.socket.makefile('rb')

    def close(self) -> None:
        """Go away."""
        self.stream.close()
        self.socket.close()

    def send(self, command: str, arguments: Optional[Json] = None,
             ident: Any = None, oob: bool = False,
             files: Optional[List[int]] = None) -> None:
        """Send a command."""
        request: Json = {'exec-oob' if oob else 'execute': command}
        if arguments is not None:
            request['arguments'] = arguments
        if ident is not None:
            request['id'] = ident
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                   array.array('i', files))] if files else []
        data = json.dumps(request).encode() + b'\n'
        self.socket.sendall(data[self.socket.sendmsg([data], rights):])

    def receive(self) -> Json:
        """Return the next message; EOFError if there is none."""
        line = self.stream.readline()
        if not line:
            raise EOFError
        message: Json = json.loads(line)
        return message

    def answer(self, ident: Any = None) -> Json:
        """Return the next answer, or that to one command."""
        while True:
            message = self.receive()
            if 'event' not in message and (ident is None or
                                           message.get('id') == ident):
                return message

    def negotiate(self, oob: bool = False) -> None:
        """Do what every client does first."""
        assert 'QMP' in self.receive()
        self.send('qmp_capabilities', {'enable': ['oob'] if oob else []}, 0)
        assert self.answer(0) == {'return': {}, 'id': 0}

    def silent(self, seconds: float = 0.3) -> bool:
        """Tell whether nothing comes for a while."""
        return not select.select([self.socket], [], [], seconds)[0]


class WebClient(Client):
    """The same over a websocket."""

    REQUEST = (b'GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n'
               b'Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n'
               b'Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n')

    def __init__(self, client: Client, first: int = 0) -> None:
        """Upgrade; what comes after the first bytes is sent later."""
        super().__init__(client.socket)
        if first:
            self.socket.sendall(self.REQUEST[:first])
            time.sleep(0.3)
        self.socket.sendall(self.REQUEST[first:])
        assert b' 101 ' in self.stream.readline()
        while self.stream.readline() != b'\r\n':
            pass
        self.text = b''

    def send(self, command: str, arguments: Optional[Json] = None,
             ident: Any = None, oob: bool = False,
             files: Optional[List[int]] = None) -> None:
        """Send a command in a frame; the mask is 0."""
        data = json.dumps({'exec-oob' if oob else 'execute': command,
                           'arguments': arguments or {}, 'id': ident}).encode()
        self.socket.sendall(struct.pack('>BBH4x', 0x82, 0x80 | 126, len(data))
                            + data)

    def receive(self) -> Json:
        """Return the next message, which may be in several frames."""
        while b'\n' not in self.text:
            head = self.stream.read(2)
            if not head:
                raise EOFError
            size = head[1]
            if size == 126:
                size, = struct.unpack('>H', self.stream.read(2))
            self.text += self.stream.read(size)
        line, self.text = self.text.split(b'\n', 1)
        message: Json = json.loads(line)
        return message


class Program:
    """A process with two monitors; the first one is kept busy."""

    def __init__(self, binary: str, folder: str, server: str = '',
                 options: str = ',wait=off') -> None:
        os.makedirs(folder)
        self.fifo = os.path.join(folder, 'fifo')
        os.mkfifo(self.fifo)
        self.paths = [os.path.join(folder, name) for name in ('a', 'b')]
        daemon = 'storage-daemon' in binary
        dash = '--' if daemon else '-'
        command = [binary] + ([] if daemon else [
            '-accel', 'qtest', '-machine', 'none', '-nodefaults', '-display',
            'none'])
        for name, path in zip('ab', self.paths):
            command += [f'{dash}chardev', f'socket,id={name},' + (
                f'path={server},server=off,reconnect-ms=1'
                if server and name == 'b' else
                f'path={path},server=on' + (
                    options if name == 'b' else ',wait=off'))]
            command += (['--monitor', f'chardev={name}'] if daemon else
                        ['-mon', f'chardev={name},mode=control'])
        self.process = subprocess.Popen(  # pylint: disable=R1732
            command, stdin=subprocess.DEVNULL)
        if 'wait=on' in options:
            self.early = self.connect()
        self.main = self.connect(0)
        self.main.negotiate()

    def connect(self, number: int = 1) -> Client:
        """Connect to a monitor."""
        end = time.monotonic() + PATIENCE
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self.paths[number])
                return Client(connection)
            except OSError:
                connection.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    @contextlib.contextmanager
    def busy(self, client: Optional[Client] = None) -> Iterator[None]:
        """Keep the main thread busy, with a command of a client."""
        (client or self.main).send('blockdev-add', {
            'driver': 'blkdebug', 'node-name': 'node', 'config': self.fifo,
            'image': {'driver': 'null-co'}}, 'busy')
        # This waits for the main thread to open it, too
        with open(self.fifo, 'wb'):
            yield
        if not client:
            self.main.answer('busy')
            self.main.send('blockdev-del', {'node-name': 'node'}, 'del')
            self.main.answer('del')

    def end(self) -> None:
        """End it."""
        self.main.close()
        self.process.kill()
        self.process.wait()


class QmpClients(QemuSystemTest):
    """One test per thing that may go wrong."""

    def setUp(self) -> None:
        super().setUp()
        self.count = 0
        daemon = os.path.join(os.path.dirname(self.qemu_bin),
                              'storage-daemon/qemu-storage-daemon')
        self.programs = [self.qemu_bin] + [daemon] * os.access(daemon, os.X_OK)

    def start(self, binary: str, server: str = '',
              options: str = ',wait=off') -> Program:
        """Start a program."""
        self.count += 1
        program = Program(binary, os.path.join(
            self.socket_dir().name, str(self.count)), server, options)
        self.addCleanup(program.end)
        return program

    def client(self, program: Program) -> Client:
        """Connect to the second monitor of a program."""
        client = program.connect()
        self.addCleanup(client.close)
        return client

    def check_next(self, client: Client, seconds: float = 0.3) -> None:
        """Check that a client is greeted, and gets nothing else."""
        self.assertIn('QMP', client.receive())
        self.assertTrue(client.silent(seconds))
        client.send('query-version', ident=3)
        self.assertIn('error', client.answer(3))
        client.send('qmp_capabilities', ident=4)
        self.assertEqual(client.receive(), {'return': {}, 'id': 4})
        client.send('query-version', ident=5)
        self.assertIn('return', client.answer(5))

    def test_next(self) -> None:
        """The next client does not get an answer to the one before"""
        for binary in self.programs:
            for oob in (False, True):
                with self.subTest(binary, oob=oob):
                    program = self.start(binary)
                    first = self.client(program)
                    first.negotiate(oob)
                    with program.busy(first):
                        first.close()
                        second = self.client(program)
                        self.assertIn('QMP', second.receive())
                    self.assertTrue(second.silent())
                    second.close()
                    self.check_next(self.client(program))

    def test_next_reconnect(self) -> None:
        """The same when QEMU is the one that connects"""
        for binary in self.programs:
            with self.subTest(binary), socket.socket(socket.AF_UNIX) as server:
                path = os.path.join(self.socket_dir().name, f's{self.count}')
                server.bind(path)
                server.listen()
                server.settimeout(PATIENCE)
                program = self.start(binary, path)
                first = Client(server.accept()[0])
                first.negotiate()
                with program.busy(first):
                    first.close()
                    second = Client(server.accept()[0])
                    self.addCleanup(second.close)
                    self.assertIn('QMP', second.receive())
                self.assertTrue(second.silent())

    def test_half(self) -> None:
        """The next client does not get the second half of an answer"""
        for binary in self.programs:
            with self.subTest(binary):
                program = self.start(binary)
                for _ in range(10):
                    first = program.connect()
                    first.negotiate()
                    for _ in range(4):
                        first.send('query-qmp-schema')
                    first.socket.recv(1)
                    first.close()
                    second = program.connect()
                    self.check_next(second, 0.05)
                    second.close()

    def test_two_messages(self) -> None:
        """A byte may end two messages"""
        for binary in self.programs:
            with self.subTest(binary):
                program = self.start(binary)
                client = self.client(program)
                client.negotiate(oob=True)
                with program.busy():
                    for number in range(7):
                        client.send('query-version', ident=number)
                    client.socket.sendall(b'1]')
                    time.sleep(0.2)
                for number in range(7):
                    self.assertEqual(client.receive()['id'], number)
                self.assertIn('error', client.receive())
                self.assertIn('error', client.receive())
                client.close()

                client = self.client(program)
                client.negotiate()
                with program.busy():
                    client.socket.sendall(b'1]')
                    time.sleep(0.2)
                    client.close()
                    time.sleep(0.2)
                self.check_next(self.client(program))

    def test_descriptors(self) -> None:
        """A descriptor belongs to the command that it came with"""
        program = self.start(self.qemu_bin)
        names = [self.scratch_file(f'file{number}') for number in range(6)]
        for oob, ahead in itertools.product((False, True), repeat=2):
            client = self.client(program)
            client.negotiate(oob)
            with program.busy():
                for number, name in enumerate(names):
                    client.send('query-version')
                    with open(name, 'wb') as stream:
                        files = [stream.fileno()]
                        if ahead:
                            socket.send_fds(client.socket, [b' '], files)
                            files = []
                        client.send('add-fd', {'fdset-id': number}, number,
                                    files=files)
                time.sleep(0.2)
            for number, name in enumerate(names):
                answer = client.answer(number)['return']
                self.assertEqual(answer['fdset-id'], number)
                self.assertEqual(os.readlink(
                    f'/proc/{program.process.pid}/fd/{answer["fd"]}'), name)
            for number in range(len(names)):
                client.send('remove-fd', {'fdset-id': number}, 'remove')
                self.assertIn('return', client.answer('remove'))
            client.send('add-fd', ident='none')
            self.assertIn('error', client.answer('none'))
            client.close()
        # None is left, whoever was to take it
        client = self.client(program)
        client.negotiate()
        with open(names[0], 'wb') as stream:
            client.send('query-version', ident=1, files=[stream.fileno()])
        client.answer(1)
        client.close()
        self.client(program).negotiate()
        files = [os.readlink(f'/proc/{program.process.pid}/fd/{number}')
                 for number in os.listdir(f'/proc/{program.process.pid}/fd')]
        self.assertFalse(set(files) & set(names))

    def test_pipe(self) -> None:
        """All commands are executed before the end of input"""
        for binary, oob in itertools.product(self.programs, (False, True)):
            with self.subTest(binary, oob=oob):
                daemon = 'storage-daemon' in binary
                commands = [{'execute': 'qmp_capabilities', 'arguments': {
                    'enable': ['oob'] if oob else []}}] + [
                    {'execute': 'query-version', 'id': number}
                    for number in range(200)] + [
                        {'execute': 'quit', 'id': 200}]
                found = subprocess.run([binary] + (
                    ['--chardev', 'stdio,id=c', '--monitor', 'c'] if daemon
                    else ['-machine', 'none', '-nodefaults', '-display',
                          'none', '-qmp', 'stdio']),
                    input=''.join(map(json.dumps, commands)),
                    stdout=subprocess.PIPE, encoding='utf8', check=True,
                    timeout=PATIENCE)
                messages = map(json.loads, found.stdout.splitlines())
                self.assertEqual(
                    [message['id'] for message in messages if 'id' in message],
                    list(range(201)))

    def test_last_commands(self) -> None:
        """What a client sends before it leaves is executed"""
        for binary in self.programs:
            with self.subTest(binary):
                program = self.start(binary)
                for turn in range(10):
                    client = self.client(program)
                    client.negotiate(oob=True)
                    # Once this is answered it reads commands, and not only
                    # that the client has gone
                    client.send('query-version', ident=1)
                    client.answer(1)
                    names = [f'n{turn}-{number}' for number in range(8)]
                    client.socket.sendall(b''.join(
                        json.dumps({'execute': 'blockdev-add', 'arguments': {
                            'driver': 'null-co', 'node-name': name}}).encode()
                        for name in names))
                    if turn % 2:
                        client.socket.shutdown(socket.SHUT_WR)
                    else:
                        client.close()
                    end = time.monotonic() + PATIENCE
                    while not set(names) <= self.nodes(program):
                        self.assertLess(time.monotonic(), end)

    @staticmethod
    def nodes(program: Program) -> Set[str]:
        """Return the names of all nodes."""
        program.main.send('query-named-block-nodes', {'flat': True}, 'nodes')
        return {node['node-name']
                for node in program.main.answer('nodes')['return']}

    def test_first_commands(self) -> None:
        """QEMU connects to a client that does not wait for the greeting"""
        for binary in self.programs:
            with self.subTest(binary), socket.socket(socket.AF_UNIX) as server:
                path = os.path.join(self.socket_dir().name, f's{self.count}')
                server.bind(path)
                server.listen()
                server.settimeout(PATIENCE)
                for _ in range(12):
                    program = self.start(binary, path)
                    client = Client(server.accept()[0])
                    client.send('qmp_capabilities', ident=1)
                    client.send('query-version', ident=2)
                    self.assertIn('QMP', client.receive())
                    self.assertEqual(client.receive()['id'], 1)
                    self.assertEqual(client.answer(2)['id'], 2)
                    client.close()
                    program.end()

    def test_chardev_change(self) -> None:
        """A character device that is connecting is replaced, and the next"""
        with socket.socket(socket.AF_UNIX) as server:
            path = os.path.join(self.socket_dir().name, 'server')
            server.bind(path)
            server.listen(1000)
            program = self.start(self.qemu_bin)
            connecting = {'type': 'socket', 'data': {
                'addr': {'type': 'unix', 'data': {'path': path}},
                'server': False, 'reconnect-ms': 1000}}
            program.main.send('chardev-add', {
                'id': 'c', 'backend': {'type': 'null', 'data': {}}}, 0)
            program.main.answer(0)
            for turn in range(1, 100):
                for ident in 'x', 'y', turn:
                    program.main.send('chardev-change', {
                        'id': 'c', 'backend': connecting if
                        isinstance(ident, str) else
                        {'type': 'null', 'data': {}}}, ident)
                while True:
                    message = program.main.answer()
                    self.assertIn('return', message)
                    if message['id'] == turn:
                        break

    def web_client(self, client: Client, first: int = 0) -> WebClient:
        """Upgrade the connection of a client."""
        client.stream.close()
        web = WebClient(client, first)
        self.addCleanup(web.close)
        return web

    def check_web(self, client: WebClient, program: Program) -> None:
        """Check that a client gets all answers, and no one has to help."""
        client.socket.settimeout(5)
        client.negotiate(oob=True)
        for number in range(5):
            client.send('query-version', ident=number)
            self.assertIn('return', client.answer(number))
        client.send('query-qmp-schema', ident='long')
        self.assertIn('return', client.answer('long'))
        with program.busy():
            client.send('query-yank', ident='oob', oob=True)
            client.answer('oob')

    def test_websocket(self) -> None:
        """Each client of a websocket is heard, at once"""
        for binary in self.programs:
            with self.subTest(binary):
                program = self.start(binary,
                                     options=',wait=off,websocket=on')
                for first in 0, 1, 50:
                    client = self.web_client(program.connect(), first)
                    self.check_web(client, program)
                    client.close()
                # The monitors' thread takes part in the upgrade, too
                with program.busy():
                    client = self.web_client(program.connect())
                    self.assertIn('QMP', client.receive())
                client.send('qmp_capabilities', ident=1)
                self.assertIn('return', client.answer(1))

    def test_websocket_early(self) -> None:
        """The monitor takes over a connection that is being upgraded"""
        for binary in self.programs:
            with self.subTest(binary):
                program = self.start(binary, options=',wait=on,websocket=on')
                client = self.web_client(program.early)
                self.check_web(client, program)
                client.close()
                self.check_web(self.web_client(program.connect()), program)

    def test_websocket_threads(self) -> None:
        """One thread writes events while another one reads and writes"""
        program = self.start(self.qemu_bin, options=',wait=off,websocket=on')
        client = self.web_client(program.connect())
        client.negotiate(oob=True)
        for number in range(100):
            for command in 'cont', 'stop':
                program.main.send(command, ident=f'{command}{number}')
            for ident in range(10):
                client.send('query-yank', ident=[number, ident], oob=True)
            for ident in range(10):
                self.assertEqual(client.answer()['id'], [number, ident])
            program.main.answer(f'stop{number}')

    def test_long(self) -> None:
        """A long command does not take long"""
        program = self.start(self.qemu_bin)
        begin = time.monotonic()
        program.main.send('query-version', ident='x' * (1 << 20))
        program.main.answer('x' * (1 << 20))
        self.assertLess(time.monotonic() - begin, 3)

    @staticmethod
    def random_stream(rng: random.Random, oob: bool) -> bytes:
        """Return commands and garbage, and an end that is recognized."""
        kinds = [
            lambda n: b'{"execute": "query-version", "id": %d}' % n,
            lambda n: b'{"execute": "query-jobs", "id": "%d \\u1234{}"}' % n,
            lambda n: b'{"execute": "no-such-command", "id": [%d, {}]}' % n,
            lambda n: b'{"id": %d}' % n,
            lambda n: b'1]',
            lambda n: b'[%d, "}"]' % n,
            lambda n: b'nonsense',
            lambda n: b'"a\x01',
            lambda n: b'{"execute": \xff\xff',
            lambda n: b'}',
        ]
        if oob:
            kinds.append(lambda n: b'{"exec-oob": "query-yank", "id": %d}' % n)
        return b''.join(
            rng.choice(kinds)(n) + rng.choice([b'', b'\n', b' \r\n\t'])
            for n in range(rng.randint(1, 30))) + (
                b'\xff\xff{"execute": "query-version", "id": "end"}')

    def run_stream(self, program: Program, data: bytes, oob: bool,
                   cuts: List[int]) -> List[List[Json]]:
        """Return what comes in band and out of band of a stream."""
        client = program.connect()
        client.negotiate(oob)
        for begin, end in zip([0] + cuts, cuts + [len(data)]):
            client.socket.sendall(data[begin:end])
        found: List[List[Json]] = [[], []]
        while not found[0] or found[0][-1].get('id') != 'end':
            message = client.receive()
            found['return' in message and
                  isinstance(message['return'], list) and
                  isinstance(message.get('id'), int)].append(message)
        client.close()
        return found

    def test_streams(self) -> None:
        """It does not matter how input is cut into pieces"""
        seed = int(os.environ.get('QMP_CLIENTS_SEED') or
                   random.randrange(1 << 32))
        self.log.info('seed %d', seed)
        rng = random.Random(seed)
        program = self.start(self.qemu_bin)
        for number in range(STREAMS):
            oob = rng.random() < 0.5
            data = self.random_stream(rng, oob)
            cuts = sorted(rng.choices(range(len(data)),
                                      k=rng.choice([0, 1, 5, 20])))
            expected = self.run_stream(program, data, oob,
                                       list(range(1, len(data))))
            self.assertEqual(self.run_stream(program, data, oob, cuts),
                             expected, f'seed {seed}, stream {number}: {data}')
            # Leave in the middle
            client = program.connect()
            client.negotiate(oob)
            client.socket.sendall(data[:rng.randrange(len(data))])
            client.close()


if __name__ == '__main__':
    QemuSystemTest.main()
