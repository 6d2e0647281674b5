#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
vfio-user-pci and servers that answer wrongly, late or not at all

QEMU must refuse such a device, or live with it, and soon.  Stock QEMU
($QTEST_QEMU_STOCK_BINARY) shows that the wrong answers are ones that matter.
No guest runs: a reset by QEMU completes an unplug, and the human monitor
reads and writes the device's configuration space.
"""

import contextlib
import json
import os
import random
import signal
import socket
import struct
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from qemu.machine import QEMUMachine
from qemu.machine.machine import AbnormalShutdown, VMLaunchFailure
from qemu.qmp import QMPError
from qemu_test import QemuSystemTest

# How long a test may take, in seconds
TEST_TIMEOUT = 120
# How long QEMU may take for a server that answers, or closes
SOON = 5.0
# How long QEMU waits for one answer, in milliseconds
PATIENCE = 200
# How long a command may take with a server that never answers again
NEVER = 3.0

HEADER = struct.Struct('<HHLLL')
(VERSION, DMA_MAP, DMA_UNMAP, INFO, REGION_INFO, _, IRQ_INFO, SET_IRQS,
 READ, WRITE, DMA_READ, DMA_WRITE, RESET) = range(1, 14)
REPLY, NO_REPLY, ERROR = 1, 1 << 4, 1 << 5
CONFIG, ROM = 7, 6
CAPS = b'{"capabilities": {"max_msg_fds": 8}}\0'
SLOT = 4

Json = Dict[str, Any]
# What is done to one message; True: it is done with
Hook = Callable[['Server', bytes, bytes], Any]


def region(size: int, flags: int = 3, argsz: int = 32, caps: int = 0,
           index: int = 0, offset: int = 0) -> bytes:
    """Return the description of a region."""
    return struct.pack('<LLLLQQ', argsz, flags, index, caps, size, offset)


class Server:
    """A device that is right, but for what a case makes wrong."""

    # pylint: disable=too-many-instance-attributes

    def __init__(self) -> None:
        self.hooks: Dict[int, Hook] = {}
        self.caps = CAPS
        self.config = bytearray(256)
        self.config_size = 256
        self.regions = {0: 4096}
        self.info = struct.pack('<LLLL', 16, 3, 9, 5)
        struct.pack_into('<HHHH', self.config, 0, 0x1af4, 0x10f0, 0, 0x10)
        struct.pack_into('<L', self.config, 8, 0xff << 24)
        self.config[0x34] = 0x40
        self.config[0x3d] = 1
        # MSI-X with 4 vectors in BAR 0
        struct.pack_into('<BBHLL', self.config, 0x40, 0x11, 0, 3, 0, 0x800)
        self.client: Optional[socket.socket] = None
        self.messages = 0

    def listen(self, path: str) -> None:
        """Serve one client, in a thread."""
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Serve until the client has gone."""
        with contextlib.suppress(OSError, EOFError):
            self.client, _ = self.listener.accept()
            self.client.settimeout(30)
            while True:
                header, payload = self.receive()
                hook = self.hooks.get(HEADER.unpack(header)[1])
                if not hook or hook(self, header, payload) is not True:
                    self.answer(header, payload)
        if self.client:
            self.client.close()

    def end(self) -> None:
        """Forget the client, if there is one."""
        for end in filter(None, (self.listener, self.client)):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listener.close()
        assert not self.thread.is_alive()

    def read(self, size: int) -> bytes:
        """Read a part of a message."""
        data = b''
        while len(data) < size:
            part, fds, _, _ = socket.recv_fds(self.client, size - len(data),
                                              16)
            for fd in fds:
                os.close(fd)
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self) -> Tuple[bytes, bytes]:
        """Return a message: its header, and what follows."""
        header = self.read(HEADER.size)
        return header, self.read(HEADER.unpack(header)[2] - HEADER.size)

    def send(self, data: bytes) -> None:
        """Send a message, or what is none."""
        self.messages += 1
        self.client.sendall(data)

    def reply(self, header: bytes, payload: bytes = b'',
              size: Optional[int] = None, flags: int = REPLY,
              error: int = 0) -> bool:
        """Answer a request."""
        number, command, _, _, _ = HEADER.unpack(header)
        if size is None:
            size = HEADER.size + len(payload)
        self.send(HEADER.pack(number, command, size, flags, error) + payload)
        return True

    def answer(self, header: bytes, payload: bytes) -> None:
        """Answer a request as it should be."""
        command, flags = HEADER.unpack(header)[1:4:2]
        if flags & NO_REPLY:
            return
        if command == VERSION:
            payload = struct.pack('<HH', 0, 0) + self.caps
        elif command == INFO:
            payload = self.info
        elif command == REGION_INFO:
            index, = struct.unpack_from('<L', payload, 8)
            size = (self.config_size if index == CONFIG
                    else self.regions.get(index, 0))
            payload = region(size, 3 if size else 0, index=index)
        elif command == IRQ_INFO:
            index, = struct.unpack_from('<L', payload, 8)
            payload = struct.pack('<LLLL', 16, 1, index,
                                  (1, 0, 4, 0, 0)[index])
        elif command == READ:
            offset, index, count = struct.unpack_from('<QLL', payload)
            data = self.config if index == CONFIG else b''
            payload = payload[:16] + bytes(
                data[offset:offset + count]).ljust(count, b'\0')
        elif command == WRITE:
            payload = payload[:16]
        elif command in (DMA_MAP, SET_IRQS, RESET):
            payload = b''
        self.reply(header, payload)


