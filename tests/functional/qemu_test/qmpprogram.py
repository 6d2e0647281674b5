# SPDX-License-Identifier: GPL-2.0-or-later
"""
Programs with QMP monitors whose end is watched closely

A program is qemu-system-x86_64 or qemu-storage-daemon, of this build or the
stock one beside it.  It may run in gdb, which then can hold one thread while
the others run.

Other than qemu.machine this speaks QMP line by line: a test sees what was
written and when, also if that is half an answer.
"""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from typing import Any, Dict, Iterator, List, Optional

Json = Dict[str, Any]

# How long things may take that do not wait for anything, in seconds; it is
# long since the host may be busy.
PATIENCE = 60.0
# Conditions of gdb's for a thread; the main thread is its number 1
MAIN = '$_thread == 1'
OTHERS = '$_thread != 1'
HERTZ = os.sysconf('SC_CLK_TCK')


class Timeout(Exception):
    """Something that should have happened did not."""


def deadline(seconds: float, what: str) -> Iterator[float]:
    """Yield the remaining time, until it is over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield left
    raise Timeout(what)


def programs(emulator: str) -> List[str]:
    """Return the emulator and, where it was built, the storage daemon."""
    daemon = os.path.join(os.path.dirname(emulator),
                          'storage-daemon/qemu-storage-daemon')
    return [emulator] + [daemon] * os.access(daemon, os.X_OK)


class Client:
    """One end of a monitor's socket."""

    def __init__(self, program: 'Program', path: str, oob: bool) -> None:
        self.buffer = b''
        self.closed = False
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in deadline(PATIENCE, f'no monitor at {path}'):
            try:
                self.socket.connect(path)
                break
            except OSError as error:
                if not program.alive():
                    raise EOFError(program.output()) from error
                time.sleep(0.005)
        self.socket.setblocking(False)
        # Stock QEMU may send an event before the greeting
        self.send('qmp_capabilities', {'enable': ['oob'] if oob else []}, 0)
        self.answer(0)

    def send(self, command: str, arguments: Optional[Json] = None,
             ident: Optional[int] = None, oob: bool = False) -> None:
        """Send a command."""
        request: Json = {'exec-oob' if oob else 'execute': command}
        if arguments is not None:
            request['arguments'] = arguments
        if ident is not None:
            request['id'] = ident
        self.socket.sendall(json.dumps(request).encode() + b'\r\n')

    def fill(self, size: int = 1 << 20) -> None:
        """Read what is there, up to a size."""
        try:
            data = self.socket.recv(size)
            self.buffer += data
            self.closed = self.closed or not data
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True

    def receive(self, timeout: float = PATIENCE) -> Json:
        """Return the next answer or event; EOFError if there will be none."""
        for left in deadline(timeout, 'no answer'):
            line, end, rest = self.buffer.partition(b'\n')
            if end:
                self.buffer = rest
                message: Json = json.loads(line)
                return message
            if self.closed:
                raise EOFError
            select.select([self.socket], [], [], left)
            self.fill()
        raise AssertionError

    def answer(self, ident: Optional[int] = None) -> Json:
        """Return the next answer, or that to one command."""
        while True:
            message = self.receive()
            if 'event' not in message and message.get('id') == ident:
                return message

    def execute(self, command: str, arguments: Optional[Json] = None) -> Json:
        """Execute a command, and return its answer."""
        self.send(command, arguments)
        return self.answer()

    def barrier(self) -> None:
        """
        Wait until all that was sent has been read and queued.

        A command out-of-band is answered as soon as it is read.  One that
        does not exist touches nothing.
        """
        self.send('barrier', ident=0, oob=True)
        self.answer(0)

    def rest(self) -> List[Json]:
        """Return all that is still to come until the end."""
        messages = []
        with contextlib.suppress(EOFError):
            while True:
                messages.append(self.receive())
        return messages

    def close(self) -> None:
        """Go away."""
        self.socket.close()


