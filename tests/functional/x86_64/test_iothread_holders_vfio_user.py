#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
vfio-user devices as holders of the IOThread that they share

The servers are other QEMUs, which offer devices of their own.  No guest runs:
a reset by QEMU completes an unplug.
"""

import contextlib
import errno
import itertools
import json
import os
import resource
import signal
import socket
import struct
import threading
import time
from subprocess import run
from typing import Any, Callable, Dict, List, Optional, Tuple

from qemu.machine import QEMUMachine
from qemu.qmp import QMPError
from qemu_test import QemuSystemTest

Json = Dict[str, Any]

# The IOThread's name, which was no well-formed ID once
SHARED = ('vfio-user', 'VFIO user')
# How long QEMU may take for what it does of its own accord
TIMEOUT = 30
# How long one test may take
TEST_TIMEOUT = 180
# How long a client waits for an answer that does not come, in milliseconds
PATIENCE = 300
# The same for one that does come
MUCH_PATIENCE = 1000 * TIMEOUT


class Export:
    """A device of another QEMU, which one client can use."""

    def __init__(self, vm: QEMUMachine, path: str) -> None:
        self.vm = vm
        self.path = path
        vm.set_machine('x-remote,vfio-user=on,auto-shutdown=off')
        vm.add_args('-nodefaults', '-device', 'virtio-rng-pci,id=dev')
        vm.launch()
        self.offer()

    def offer(self) -> None:
        """Wait for a client, the first or the next one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.vm.cmd('object-add', {
            'qom-type': 'x-vfio-user-server', 'id': 'server', 'device': 'dev',
            'socket': {'type': 'unix', 'path': self.path}})

    def offer_again(self) -> None:
        """Wait for the next client after the one that has gone."""
        # It may have deleted itself, or be stuck with a failed connection
        self.vm.qmp('object-del', id='server')
        self.offer()

    def kill(self) -> None:
        """Let the server die, without a word to the client."""
        pid = self.vm.get_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.vm.wait()


class OddServer:
    """A server that does with its one client what it is told."""

    def __init__(self, path: str,
                 handle: Callable[[socket.socket], None]) -> None:
        self.handle = handle
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        """Serve one client."""
        client, _ = self.listener.accept()
        with client:
            self.handle(client)

    def wait(self) -> None:
        """Wait until the client has been served."""
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()
        self.listener.close()


# struct vfio_user_header: ID, command, size, flags, error
HEADER = struct.Struct('<HHLLL')
REGION_READ = 9
REPLY = 1
NO_REPLY = 1 << 4
ERROR = 1 << 5
MAX_FDS = 16


def receive(stream: socket.socket) -> Tuple[bytes, bytes, List[int]]:
    """Return a message: its header, its payload and its file descriptors."""
    header, fds, _, _ = socket.recv_fds(stream, HEADER.size, MAX_FDS,
                                        socket.MSG_WAITALL)
    if len(header) < HEADER.size:
        raise ConnectionError
    size = HEADER.unpack(header)[2] - HEADER.size
    payload = stream.recv(size, socket.MSG_WAITALL) if size else b''
    return header, payload, fds


def reply(client: socket.socket, header: bytes, flags: int = 0,
          error: int = 0, payload: bytes = b'') -> None:
    """Answer a request."""
    number, command, _, _, _ = HEADER.unpack(header)
    client.sendall(HEADER.pack(number, command, HEADER.size + len(payload),
                               REPLY | flags, error) + payload)


def accept_version(client: socket.socket) -> None:
    """Answer the first request of a client as it likes it."""
    reply(client, receive(client)[0],
          payload=struct.pack('<HH', 0, 0) + b'{"capabilities": {}}\0')


def until_gone(client: socket.socket) -> None:
    """Read until the client closes the connection."""
    while client.recv(4096):
        pass


def close_at_once(_client: socket.socket) -> None:
    """Say nothing."""


def read_and_close(client: socket.socket) -> None:
    """Read the version that the client proposes, and close."""
    receive(client)


def close_unread(client: socket.socket) -> None:
    """Close without reading, which resets the connection."""
    client.recv(1, socket.MSG_PEEK)


def refuse_version(client: socket.socket) -> None:
    """Answer with an error."""
    reply(client, receive(client)[0], ERROR, errno.EINVAL)
    until_gone(client)