def says(payload: bytes = b'', **kwargs: int) -> Hook:
    """Answer with something else."""
    return lambda server, header, _: server.reply(header, payload, **kwargs)


def sends(data: Callable[[bytes], bytes], close: bool = False) -> Hook:
    """Send something else than an answer."""
    def hook(server: Server, header: bytes, _: bytes) -> bool:
        server.send(data(header))
        if close:
            raise EOFError
        return True
    return hook


def silent(_server: Server, _header: bytes, _payload: bytes) -> bool:
    """Say nothing."""
    return True


def late(server: Server, header: bytes, payload: bytes) -> bool:
    """Send an answer in two parts, with the client's patience between."""
    count, = struct.unpack_from('<L', payload, 12)
    number, command, _, _, _ = HEADER.unpack(header)
    server.send(HEADER.pack(number, command, 32 + count, REPLY, 0) +
                payload[:16])
    time.sleep(PATIENCE / 1000 * 2)
    server.send(b'\x55' * count)
    return True


def growing(server: Server, header: bytes, payload: bytes) -> bool:
    """Want some more space with every question."""
    argsz, _, index = struct.unpack_from('<LLL', payload)
    return server.reply(header, region(256, argsz=argsz + 8, index=index))


def on(command: int, hook: Hook) -> Callable[[Server], None]:
    """Answer a command by a hook."""
    return lambda server: server.hooks.update({command: hook})


def capabilities(text: str) -> Callable[[Server], None]:
    """Tell these capabilities."""
    return lambda server: setattr(
        server, 'caps', b'{"capabilities": %s}\0' % text.encode())


def config(offset: int, data: bytes, size: int = 256) -> \
        Callable[[Server], None]:
    """Have these bytes in the configuration space."""
    def change(server: Server) -> None:
        server.config = server.config.ljust(size, b'\0')
        server.config_size = size
        server.config[offset:offset + len(data)] = data
    return change


def bars(**sizes: int) -> Callable[[Server], None]:
    """Have BARs of these sizes."""
    return lambda server: server.regions.update(
        {int(bar[1:]): size for bar, size in sizes.items()})


def rom(size: int, region_size: int) -> Callable[[Server], None]:
    """Have a ROM whose BAR is of another size than its region."""
    def change(server: Server) -> None:
        server.config[0x30:0x34] = struct.pack('<L', -size & 0xffffffff)
        server.regions[ROM] = region_size
    return change


def cap(number: int, following: int, payload: bytes = b'') -> bytes:
    """Return a capability of a region."""
    return struct.pack('<HHL', number, 1, following) + payload


def described(*caps: bytes, flags: int = 0xb, first: int = 32) -> \
        Callable[[Server], None]:
    """Describe the first region with capabilities."""
    data = b''.join(caps)
    return on(REGION_INFO, lambda server, header, payload: (
        struct.unpack_from('<L', payload, 8)[0] == 0 and
        server.reply(header, (region(4096, flags, 32 + len(data), first) +
                              data)[:struct.unpack_from('<L', payload)[0]])))


