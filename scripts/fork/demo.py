#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Boot a small Linux guest and show who holds which IOThread

The guest has one disk on an IOThread of its own and one on two IOThreads.  It
does real I/O, one disk is unplugged, and QEMU tells at each step which device
runs where.  In the end two disks fill one IOThread, and iothread-balance moves
one of them to the other.  Or it draws how busy the IOThreads are meanwhile.
Needs no KVM, no network, and no disk image.
"""

import argparse
import contextlib
import importlib.util
import json
import os
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
from typing import Any, Dict, Iterator, List, Optional, Tuple

ROOT = Path(__file__).resolve().parents[2]
GUEST = ROOT / 'tests/functional/qemu_test/linuxguest.py'
SCRIPTS = ROOT / 'build/patched/src/scripts'
# How long QEMU may take for an answer, and the guest for an unplug
TIMEOUT = 60
# When a thread is relieved: emulated CPUs leave it little time
WHEN = '--full', '10', '--gain', '3', '-d', '3'

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


def device(disk: str, **threads: Any) -> Json:
    """Return a disk on these IOThreads, for -device or device_add."""
    return {'driver': 'virtio-blk-pci', 'id': disk, 'drive': disk,
            'serial': disk, **threads}


DISK0 = device('disk0', iothread='io0')
DISK1 = device('disk1', **{'num-queues': 4, 'iothread-vq-mapping': [
    {'iothread': 'io0'}, {'iothread': 'io1'}]})


# A device, and the block node that is its drive
Disk = Tuple[Json, Json]


def file_disks(directory: Path) -> List[Disk]:
    """Return two disks whose data is in files, on both IOThreads."""
    disks: List[Disk] = []
    for each in DISK0, DISK1:
        image = directory / f'{each["id"]}.img'
        with open(image, 'wb') as stream:
            stream.truncate(16 * 1024 * 1024)
        disks.append((each, {'driver': 'file', 'filename': str(image)}))
    return disks


def busy_disks() -> List[Disk]:
    """
    Return two disks on one IOThread, which have it work.

    The data is QEMU's own, in copies that are compared with each other: a
    file is read by other threads.
    """
    copy = {'driver': 'null-co', 'size': 1 << 30, 'read-zeroes': True}
    node = {'driver': 'quorum', 'vote-threshold': 2, 'children': [copy] * 6}
    return [(device(disk, iothread='io0'), node)
            for disk in ('busy0', 'busy1')]


def command_line(program: str, guest_args: List[str], directory: Path,
                 monitor: int, console: int, disks: List[Disk],
                 thread: str) -> List[str]:
    """
    Return the command line of a QEMU with these disks and two IOThreads.

    `thread` is what else is to be said of each IOThread.
    """
    command = [
        program, *guest_args, '-display', 'none', '-no-reboot',
        '-run-with', 'exit-with-parent=on',
        '-chardev', f'socket,id=monitor,fd={monitor}',
        '-mon', 'chardev=monitor,mode=control',
        '-qmp', f'unix:{directory}/top,server=on,wait=off', '-name', 'demo',
        '-qmp', f'unix:{directory}/balance,server=on,wait=off',
        '-chardev', f'socket,id=console,fd={console}',
        '-serial', 'chardev:console',
        '-object', f'iothread,id=io0{thread}',
        '-object', f'iothread,id=io1{thread}']
    for each, node in disks:
        command += [
            '-blockdev', json.dumps({'node-name': each['id'], **node}),
            '-device', json.dumps(each)]
    return command


class Tools:
    """What comes with QEMU's source to look after IOThreads."""

    def __init__(self, scripts: Path, directory: Path) -> None:
        """Use those scripts on the QEMU whose monitors are there."""
        self.scripts, self.directory = scripts, directory

    def command(self, name: str, *options: str) -> List[str]:
        """Return the command for one of them."""
        script = self.scripts / f'iothread-{name}'
        if not script.exists():
            raise DemoError(f'there is no {script}')
        return [sys.executable, '-B', str(script), *options,
                str(self.directory / name)]

    def show(self, name: str, *options: str) -> None:
        """Print what one of them says."""
        heading(' '.join([f'iothread-{name}', *options]))
        done = subprocess.run(
            self.command(name, *options), capture_output=True, text=True,
            check=False, timeout=TIMEOUT, env={**os.environ, 'COLUMNS': '96'})
        # The copies that make up a disk have no names of their own
        indent(re.sub(r'.*node-name=#.*\n', '', done.stdout))
        if done.returncode:
            raise DemoError(f'iothread-{name} failed: {done.stderr.strip()}')


def read(guest: Any, disk: str) -> None:
    """Have two of the guest's CPUs read from the disk from now on."""
    guest.run(f'dev=/dev/$(disk {disk})')
    guest.run('for cpu in 0 1; do'
              ' while dd if=/proc/self/fd/3 of=/dev/null bs=512k iflag=direct;'
              ' do :; done 3<$dev 2>/dev/null & done')