class Program:
    """A process that has monitors."""

    def __init__(self, binary: str, folder: str, monitors: int = 2,
                 arguments: Optional[List[str]] = None) -> None:
        self.binary = binary
        self.daemon = os.path.basename(binary) == 'qemu-storage-daemon'
        self.log = os.path.join(folder, 'log')
        self.paths = [os.path.join(folder, f'm{i}') for i in range(monitors)]
        self.command = [binary]
        dash = '--' if self.daemon else '-'
        for i, path in enumerate(self.paths):
            self.command += [
                f'{dash}chardev', f'socket,id=m{i},path={path},server=on,'
                'wait=off']
            self.command += (['--monitor', f'chardev=m{i}'] if self.daemon
                             else ['-mon', f'chardev=m{i},mode=control'])
        if not self.daemon:
            self.command += ['-accel', 'qtest', '-nodefaults', '-display',
                             'none']
            if '-machine' not in (arguments or []):
                self.command += ['-machine', 'none']
        self.command += arguments or []
        self.pid = 0
        self.process: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> None:
        """Start the program."""
        with open(self.log, 'wb') as log:
            self.process = subprocess.Popen(  # pylint: disable=R1732
                self.command, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log)
        self.pid = self.process.pid

    def connect(self, number: int = 0, oob: bool = True) -> Client:
        """Connect to a monitor."""
        return Client(self, self.paths[number], oob)

    def alive(self) -> bool:
        """Tell whether it goes on running."""
        if self.process:
            return self.process.poll() is None
        return os.path.exists(f'/proc/{self.pid}')

    def kill(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> Optional[int]:
        """Return the exit status, or None if it goes on running."""
        assert self.process
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def asleep(self) -> None:
        """Wait until the main thread has nothing to do."""
        before = ['']
        for _ in deadline(PATIENCE, 'the main thread does not sleep'):
            with open(f'/proc/{self.pid}/task/{self.pid}/status',
                      encoding='ascii') as stream:
                now = re.findall(r'^State:.*|\w*ctxt_switches.*', stream.read(),
                                 re.MULTILINE)
            if now == before and 'S (sleeping)' in now[0]:
                return
            before = now
            time.sleep(0.05)

    def cpu(self) -> float:
        """Return the time that the main thread has used, in seconds."""
        with open(f'/proc/{self.pid}/task/{self.pid}/stat',
                  encoding='ascii') as stream:
            fields = stream.read().rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) / HERTZ

    def output(self) -> str:
        """Return what it has written."""
        with open(self.log, encoding='utf8', errors='replace') as stream:
            return stream.read()

    def end(self) -> None:
        """End it in any case."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Debugger:
    """gdb in non-stop mode: a thread that stops does not stop the others."""

    def __init__(self, program: Program, stdin: str = '/dev/null') -> None:
        self.program = program
        self.stopped: Dict[int, str] = {}
        self.exit_code: Optional[int] = None
        self.token = 0
        self.buffer = b''
        self.process = subprocess.Popen(
            ['gdb', '-nx', '-q', '--interpreter=mi3', program.binary],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL)
        assert self.process.stdin and self.process.stdout
        os.set_blocking(self.process.stdout.fileno(), False)
        for command in ('mi-async on', 'non-stop on', 'confirm off',
                        'disable-randomization off', 'pagination off',
                        'debuginfod enabled off'):
            self.run(f'-gdb-set {command}')
        self.console('handle all nostop noprint pass')
        self.console('handle SIGTRAP SIGINT stop nopass')
        words = ' '.join(f"'{word}'" for word in program.command[1:])
        self.run(f'-exec-arguments {words} <{stdin} >{program.log} 2>&1')
        self.run('-exec-run')
        for _ in deadline(PATIENCE, 'the program does not start'):
            if program.pid:
                break
            self.pump()

    @staticmethod
    def refused(program: Program) -> Optional[str]:
        """Return why gdb cannot be used, None if it can."""
        try:
            found = subprocess.run(
                ['gdb', '-nx', '-q', '-batch', '-ex', 'break main', '-ex',
                 'run', '-ex', 'info symbol $pc', '-ex', 'kill',
                 program.binary], capture_output=True, check=False,
                stdin=subprocess.DEVNULL, encoding='utf8', timeout=PATIENCE)
        except FileNotFoundError:
            return 'there is no gdb'
        if re.search(r'^main\b.* in section', found.stdout, re.MULTILINE):
            return None
        why = (found.stderr.strip().splitlines() or ['gdb does not work'])[-1]
        return f'gdb cannot trace: {why}'

    def pump(self, timeout: float = 0.2) -> Optional[str]:
        """Read one line of gdb's, and note what it tells."""
        assert self.process.stdout
        if b'\n' not in self.buffer:
            if select.select([self.process.stdout], [], [], timeout)[0]:
                data = self.process.stdout.read()
                if data == b'':
                    raise EOFError('gdb has ended')
                self.buffer += data or b''
        if b'\n' not in self.buffer:
            return None
        text, _, self.buffer = self.buffer.partition(b'\n')
        line = text.decode(errors='replace')
        if match := re.match(r'=thread-group-started,.*pid="(\d+)"', line):
            self.program.pid = int(match[1])
        elif match := re.match(r'=thread-group-exited,(.*)', line):
            code = re.search(r'exit-code="(\d+)"', match[1])
            self.exit_code = int(code[1], 8) if code else -1
        elif line.startswith('*stopped'):
            if match := re.search(r'thread-id="(\d+)"', line):
                self.stopped[int(match[1])] = line
        elif match := re.match(r'\*running,thread-id="(\d+)"', line):
            self.stopped.pop(int(match[1]), None)
        return line

    def run(self, command: str) -> str:
        """Give a command, and return its result."""
        assert self.process.stdin
        self.token += 1
        self.process.stdin.write(f'{self.token}{command}\n'.encode())
        self.process.stdin.flush()
        for _ in deadline(PATIENCE, f'gdb: no answer to {command}'):
            line = self.pump()
            if line and line.startswith(f'{self.token}^'):
                if '^error' in line:
                    raise RuntimeError(f'gdb: {command}: {line}')
                return line
        raise AssertionError

    def console(self, command: str) -> None:
        """Give a command of the command line."""
        self.run(f'-interpreter-exec console "{command}"')

    def hold(self, thread: str, place: str) -> None:
        """Have a thread (MAIN or OTHERS) stop when it comes there."""
        self.run(f'-break-insert -c "{thread}" {place}')

    def held(self) -> int:
        """
        Wait until a thread has stopped, and return its number.

        No other one will stop from then on.
        """
        for _ in deadline(PATIENCE, 'no thread stops'):
            for thread in self.stopped:
                self.run('-break-delete')
                return thread
            self.pump()
        raise AssertionError

    def release(self, thread: int = 1) -> None:
        """Have the thread go on."""
        self.stopped.pop(thread, None)
        self.run(f'-exec-continue --thread {thread}')

    def interrupt(self) -> None:
        """Stop the main thread where it is."""
        self.run('-exec-interrupt --thread 1')
        self.held()

    def call(self, expression: str, thread: int = 1) -> None:
        """Have a thread, which is stopped, call something."""
        self.run(f'-data-evaluate-expression --thread {thread} --frame 0 '
                 f'"{expression}"')

    def frames(self) -> List[str]:
        """Return the functions of the main thread, the innermost first."""
        self.interrupt()
        return re.findall(r'func="(\w+)"', self.run(
            '-stack-list-frames --thread 1'))

    def wait(self, timeout: float) -> Optional[int]:
        """Return the exit status, or None if it goes on running."""
        try:
            for left in deadline(timeout, 'it goes on running'):
                if self.exit_code is not None:
                    return self.exit_code
                self.pump(left)
        except Timeout:
            pass
        return self.exit_code

    def end(self) -> None:
        """End gdb and the program in any case."""
        if self.program.pid and self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.program.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