def other_version(client: socket.socket) -> None:
    """Answer with a version that no client knows."""
    reply(client, receive(client)[0],
          payload=struct.pack('<HH', 99, 0) + b'{}\0')
    until_gone(client)


def never_answer(client: socket.socket) -> None:
    """Read all that the client says."""
    until_gone(client)


def close_after_version(client: socket.socket) -> None:
    """Agree upon a version, and close."""
    accept_version(client)


def refuse_rest(client: socket.socket) -> None:
    """Agree upon a version, and refuse all the rest."""
    accept_version(client)
    with contextlib.suppress(ConnectionError):
        while True:
            reply(client, receive(client)[0], ERROR, errno.EINVAL)


class Relay:
    """
    Something between a client and a server that spoils one message

    It closes the connection, or refuses one that does not read a region:
    VFIO believes what it has read of the configuration space.
    """

    def __init__(self, path: str, spoil: int, close: bool) -> None:
        self.path = path
        self.spoil = spoil
        self.close = close
        self.messages = 0

    def __call__(self, client: socket.socket) -> None:
        """Relay until an end closes the connection."""
        with socket.socket(socket.AF_UNIX) as server, \
             contextlib.suppress(ConnectionError):
            server.connect(self.path)
            while True:
                header, payload, fds = receive(client)
                _, command, _, flags, _ = HEADER.unpack(header)
                counts = self.close or command != REGION_READ
                if not counts or self.messages != self.spoil:
                    self.relay(server, header + payload, fds)
                    if not flags & NO_REPLY:
                        header, payload, fds = receive(server)
                        self.relay(client, header + payload, fds)
                elif self.close:
                    break
                elif not flags & NO_REPLY:
                    reply(client, header, ERROR, errno.EINVAL)
                self.messages += counts

    @staticmethod
    def relay(stream: socket.socket, data: bytes, fds: List[int]) -> None:
        """Pass a message on."""
        socket.send_fds(stream, [data], fds)
        for fd in fds:
            os.close(fd)


