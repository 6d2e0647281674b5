#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Boot a small Linux guest and show who holds which IOThread

The guest has one disk on an IOThread of its own and one on two IOThreads.  It
does real I/O, one disk is unplugged, and QEMU tells at each step which device
runs where.  Needs no KVM, no network, and no disk image.
"""

import argparse
import contextlib
import importlib.util
import json
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from types import FrameType, ModuleType
from typing import Any, Dict, Iterator, List, Optional

ROOT = Path(__file__).resolve().parents[2]
GUEST = ROOT / 'tests/functional/qemu_test/linuxguest.py'
# How long QEMU may take for an answer, and the guest for an unplug
TIMEOUT = 60

Json = Dict[str, Any]


class DemoError(Exception):
    """What went wrong, as a sentence for the person who runs this."""


class QmpError(Exception):
    """QEMU's own words on why it refuses a command."""


class Qmp:
    """A QMP client: commands, and events as they are waited for."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT)
        self._stream = sock.makefile('rw', encoding='utf-8')
        self._events: List[Json] = []
        self._read()
        self.execute('qmp_capabilities')

    def _read(self) -> Json:
        try:
            line = self._stream.readline()
        except TimeoutError:
            raise DemoError(f'QEMU was silent for {TIMEOUT} s') from None
        if not line:
            raise DemoError('QEMU has closed its monitor')
        message: Json = json.loads(line)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute the command and return what it returns."""
        json.dump({'execute': command,
                   'arguments': {name.replace('_', '-'): value
                                 for name, value in arguments.items()}},
                  self._stream)
        self._stream.flush()
        while True:
            answer = self._read()
            if 'return' in answer:
                return answer['return']
            if 'error' in answer:
                raise QmpError(answer['error']['desc'])
            self._events.append(answer)

    def wait_deleted(self, device: str) -> None:
        """Wait until the device has gone."""
        while not any(event['event'] == 'DEVICE_DELETED' and
                      event['data'].get('device') == device
                      for event in self._events):
            self._events = [self._read()]


