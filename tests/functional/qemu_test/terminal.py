# SPDX-License-Identifier: GPL-2.0-or-later
"""
A program on a terminal, and what the terminal shows

The terminal is a VT52: it knows next to nothing, so that curses does it all
with the few sequences that this file understands.
"""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from typing import Any, Dict, List, Optional

# How long things may take that wait for nothing, in seconds
PATIENCE = 30.0


class Screen:
    """What a VT52 shows."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rest = b''
        self.unknown: List[bytes] = []
        self.resize(rows, columns)

    def resize(self, rows: int, columns: int) -> None:
        """Forget it all: the program is to draw it again."""
        self.rows, self.columns = rows, columns
        self.lines = [bytearray(b' ' * columns) for _ in range(rows)]
        self.row = self.column = 0

    def text(self) -> str:
        """Return all lines."""
        return '\n'.join(line.decode('ascii', 'replace').rstrip()
                         for line in self.lines)

    def move(self, row: int, column: int) -> None:
        """Move the cursor, at most to the edge."""
        self.row = min(max(row, 0), self.rows - 1)
        self.column = min(max(column, 0), self.columns - 1)

    def erase(self, whole: bool) -> None:
        """Erase from the cursor to the end of its line, or of the screen."""
        line = self.lines[self.row]
        line[self.column:] = b' ' * (self.columns - self.column)
        if whole:
            for row in range(self.row + 1, self.rows):
                self.lines[row] = bytearray(b' ' * self.columns)

    def feed(self, data: bytes) -> None:
        """Show what the program has written."""
        data = self.rest + data
        at = 0
        while at < len(data):
            byte = data[at:at + 1]
            size = 1
            if byte == b'\x1b':
                kind = data[at + 1:at + 2]
                size = 4 if kind == b'Y' else 2
                if len(data) - at < size:
                    break
                self.escape(kind, data[at + 2:at + size])
            elif byte == b'\r':
                self.column = 0
            elif byte == b'\n':
                if self.row == self.rows - 1:
                    self.lines.append(bytearray(b' ' * self.columns))
                    del self.lines[0]
                self.move(self.row + 1, self.column)
            elif byte == b'\b':
                self.move(self.row, self.column - 1)
            elif byte == b'\t':
                self.move(self.row, (self.column // 8 + 1) * 8)
            elif byte >= b' ':
                self.lines[self.row][self.column:self.column + 1] = byte
                self.move(self.row, self.column + 1)
            elif byte != b'\a':
                self.unknown.append(byte)
            at += size
        self.rest = data[at:]

    def escape(self, kind: bytes, more: bytes) -> None:
        """Do what the sequence stands for."""
        moves = {b'A': (-1, 0), b'B': (1, 0), b'C': (0, 1), b'D': (0, -1)}
        if kind == b'Y':
            self.move(more[0] - 32, more[1] - 32)
        elif kind == b'H':
            self.move(0, 0)
        elif kind in moves:
            down, right = moves[kind]
            self.move(self.row + down, self.column + right)
        elif kind in b'JK':
            self.erase(kind == b'J')
        elif kind == b'I':
            if self.row == 0:
                self.lines.insert(0, bytearray(b' ' * self.columns))
                del self.lines[-1]
            self.move(self.row - 1, self.column)
        elif kind not in b'=>FG':
            self.unknown.append(b'\x1b' + kind)


class Terminal:
    """A program that runs on a terminal of its own."""

    def __init__(self, command: List[str], rows: int = 24,
                 columns: int = 80, kind: str = 'vt52',
                 **environment: str) -> None:
        self.screen = Screen(rows, columns)
        self.raw = b''
        self.master, slave = pty.openpty()
        self.slave = slave
        self.set_size(rows, columns)
        self.before = termios.tcgetattr(slave)
        env: Dict[str, str] = {**os.environ, 'TERM': kind, **environment}
        for name in ('LINES', 'COLUMNS'):
            env.pop(name, None)
        # A new session has as its terminal the first one that it opens
        # pylint: disable-next=consider-using-with
        self.process = subprocess.Popen(
            ['sh', '-c', 'exec <"$0" >"$0" 2>&1; exec "$@"',
             os.ttyname(slave), *command], env=env, start_new_session=True)
        self.pid = self.process.pid
        self.code: Optional[int] = None

    def set_size(self, rows: int, columns: int) -> None:
        """Change the size, which the program is told of."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ,
                    struct.pack('HHHH', rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of a screen that is empty from then on."""
        self.read(0.1)
        self.screen.resize(rows, columns)
        self.set_size(rows, columns)

    def read(self, timeout: float) -> None:
        """Read what comes within that time."""
        end = time.monotonic() + timeout
        if self.master < 0:
            time.sleep(timeout)
            return
        while select.select([self.master], [], [],
                            max(end - time.monotonic(), 0))[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            self.raw += data
            self.screen.feed(data)

    def send(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def wait_for(self, pattern: str, timeout: float = PATIENCE,
                 absent: bool = False) -> str:
        """Wait until the screen shows that, or no longer; return it."""
        end = time.monotonic() + timeout
        while True:
            self.read(0.05)
            text = self.screen.text()
            if bool(re.search(pattern, text, re.MULTILINE)) != absent:
                return text
            if time.monotonic() > end or self.ended():
                said = text if text.strip() else self.raw[-500:]
                raise AssertionError(
                    f'{pattern!r} is {"still" if absent else "not"} shown'
                    f' (code {self.code}):\n{said!s}')

    def wait_raw(self, pattern: bytes, timeout: float = PATIENCE) -> None:
        """Wait until the program has written that."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.raw):
            if time.monotonic() > end or self.ended():
                raise AssertionError(f'{pattern!r} is not in {self.raw!r}')
            self.read(0.05)

    def ended(self) -> bool:
        """Tell whether the program has ended."""
        self.code = self.process.poll()
        return self.code is not None

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit code, once the program has ended."""
        end = time.monotonic() + timeout
        while not self.ended():
            self.read(0.05)
            if time.monotonic() > end:
                raise AssertionError(f'still running:\n{self.screen.text()}')
        self.read(0.1)
        assert self.code is not None
        return self.code

    def sane(self) -> bool:
        """Tell whether the terminal is as it was before the program."""
        after: List[Any] = termios.tcgetattr(self.slave)
        return after == self.before

    def hang_up(self) -> None:
        """Take the terminal away."""
        os.close(self.slave)
        os.close(self.master)
        self.master = self.slave = -1

    def close(self) -> None:
        """End it all."""
        if not self.ended():
            self.process.kill()
            self.process.wait()
        if self.master >= 0:
            self.hang_up()