def long(size: int) -> bytes:
    """Return some bytes that are no header."""
    return b'\0\xff' * (size // 2)


def twice(server: Server) -> None:
    """Have two MSI-X capabilities."""
    server.config[0x50:0x5c] = server.config[0x40:0x4c]
    server.config[0x41] = 0x50


def ext(*caps: Tuple[int, int]) -> Callable[[Server], None]:
    """Have PCIe capabilities, each with the place of the next one."""
    def change(server: Server) -> None:
        server.config = server.config.ljust(4096, b'\0')
        server.config_size = 4096
        for place, following in caps:
            struct.pack_into('<L', server.config, place,
                             3 | 1 << 16 | following << 20)
    return change


def above_last(server: Server) -> None:
    """Have a PCI capability right below the PCIe capabilities."""
    ext((0x100, 0x110), (0x110, 0))(server)
    server.config[0x41] = 0xfc
    server.config[0xfc:0x100] = b'\x09\0\4\0'


def masked(*places: int) -> Callable[[Server], None]:
    """Have PCIe capabilities of 4 bytes that say nothing, and one more."""
    def change(server: Server) -> None:
        ext(*zip(places, (*places[1:], 0x200)), (0x200, 0))(server)
        for place in places:
            server.config[place:place + 2] = b'\0\0'
    return change


REFUSED, ADDED, ANY = 'refused', 'added', 'any'
# Name, what is wrong, how it ends, and whether stock QEMU dies of it
CASES: List[Tuple[str, Callable[[Server], None], str, bool]] = [
    ('nothing', lambda _: None, ADDED, False),
    # The answer as such
    *[(f'{name} to {command}', on(command, hook), end, False)
      for command in (VERSION, INFO, REGION_INFO, IRQ_INFO, READ)
      for name, hook, end in (
          ('nothing', silent, ANY),
          ('no payload', says(), ANY),
          ('3 bytes', says(b'\0' * 3), ANY),
          ('error', says(flags=REPLY | ERROR, error=22), ANY),
          ('error 0', says(flags=REPLY | ERROR), ANY),
          ('error -1', says(flags=REPLY | ERROR, error=0xffffffff), ANY),
          ('error EAGAIN', says(flags=REPLY | ERROR, error=11), ANY),
          ('too long', says(long(5000)), ANY),
          ('huge', says(size=0xfffffff0), ANY),
          ('size 3', says(size=3), REFUSED),
          ('type 7', says(flags=7), REFUSED),
          ('request', says(long(64), flags=0), ANY),
          ('other number', sends(lambda h: HEADER.pack(
              HEADER.unpack(h)[0] ^ 1, 1, 116, REPLY, 0) + long(100)), ANY),
          ('three', lambda server, header, payload: [
              server.answer(header, payload) for _ in '12'] and None, ANY),
          ('half a header', sends(lambda h: h[:8], True), REFUSED),
          ('half an answer', sends(lambda h: HEADER.pack(
              *HEADER.unpack(h)[:2], 32, REPLY, 0) + b'\0' * 4, True),
           REFUSED),
          ('half an answer, then nothing', sends(lambda h: HEADER.pack(
              *HEADER.unpack(h)[:2], 32, REPLY, 0) + b'\0' * 4), ANY))],
    # Versions and capabilities
    ('no capabilities', on(VERSION, says(b'\0' * 4)), ADDED, False),
    ('no NUL', on(VERSION, says(b'\0' * 4 + CAPS[:-1])), REFUSED, False),
    ('only NUL', on(VERSION, says(b'\0' * 5)), REFUSED, False),
    ('major version', on(VERSION, says(b'\1\0\0\0' + CAPS)), REFUSED, False),
    ('pgsizes 0', capabilities('{"pgsizes": 0}'), REFUSED, True),
    ('pgsizes 1', capabilities('{"pgsizes": 1}'), REFUSED, False),
    ('two malformed capabilities',
     capabilities('{"migration": 7, "write_multiple": 7}'), REFUSED, True),
    ('migration pgsize 0', capabilities('{"migration": {"pgsize": 0}}'),
     REFUSED, False),
    *[(text, capabilities(text), REFUSED, False) for text in (
        '[]', 'null', '7', '{"max_msg_fds": "x"}', '{"max_msg_fds": -1}',
        '{"max_msg_fds": 99999999999999}', '{"max_dma_maps": -1}',
        '{"max_data_xfer_size": 0}', '{"write_multiple": 1}',
        '{"max_data_xfer_size": 18446744073709551615}', '[' * 500)],
    # The device
    *[(f'{regions} regions, {irqs} irqs',
       on(INFO, says(struct.pack('<LLLL', 16, flags, regions, irqs))),
       REFUSED, False) for flags, regions, irqs in (
           (3, 0xffffffff, 5), (3, 9, 0xffffffff), (3, 0, 0), (0, 9, 5),
           (3, 101, 5), (3, 7, 5))],
    # Regions
    ('region info of 4 bytes', on(REGION_INFO, says(b'\0' * 4)), REFUSED,
     True),
    ('argsz of 2 GiB', on(REGION_INFO, says(region(256, argsz=0x7fffffff))),
     REFUSED, False),
    ('argsz that wraps',
     on(REGION_INFO, says(region(256, argsz=0xfffffff8))), REFUSED, False),
    ('argsz that grows', on(REGION_INFO, growing), REFUSED, False),
    ('caps in a circle', described(cap(9, 32)), REFUSED, False),
    ('caps backwards', described(cap(9, 40), cap(9, 32)), REFUSED, False),
    ('caps outside', described(cap(9, 0x7ffffff0)), REFUSED, False),
    ('caps at the end', described(cap(9, 0), first=36), REFUSED, False),
    ('caps in front', described(cap(9, 0), first=8), REFUSED, False),
    ('caps that are none', described(cap(9, 0), first=0), ADDED, False),
    ('areas that are not there',
     described(cap(1, 0, struct.pack('<LL', 0x7fffffff, 0)), flags=0xf),
     REFUSED, True),
    ('area outside', described(cap(1, 0, struct.pack(
        '<LLQQ', 1, 0, 4096, 4096)), flags=0xf), REFUSED, False),
    ('half a type', described(cap(2, 0)), REFUSED, False),
    ('map without a descriptor', described(flags=7, first=0), ADDED, False),
    ('BAR of 2^63 bytes', bars(b0=1 << 63), ANY, False),
    ('BAR of 3 pages', bars(b0=0x3000), REFUSED, True),
    ('64 bits in BAR 5',
     lambda server: (bars(b5=4096)(server), config(0x24, b'\4')(server)),
     REFUSED, False),
    ('config space of 16 bytes', config(0, b'', 16), REFUSED, False),
    ('no config space', config(0, b'', 0), REFUSED, False),
    ('config space of 2^62 bytes',
     lambda server: setattr(server, 'config_size', 1 << 62), ANY, False),
    ('config space of 300 bytes', config(0, b'', 300), ADDED, False),
    # As devices of Linux's samples/vfio-mdev have it
    ('config space of 255 bytes', config(0, b'', 255), ADDED, False),
    ('ROM of 0x1800 bytes', rom(0x1800, 0x1800), ADDED, False),
    # The config space
    ('bridge', config(0xe, b'\1'), REFUSED, False),
    ('interrupt pin 5', config(0x3d, b'\5'), REFUSED, True),
    ('capability in a circle', config(0x41, b'\x40'), REFUSED, False),
    ('capability in the header', config(0x41, b'\x10'), REFUSED, False),
    ('capability at the end', config(0x34, b'\xff'), REFUSED, False),
    ('MSI-X twice', twice, REFUSED, False),
    ('MSI-X in BAR 7', config(0x44, b'\7'), REFUSED, False),
    ('MSI-X in no BAR', config(0x44, b'\3'), REFUSED, True),
    ('MSI-X outside', config(0x44, struct.pack('<L', 0x7ffffff0)), REFUSED,
     False),
    ('PBA outside', config(0x48, struct.pack('<L', 0x7ffffff0)), REFUSED,
     False),
    ('128 MSI vectors', config(0x40, b'\5\0\x0e\0'), REFUSED, True),
    ('all ones', config(0, b'\xff' * 256), REFUSED, False),
    ('PCIe capability in a circle', ext((0x100, 0x110), (0x110, 0x100)),
     REFUSED, False),
    ('PCIe capabilities side by side, which the guest does not see',
     ext((0x100, 0x104), (0x104, 0)), ADDED, False),
]
# On a PCIe bus
EXPRESS_CASES: List[Tuple[str, Callable[[Server], None], str, bool]] = [
    ('config space of 255 bytes', config(0, b'', 255), ADDED, False),
    ('PCIe capability', ext((0x100, 0x110), (0x110, 0)), ADDED, False),
    ('PCIe capability in a circle', ext((0x100, 0x110), (0x110, 0x100)),
     REFUSED, False),
    ('PCIe capability below 256', ext((0x100, 0x40)), REFUSED, True),
    ('PCIe capability at the end', ext((0x100, 0xffc), (0xffc, 0)), REFUSED,
     False),
    ('PCIe capabilities side by side',
     ext((0x100, 0x104), (0x104, 0)), REFUSED, False),
    ('PCI and PCIe capabilities side by side', above_last, ADDED, False),
    ('masked PCIe capabilities', masked(0x100, 0x104, 0xffc), ADDED, False),
    ('resizable BARs at the end', lambda server: (
        ext((0x100, 0xff8), (0xff8, 0))(server),
        server.config.__setitem__(slice(0xff8, 0x1000), struct.pack(
            '<LL', 0x15 | 1 << 16, 0xffffffff))), ADDED, False),
]


class BadReplies(QemuSystemTest):
    """One QEMU, and servers that come and go."""

    def setUp(self) -> None:
        super().setUp()
        # QMP has no timeout of its own: a QEMU that hangs ends the program
        signal.alarm(TEST_TIMEOUT)
        self.set_machine('pc')
        self.require_device('vfio-user-pci')
        self.dir = self.socket_dir().name
        self.servers: List[Server] = []
        self.plugged = 0

    def tearDown(self) -> None:
        for server in self.servers:
            server.end()
        signal.alarm(0)
        super().tearDown()

    def start(self, machine: str = 'pc', *arguments: str) -> QEMUMachine:
        """Start a QEMU."""
        vm = self.get_vm(name=f'vm{len(self._vms)}')
        vm.set_machine(machine)
        vm.add_args('-nodefaults', '-S', '-m', '64', *arguments)
        vm.launch()
        return vm

    def listen(self, server: Server) -> str:
        """Start a server, and return where."""
        path = os.path.join(self.dir, str(self.plugged))
        self.plugged += 1
        server.listen(path)
        self.servers.append(server)
        return path

    def stop(self, server: Server) -> None:
        """End a server."""
        server.end()
        self.servers.remove(server)

    @staticmethod
    def device(path: str, patience: int) -> Json:
        """Return the device of a server."""
        return {'driver': 'vfio-user-pci', 'id': 'v', 'addr': f'{SLOT:x}.0',
                'x-msg-timeout': patience,
                'socket': {'type': 'unix', 'path': path}}

    def plug(self, vm: QEMUMachine, server: Server,
             patience: int = PATIENCE) -> Json:
        """Plug a device, and return what QMP says."""
        return vm.qmp('device_add', self.device(self.listen(server),
                                                patience))

    def unplug(self, vm: QEMUMachine) -> None:
        """Unplug the device."""
        vm.cmd('device_del', id='v')
        vm.cmd('system_reset')
        vm.event_wait('DEVICE_DELETED', 30, match={'data': {'device': 'v'}})

    def config_io(self, vm: QEMUMachine, offset: int,
                  value: Optional[int] = None) -> str:
        """Read or write 32 bits of the configuration space."""
        def hmp(line: str) -> str:
            return vm.cmd('human-monitor-command', command_line=line)
        hmp(f'o /w 0xcf8 {1 << 31 | SLOT << 11 | offset:#x}')
        if value is None:
            return hmp('i /w 0xcfc').split()[-1]
        return hmp(f'o /w 0xcfc {value:#x}')

    def check(self, vm: QEMUMachine, server: Server, name: str, end: str,
              limit: float) -> None:
        """Plug, have a look, and unplug what could be plugged."""
        begin = time.monotonic()
        answer = self.plug(vm, server)
        if 'error' not in answer:
            vm.cmd('query-pci')
            self.config_io(vm, 0)
            self.config_io(vm, 4, 6)
            self.unplug(vm)
        self.assertLess(time.monotonic() - begin, limit, name)
        self.assertEqual(vm.cmd('query-status')['status'], 'prelaunch')
        if end != ANY:
            self.assertEqual(REFUSED if 'error' in answer else ADDED, end,
                             (name, answer))
        self.stop(server)

    def test_cases(self) -> None:
        """One wrong answer at a time"""
        vm = self.start()
        for name, change, end, _ in CASES:
            self.log.info('%s', name)
            server = Server()
            change(server)
            self.check(vm, server, name, end,
                       SOON if end != ANY else NEVER * 3)
        vm.shutdown()
        self.assertEqual(vm.exitcode(), 0)

    def plug_cold(self, server: Server, machine: str = 'q35') -> \
            Tuple[str, int]:
        """Start a QEMU with a device, and return how that ends."""
        path = self.listen(server)
        vm = self.get_vm(name=f'cold{self.plugged}')
        vm.set_machine(machine)
        vm.add_args('-nodefaults', '-S', '-device', json.dumps(
            self.device(path, PATIENCE)))
        try:
            vm.launch()
            vm.cmd('query-pci')
            vm.shutdown()
            end = ADDED
        except (QMPError, VMLaunchFailure, OSError, EOFError):
            with contextlib.suppress(AbnormalShutdown):
                vm.shutdown(hard=True)
            end = REFUSED
        self.stop(server)
        return end, vm.exitcode()

    def test_express(self) -> None:
        """The same, of a device on a PCIe bus"""
        for name, change, end, _ in EXPRESS_CASES:
            self.log.info('%s', name)
            server = Server()
            change(server)
            self.assertEqual(self.plug_cold(server),
                             (end, 0 if end == ADDED else 1), name)

    def test_stock(self) -> None:
        """Stock QEMU does not survive some of them"""
        stock = os.environ.get('QTEST_QEMU_STOCK_BINARY')
        if not stock:
            self.skipTest('QTEST_QEMU_STOCK_BINARY names no stock QEMU')
        self.qemu_bin = stock
        for machine, cases in (('pc', CASES), ('q35', EXPRESS_CASES)):
            for name, change, _, dies in cases:
                if dies:
                    self.log.info('%s', name)
                    server = Server()
                    change(server)
                    end, code = self.plug_cold(server, machine)
                    self.assertEqual(end, REFUSED, name)
                    self.assertLess(code, 0, name)

    def test_mutations(self) -> None:
        """Answers with random mistakes"""
        source = random.Random(2026)
        vm = self.start()
        for number in range(120):
            server = Server()
            target = source.randrange(30)
            how = source.randrange(7)
            seed = source.random()

            def send(data: bytes, server: Server = server,
                     target: int = target, how: int = how,
                     seed: float = seed) -> None:
                dice = random.Random(seed)
                message = bytearray(data)
                if server.messages == target:
                    if how == 0:
                        message[dice.randrange(len(data))] ^= \
                            1 << dice.randrange(8)
                    elif how == 1:
                        del message[dice.randrange(len(data)):]
                    elif how == 2:
                        message += dice.randbytes(dice.randrange(1, 100))
                    elif how == 3:
                        message[16:] = dice.randbytes(len(data) - 16)
                    elif how == 4:
                        message[:16] = dice.randbytes(16)
                    elif how == 5:
                        message[4:8] = struct.pack(
                            '<L', len(data) + dice.randrange(-16, 64))
                    else:
                        place = dice.randrange(len(data))
                        message[place:place + 4] = b'\xff\xff\xff\x7f'
                server.messages += 1
                server.client.sendall(message)
            server.send = send
            self.log.info('mutation %d: message %d, %d', number, target, how)
            self.check(vm, server, '', ANY, NEVER * 3)
        vm.shutdown()
        self.assertEqual(vm.exitcode(), 0)

    def test_late(self) -> None:
        """An answer that comes too late, in two parts"""
        vm = self.start()
        server = Server()
        self.assertNotIn('error', self.plug(vm, server))
        server.hooks[READ] = late
        self.config_io(vm, 0)
        del server.hooks[READ]
        time.sleep(PATIENCE / 1000 * 3)
        for _ in range(3):
            self.assertEqual(int(self.config_io(vm, 0x4), 16), 0x100000)
        self.unplug(vm)

    def test_gone(self) -> None:
        """Guest memory is plugged after the server has gone"""
        for closed in (True, False):
            vm = self.start('pc', '-m', 'size=64M,slots=2,maxmem=256M')
            server = Server()
            self.assertNotIn('error', self.plug(vm, server))
            if closed:
                self.stop(server)
            else:
                for command in (DMA_MAP, DMA_UNMAP, READ, SET_IRQS, RESET):
                    server.hooks[command] = silent
            begin = time.monotonic()
            vm.cmd('object-add', {'qom-type': 'memory-backend-ram',
                                  'id': 'm', 'size': 64 << 20})
            vm.cmd('device_add', driver='pc-dimm', id='d', memdev='m')
            self.unplug(vm)
            self.assertLess(time.monotonic() - begin, NEVER)
            vm.shutdown()

    def dma(self, server: Server, command: int, address: int, count: int,
            data: bytes = b'') -> bytes:
        """Access guest memory."""
        server.client.sendall(HEADER.pack(
            99, command, 32 + len(data), 0, 0) +
            struct.pack('<QQ', address, count) + data)
        for _ in '12':
            header, payload = server.receive()
            if HEADER.unpack(header)[3] & REPLY:
                break
        number, answered, _, flags, error = HEADER.unpack(header)
        self.assertEqual((number, answered, flags, error),
                         (99, command, REPLY, 0))
        self.assertEqual(struct.unpack_from('<QQ', payload), (address, count))
        return payload[16:]

    def test_dma(self) -> None:
        """What a server writes to guest memory is what it reads there"""
        vm = self.start()
        server = Server()
        done = threading.Event()
        failures: List[BaseException] = []

        def script(_server: Server, header: bytes, payload: bytes) -> None:
            if struct.unpack_from('<QLL', payload)[1] != CONFIG:
                return
            if struct.unpack_from('<QLLH', payload)[0] != 4 or \
                    not payload[16] & 4:
                return
            server.answer(header, payload)
            try:
                pattern = random.Random(1).randbytes(1 << 20)
                self.assertEqual(self.dma(server, DMA_WRITE, 1 << 20,
                                          len(pattern), pattern), b'')
                server.client.sendall(HEADER.pack(5, DMA_READ, 32, 0, 0) +
                                      struct.pack('<QQ', 1 << 20, 1 << 20))
                # It does not fit into the socket
                time.sleep(0.3)
                header, payload = server.receive()
                self.assertEqual(HEADER.unpack(header)[0], 5)
                self.assertEqual(payload[16:], pattern)
                self.assertEqual(self.dma(server, DMA_READ, 1 << 20, 8),
                                 pattern[:8])
                server.client.sendall(HEADER.pack(6, DMA_READ, 32, 0, 0) +
                                      struct.pack('<QQ', 1 << 20, 1 << 60))
                header, payload = server.receive()
                self.assertEqual(HEADER.unpack(header)[3], REPLY | ERROR)
            except BaseException as failure:
                failures.append(failure)
            done.set()

        self.assertNotIn('error', self.plug(vm, server, 5000))
        server.hooks[WRITE] = lambda s, h, p: script(s, h, p) or done.is_set()
        self.config_io(vm, 4, 6)
        self.assertTrue(done.wait(20))
        self.assertEqual(failures, [])
        del server.hooks[WRITE]
        self.assertEqual(int(self.config_io(vm, 0x4), 16) & 0xffff0000,
                         0x100000)
        self.unplug(vm)

    def test_descriptors(self) -> None:
        """Descriptors that nobody wants are closed"""
        vm = self.start()
        folder = f'/proc/{vm.get_pid()}/fd'
        server = Server()
        self.assertNotIn('error', self.plug(vm, server))
        before = len(os.listdir(folder))
        with open('/dev/null', 'rb') as null:
            for _ in range(20):
                socket.send_fds(server.client, [HEADER.pack(
                    7, DMA_READ, 16, 0, 0)], [null.fileno()] * 4)
        self.config_io(vm, 0)
        time.sleep(0.2)
        vm.cmd('query-status')
        self.assertLessEqual(len(os.listdir(folder)), before)
        self.unplug(vm)

    def test_flood(self) -> None:
        """A server that sends requests, and reads no answers"""
        vm = self.start()
        server = Server()

        def flood(_: Server, header: bytes, payload: bytes) -> None:
            if payload[:8] == b'\4' + bytes(7) and payload[16] & 4:
                server.answer(header, payload)
                for _ in range(200):
                    server.send(HEADER.pack(7, DMA_READ, 32, 0, 0) +
                                struct.pack('<QQ', 1 << 20, 1 << 20))
                time.sleep(1)
                raise EOFError

        def memory() -> int:
            with open(f'/proc/{vm.get_pid()}/status', encoding='utf8') as file:
                return next(int(line.split()[1]) >> 10 for line in file
                            if line.startswith('VmHWM'))

        self.assertNotIn('error', self.plug(vm, server))
        server.hooks[WRITE] = flood
        before = memory()
        self.config_io(vm, 4, 6)
        server.thread.join(10)
        vm.cmd('query-status')
        # The limit is 64 MiB; 200 were asked for
        self.assertLess(memory() - before, 120)
        self.unplug(vm)


if __name__ == '__main__':
    QemuSystemTest.main()