def load_guest() -> ModuleType:
    """Load the guest, of which the functional tests are the other user."""
    spec = importlib.util.spec_from_file_location('linuxguest', GUEST)
    assert spec and spec.loader
    # This runs as root where the environment is a root directory of its own:
    # leave nothing in the repository that its owner cannot delete
    sys.dont_write_bytecode = True
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def dots() -> Iterator[None]:
    """Print a dot per second, so that a slow host does not look dead."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            print('.', end='', flush=True)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def qemu(command: List[str], errors: Path,
         *sockets: socket.socket) -> Iterator['subprocess.Popen[bytes]']:
    """Run QEMU with the sockets, and let it not survive this."""
    with open(errors, 'wb') as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            pass_fds=[sock.fileno() for sock in sockets])
    for sock in sockets:
        sock.close()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def heading(text: str) -> None:
    """Print the line that says what comes next."""
    print(f'\n{text}', flush=True)


def indent(text: str) -> None:
    """Print what belongs below a heading."""
    for line in text.splitlines():
        print(f'  {line.rstrip()}', flush=True)


def tidy(value: Any) -> Any:
    """Put what names a thing first, and lists last; QEMU keeps no order."""
    if isinstance(value, list):
        return [tidy(each) for each in value]
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: (
            isinstance(value[name], list), name not in ('type', 'id'), name))
        return {name: tidy(value[name]) for name in names}
    return value


def show(qmp: Qmp) -> List[Json]:
    """Print the IOThreads as people and as programs see them."""
    heading('info iothreads')
    indent(qmp.execute('human-monitor-command', command_line='info iothreads'))
    heading('query-iothreads')
    threads: List[Json] = qmp.execute('query-iothreads')
    # A list of numbers stays on one line
    indent(re.sub(r'\[[\d\s,]+\]', lambda numbers: ''.join(numbers[0].split()),
                  json.dumps(tidy(threads), indent=2)))
    return threads


def disk_io(guest: Any, disk: str) -> None:
    """Have the guest do I/O on the disk."""
    name = guest.run(f'disk {disk}')
    size, checksum = guest.run(f'io {disk}').split()
    queues = guest.run(f'queues {disk}').split()
    print(f'  {disk} (/dev/{name}): {size} bytes written and read back through'
          f' {len(queues)} queues\n'
          f'    SHA-256 {checksum}', flush=True)


def command_line(program: str, guest_args: List[str], directory: Path,
                 monitor: int, console: int) -> List[str]:
    """Return the command line of a QEMU with two IOThreads and two disks."""
    devices: List[Json] = [
        {'id': 'disk0', 'iothread': 'io0'},
        {'id': 'disk1', 'num-queues': 4,
         'iothread-vq-mapping': [{'iothread': 'io0'}, {'iothread': 'io1'}]}]
    command = [
        program, *guest_args, '-display', 'none', '-no-reboot',
        '-run-with', 'exit-with-parent=on',
        '-chardev', f'socket,id=monitor,fd={monitor}',
        '-mon', 'chardev=monitor,mode=control',
        '-chardev', f'socket,id=console,fd={console}',
        '-serial', 'chardev:console',
        '-object', 'iothread,id=io0', '-object', 'iothread,id=io1']
    for device in devices:
        disk = device['id']
        image = directory / f'{disk}.img'
        with open(image, 'wb') as stream:
            stream.truncate(16 * 1024 * 1024)
        command += [
            '-blockdev', json.dumps({'driver': 'file', 'node-name': disk,
                                     'filename': str(image)}),
            '-device', json.dumps({'driver': 'virtio-blk-pci', 'drive': disk,
                                   'serial': disk, **device})]
    return command


def demonstrate(qmp: Qmp, guest: Any,
                process: 'subprocess.Popen[bytes]') -> None:
    """Show it all in a guest that has just been started."""
    print('Booting Linux on an emulated PC ...', end='', flush=True)
    start = time.monotonic()
    with dots():
        guest.wait_ready()
    print(f' up after {time.monotonic() - start:.1f} s', flush=True)
    indent(guest.run('uname -sr') + ', ' + guest.run('nproc') + ' CPUs')

    heading('Disk I/O in the guest')
    disk_io(guest, 'disk0')
    disk_io(guest, 'disk1')
    if not all('holders' in thread for thread in show(qmp)):
        raise DemoError('this QEMU does not tell who holds an IOThread:'
                        ' is it the patched one?')

    heading('object-del io1, while disk1 uses it')
    try:
        qmp.execute('object-del', id='io1')
    except QmpError as error:
        indent(f'refused: {error}')
    else:
        raise DemoError('QEMU deleted io1 although disk1 uses it')

    heading('device_del disk1')
    qmp.execute('device_del', id='disk1')
    qmp.wait_deleted('disk1')
    guest.run('gone disk1')
    indent('the guest has let it go')
    for thread in show(qmp):
        if any(each.get('device') == 'disk1' for each in thread['holders']):
            raise DemoError(f'disk1 has gone and still holds {thread["id"]}')

    heading('object-del io1, now that nobody uses it')
    try:
        qmp.execute('object-del', id='io1')
    except QmpError as error:
        raise DemoError(f'QEMU refused to delete io1: {error}') from None
    if [thread['id'] for thread in qmp.execute('query-iothreads')] != ['io0']:
        raise DemoError('io1 is still there after object-del')
    indent('deleted')

    heading('Disk I/O in the guest')
    disk_io(guest, 'disk0')

    heading('Powering off')
    guest.send('poweroff -f')
    try:
        code = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        raise DemoError('the guest did not power off') from None
    if code:
        raise DemoError(f'QEMU ended with code {code}')
    indent('QEMU has ended')


def run(program: str) -> None:
    """Run the demonstration with that QEMU."""
    linuxguest = load_guest()
    with tempfile.TemporaryDirectory(prefix='fork-demo-') as name:
        directory = Path(name)
        errors = directory / 'qemu.log'
        monitor, monitor_far = socket.socketpair()
        console, console_far = socket.socketpair()
        try:
            command = command_line(
                program, linuxguest.guest_args(name), directory,
                monitor_far.fileno(), console_far.fileno())
            with qemu(command, errors, monitor_far, console_far) as process:
                demonstrate(Qmp(monitor), linuxguest.GuestConsole(console),
                            process)
        except (DemoError, QmpError, OSError, linuxguest.GuestMissing,
                linuxguest.GuestError) as error:
            said = ''
            if errors.exists():
                said = errors.read_text(errors='replace')
            raise DemoError(f'{error}\n{said}'.strip()) from None


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(
        description='Boot a small Linux guest and show who holds which'
                    ' IOThread')
    parser.add_argument('--qemu', required=True, metavar='PROGRAM',
                        help='the patched qemu-system-x86_64')

    def interrupt(number: int, _frame: Optional[FrameType]) -> None:
        # Unwinds the stack, and so ends QEMU
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        run(parser.parse_args().qemu)
    except DemoError as error:
        print(f'\ndemo: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