class VfioUserHolders(QemuSystemTest):
    """Devices c0 and c1 of one QEMU, each with a server of its own."""

    def setUp(self) -> None:
        super().setUp()
        # QMP has no timeout of its own: a QEMU that hangs ends the program
        signal.alarm(TEST_TIMEOUT)
        self.set_machine('x-remote')
        self.require_object('x-vfio-user-server')
        self.require_device('vfio-user-pci')
        self.set_machine('pc')
        self.dir = self.socket_dir().name
        self.odd_servers = 0

    def require_object(self, name: str) -> None:
        """Skip the test where QEMU does not know the object."""
        text = run([self.qemu_bin, '-M', 'none', '-object', 'help'],
                   capture_output=True, check=True, encoding='utf8').stdout
        if name not in text:
            self.skipTest(f'no support for object {name} '
                          '(configure with --enable-vfio-user-server)')

    def export(self, name: str) -> Export:
        """Start a server."""
        return Export(self.get_vm(name=f'server-{name}'),
                      os.path.join(self.dir, name))

    def launch(self) -> None:
        """Start the client."""
        self.vm.add_args('-nodefaults', '-S')
        self.vm.launch()

    @staticmethod
    def device(name: str, path: str, patience: int = MUCH_PATIENCE) -> Json:
        """Return the client's end of an export."""
        return {'driver': 'vfio-user-pci', 'id': name,
                'x-msg-timeout': patience,
                'socket': {'type': 'unix', 'path': path}}

    def plug(self, name: str, export: Export) -> None:
        """Plug a device."""
        self.vm.cmd('device_add', self.device(name, export.path))

    def unplug(self, name: str) -> None:
        """Unplug a device, and wait until it has gone."""
        before = self.vm.cmd('query-iothreads', internal=True)
        self.vm.cmd('device_del', id=name)
        # There is no guest that could let go of it
        self.assertEqual(self.vm.cmd('query-iothreads', internal=True), before)
        self.vm.cmd('system_reset')
        self.vm.event_wait('DEVICE_DELETED', TIMEOUT,
                           match={'data': {'device': name}})

    def check_holders(self, *devices: str) -> None:
        """Compare with what QMP tells; no devices: there is no IOThread."""
        threads = {thread['id']: thread.get('holders')
                   for thread in self.vm.cmd('query-iothreads',
                                             internal=True)}
        self.assertEqual(
            [holder for name in SHARED for holder in threads.get(name) or []],
            [{'type': 'qom-object', 'device': device,
              'qom-path': f'/machine/peripheral/{device}'}
             for device in devices])
        self.assertEqual(any(name in threads for name in SHARED),
                         bool(devices))
        self.assertEqual(self.vm.cmd('query-iothreads'), [])

    def check_refused(self, device: Json, *texts: str) -> None:
        """Check that a device cannot be plugged, and why."""
        answer = self.vm.qmp('device_add', device)
        self.assertIn('error', answer)
        for text in texts:
            self.assertIn(text, answer['error']['desc'])

    def test_holders(self) -> None:
        """Plug, and unplug in either order"""
        exports = [self.export('s0'), self.export('s1')]
        self.launch()
        self.check_holders()
        for first, second in ((0, 1), (1, 0)):
            self.plug('c0', exports[0])
            self.check_holders('c0')
            self.plug('c1', exports[1])
            self.check_holders('c0', 'c1')
            self.unplug(f'c{first}')
            exports[first].offer_again()
            self.check_holders(f'c{second}')

            # It comes back as the last of the holders
            self.plug(f'c{first}', exports[first])
            self.check_holders(f'c{second}', f'c{first}')
            for each in (first, second):
                self.unplug(f'c{each}')
                exports[each].offer_again()
            self.check_holders()

    def test_command_line(self) -> None:
        """Devices that are there from the start; QEMU ends with them"""
        exports = [self.export('s0'), self.export('s1')]
        for number, export in enumerate(exports):
            self.vm.add_args('-device', json.dumps(self.device(
                f'c{number}', export.path)))
        self.launch()
        self.check_holders('c0', 'c1')
        for text in ('internal=true', *SHARED):
            self.assertNotIn(text, self.vm.cmd('human-monitor-command',
                                               command_line='info iothreads'))
        self.vm.cmd('system_reset')
        self.vm.event_wait('RESET', TIMEOUT)
        self.check_holders('c0', 'c1')
        self.vm.shutdown()
        self.assertEqual(self.vm.exitcode(), 0)
        for export in exports:
            export.offer_again()

    def odd_path(self) -> str:
        """Return where another odd server may listen."""
        self.odd_servers += 1
        return os.path.join(self.dir, f'odd{self.odd_servers}')

    def check_odd(self, handle: Callable[[socket.socket], None],
                  *holders: str) -> None:
        """Check that a device with an odd server leaves nothing behind."""
        path = self.odd_path()
        server = OddServer(path, handle)
        self.check_refused(self.device('c9', path, PATIENCE))
        server.wait()
        self.check_holders(*holders)

    def test_failure(self) -> None:
        """Devices that cannot be plugged, alone and with others around"""
        exports = [self.export('s0'), self.export('s1')]
        self.launch()
        for holders in ((), ('c0',), ('c0', 'c1')):
            missing = os.path.join(self.dir, 'missing')
            self.check_refused(self.device('c9', missing), missing)
            self.check_holders(*holders)
            for handle in (close_at_once, close_unread, read_and_close,
                           refuse_version, other_version, never_answer,
                           close_after_version, refuse_rest):
                with self.subTest(handle.__name__, holders=holders):
                    self.check_odd(handle, *holders)
            if len(holders) < 2:
                number = len(holders)
                self.plug(f'c{number}', exports[number])

        # What is left works
        for number in (0, 1):
            self.unplug(f'c{number}')
            exports[number].offer_again()
        self.check_holders()

    def test_dying_server(self) -> None:
        """A device outlives its server, and can be unplugged"""
        exports = [self.export('s0'), self.export('s1')]
        self.launch()
        for number, export in enumerate(exports):
            self.plug(f'c{number}', export)
        exports[0].kill()
        self.check_holders('c0', 'c1')
        self.unplug('c0')
        self.check_holders('c1')
        exports[1].kill()
        self.check_holders('c1')
        self.unplug('c1')
        self.check_holders()

        export = self.export('s2')
        self.plug('c2', export)
        self.check_holders('c2')
        self.unplug('c2')
        self.check_holders()

    def check_spoiled(self, close: bool) -> None:
        """Spoil each of the messages that plugging a device takes."""
        export = self.export('s0')
        self.launch()
        refused = 0
        relay: Optional[Relay] = None
        while relay is None or relay.messages >= relay.spoil:
            relay = Relay(export.path, relay.spoil + 1 if relay else 0, close)
            path = self.odd_path()
            server = OddServer(path, relay)
            answer = self.vm.qmp('device_add', self.device(
                'c0', path, PATIENCE if close else MUCH_PATIENCE))
            if 'error' in answer:
                refused += 1
            else:
                self.check_holders('c0')
                self.unplug('c0')
            server.wait()
            self.check_holders()
            export.offer_again()
        self.log.info('%d of %d messages are vital', refused, relay.spoil)
        self.assertGreater(refused, 1)

        self.plug('c0', export)
        self.check_holders('c0')

    def test_refused_messages(self) -> None:
        """A server that refuses one thing"""
        self.check_spoiled(close=False)

    def test_lost_connections(self) -> None:
        """A server that goes away at some point"""
        self.check_spoiled(close=True)

    @staticmethod
    def limit_fds(vm: QEMUMachine, free: Optional[int]) -> None:
        """Let a QEMU open so many file descriptors more; None: all."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        pid = vm.get_pid()
        assert pid is not None
        if free is not None:
            used = {int(fd) for fd in os.listdir(f'/proc/{pid}/fd')}
            unused = (fd for fd in itertools.count() if fd not in used)
            soft = next(itertools.islice(unused, free, None))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

    def test_no_fds(self) -> None:
        """No file descriptor for the socket, and then for the IOThread"""
        export = self.export('s0')
        self.launch()
        for free, text in ((0, 'socket'), (1, 'Failed to initialize')):
            self.limit_fds(self.vm, free)
            self.check_refused(self.device('c0', export.path), text)
            self.limit_fds(self.vm, None)
            self.check_holders()
            export.offer_again()
        self.plug('c0', export)
        self.check_holders('c0')
        self.unplug('c0')
        self.check_holders()

    def stock_vm(self) -> QEMUMachine:
        """Start a QEMU that knows no holders, to show what it does."""
        stock = (os.environ.get('QEMU_STOCK_BINARY') or
                 os.environ.get('QTEST_QEMU_STOCK_BINARY'))
        if not stock:
            self.skipTest('QEMU_STOCK_BINARY names no QEMU without holders')
        text = run([stock, '-M', 'none', '-device', 'help'],
                   capture_output=True, check=True, encoding='utf8').stdout
        if 'vfio-user-pci' not in text:
            self.skipTest(f'no support for vfio-user-pci in {stock}')
        vm = QEMUMachine(stock, name='stock', base_temp_dir=self.workdir,
                         log_dir=self.log_file())
        vm.set_machine('pc')
        vm.add_args('-nodefaults', '-S')
        vm.launch()
        return vm

    def check_crash(self, vm: QEMUMachine,
                    *commands: Tuple[str, Json]) -> None:
        """Check that one of the commands kills QEMU."""
        try:
            with contextlib.suppress(QMPError):
                for command, arguments in commands:
                    vm.cmd(command, arguments)
            # It may have answered before
            end = time.monotonic() + TIMEOUT
            while vm.is_running():
                self.assertLess(time.monotonic(), end, 'no crash')
                time.sleep(0.01)
        finally:
            vm.shutdown(hard=True)
        self.assertIn(vm.exitcode(), (-signal.SIGSEGV, -signal.SIGABRT))

    def test_stock_no_fds(self) -> None:
        """Without holders: it uses an IOThread that it did not get"""
        vm = self.stock_vm()
        export = self.export('s0')
        self.limit_fds(vm, 1)
        self.check_crash(vm, ('device_add', self.device('c0', export.path)))

    def test_stock_unplug(self) -> None:
        """Without holders: unplugging a device with MSI-X"""
        vm = self.stock_vm()
        export = self.export('s0')
        self.check_crash(vm, ('device_add', self.device('c0', export.path)),
                         ('device_del', {'id': 'c0'}), ('system_reset', {}))

    def test_stock_close_unread(self) -> None:
        """Without holders: a connection that is reset"""
        vm = self.stock_vm()
        path = self.odd_path()
        server = OddServer(path, close_unread)
        self.check_crash(vm, ('device_add', self.device('c0', path)))
        server.wait()


if __name__ == '__main__':
    QemuSystemTest.main()