def io1_holders(qmp: Qmp) -> List[str]:
    """Return the devices on io1."""
    return [holder['device'] for thread in qmp.execute('query-iothreads')
            if thread['id'] == 'io1' for holder in thread['holders']
            if 'device' in holder]


def unplug(qmp: Qmp, guest: Any, disk: str) -> None:
    """Unplug the disk, and wait until it has gone from the guest too."""
    qmp.execute('device_del', id=disk)
    qmp.wait_deleted(disk)
    guest.run(f'gone {disk}')


def boot(guest: Any) -> None:
    """Wait for a guest that has just been started."""
    print('Booting Linux on an emulated PC ...', end='', flush=True)
    start = time.monotonic()
    with dots():
        guest.wait_ready()
    print(f' up after {time.monotonic() - start:.1f} s', flush=True)
    indent(guest.run('uname -sr') + ', ' + guest.run('nproc') + ' CPUs')


def power_off(guest: Any, process: 'subprocess.Popen[bytes]') -> None:
    """End the guest, and QEMU with it."""
    heading('Powering off')
    guest.send('poweroff -f')
    try:
        code = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        raise DemoError('the guest did not power off') from None
    if code:
        raise DemoError(f'QEMU ended with code {code}')
    indent('QEMU has ended')


def demonstrate(qmp: Qmp, guest: Any, tools: Tools) -> None:
    """Show it all in a guest with both disks."""
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
    unplug(qmp, guest, 'disk1')
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

    heading('object-add io1, and device_add of two disks on io0')
    qmp.execute('object-add', qom_type='iothread', id='io1')
    for disk, node in busy_disks():
        qmp.execute('blockdev-add', **{'node-name': disk['id'], **node})
        qmp.execute('device_add', **disk)
        read(guest, disk['id'])
    indent('the guest reads from them from now on')
    tools.show('top', '--once', '-d', '3')
    tools.show('balance', '--once', *WHEN)
    tools.show('top', '--once', '-d', '3')
    if len(io1_holders(qmp)) != 1:
        raise DemoError('no disk has moved to io1')


def draw(qmp: Qmp, guest: Any, tools: Tools, picture: Path) -> None:
    """Draw the load while a disk moves from one IOThread to the other."""
    made = tools.directory / 'picture.svg'
    with subprocess.Popen(tools.command('top', '-d', '0.5', '-n', '200',
                                        '--svg', str(made))) as process:
        try:
            time.sleep(3)
            read(guest, 'busy0')
            read(guest, 'busy1')
            time.sleep(9)
            tools.show('balance', '--once', *WHEN)
            if len(io1_holders(qmp)) != 1:
                raise DemoError('no disk has moved to io1')
            time.sleep(10)
            process.send_signal(signal.SIGINT)
            if process.wait(TIMEOUT):
                raise DemoError('iothread-top failed')
        finally:
            process.kill()
    picture.write_bytes(made.read_bytes())
    heading(f'The load of the IOThreads is drawn in {picture}')


def run(program: str, scripts: Path, picture: Optional[Path]) -> None:
    """Run the demonstration with that QEMU, or draw the picture."""
    linuxguest = load_guest()
    with tempfile.TemporaryDirectory(prefix='fork-demo-') as name:
        directory = Path(name)
        errors = directory / 'qemu.log'
        monitor, monitor_far = socket.socketpair()
        console, console_far = socket.socketpair()
        try:
            command = command_line(
                program, linuxguest.guest_args(name), directory,
                monitor_far.fileno(), console_far.fileno(),
                busy_disks() if picture else file_disks(directory),
                ',poll-max-ns=4000000' if picture else '')
            with qemu(command, errors, monitor_far, console_far) as process:
                qmp, guest = Qmp(monitor), linuxguest.GuestConsole(console)
                tools = Tools(scripts, directory)
                boot(guest)
                if picture:
                    draw(qmp, guest, tools, picture)
                else:
                    demonstrate(qmp, guest, tools)
                power_off(guest, process)
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
    parser.add_argument('--scripts', metavar='DIRECTORY', type=Path,
                        default=SCRIPTS, help='where iothread-top and'
                        ' iothread-balance are (default: in the work tree)')
    parser.add_argument('--picture', metavar='FILE', type=Path,
                        help='draw the load instead, while a disk moves from'
                        ' one IOThread to the other')
    args = parser.parse_args()

    def interrupt(number: int, _frame: Optional[FrameType]) -> None:
        # Unwinds the stack, and so ends QEMU
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        run(args.qemu, args.scripts, args.picture)
    except DemoError as error:
        print(f'\ndemo: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
