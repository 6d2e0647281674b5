# SPDX-License-Identifier: GPL-2.0-or-later
"""What every part of the command uses: paths, errors, processes, progress."""
from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence, TextIO


class Fail(Exception):
    """An error that a person can act on: one sentence with the way out."""


@dataclass(frozen=True)
class Repo:
    """The repository, and the paths of all that is made from it."""
    root: Path

    @staticmethod
    def find() -> "Repo":
        """FORK_ROOT lets the tests work on a repository of their own."""
        root = os.environ.get("FORK_ROOT")
        here = Path(root) if root else Path(__file__).parent.parent.parent
        return Repo(here.resolve())

    @property
    def build(self) -> Path:
        return self.root / "build"

    @property
    def stock(self) -> Path:
        return self.build / "stock" / "src"

    @property
    def work(self) -> Path:
        """The work tree: the base with the series on it."""
        return self.build / "patched" / "src"

    @property
    def patches(self) -> Path:
        return self.root / "patches"

    @property
    def log(self) -> Path:
        return self.build / "log"

    @property
    def guest(self) -> Path:
        return self.build / "guest"


# --- Output ---------------------------------------------------------------

_aside = False


def speak_aside() -> None:
    """From now on to stderr: stdout belongs to the program that is run."""
    global _aside
    _aside = True


def stream() -> TextIO:
    return sys.stderr if _aside else sys.stdout


def say(text: str) -> None:
    print(text, file=stream(), flush=True)


class Progress:
    """One line per phase; on a terminal a single line that is updated."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.start = time.monotonic()
        self.tty = stream().isatty()
        self.tenth = 0
        if self.tty:
            self._draw("...")

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        line = f"{self.what} {text}"[:width]
        stream().write(f"\r\x1b[K{line}")
        stream().flush()

    def step(self, done: int, total: int) -> None:
        if self.tty:
            self._draw(f"{done}/{total}")
        elif total >= 100 and done * 10 // total > self.tenth:
            self.tenth = done * 10 // total
            say(f"{self.what} {done}/{total} ({self.tenth * 10} %)")

    def end(self, text: str = "done") -> None:
        if self.tty:
            stream().write("\r\x1b[K")
        say(f"{self.what} {text} ({time.monotonic() - self.start:.0f} s)")

    def drop(self) -> None:
        """Ends without a line of its own."""
        if self.tty:
            stream().write("\r\x1b[K")
            stream().flush()


# --- Processes ------------------------------------------------------------

# The kernel ends the child when this process dies, however it dies.
DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL")

_running: set[subprocess.Popen[bytes]] = set()


def kill(proc: subprocess.Popen[bytes]) -> None:
    """Ends a process that start() began, with all of its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(proc.pid, signal.SIGKILL)
    proc.wait()
    _running.discard(proc)


def kill_all() -> None:
    for proc in list(_running):
        kill(proc)


def guarded(cmd: Sequence[str | Path]) -> list[str]:
    words = [str(c) for c in cmd]
    return [*DIE_WITH_US, *words] if shutil.which("setpriv") else words


def tail(path: Path, lines: int = 30) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:])


def run_logged(cmd: Sequence[str | Path], log: Path, *,
               cwd: Path | None = None, env: Mapping[str, str] | None = None,
               timeout: float | None = None, append: bool = False,
               line: Callable[[str], None] | None = None) -> int:
    """Runs cmd with its output in log; line() sees each line of it.

    Returns the exit code; 124 when the time was over.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + timeout if timeout else None
    with open(log, "ab" if append else "wb") as out:
        if line is None:
            proc = subprocess.Popen(
                guarded(cmd), cwd=cwd, env=env, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT)
            _running.add(proc)
            try:
                proc.wait(timeout)
            except subprocess.TimeoutExpired:
                kill(proc)
                return 124
            except BaseException:
                kill(proc)
                raise
        else:
            proc = subprocess.Popen(
                guarded(cmd), cwd=cwd, env=env, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT)
            _running.add(proc)
            assert proc.stdout is not None
            try:
                for raw in proc.stdout:
                    out.write(raw)
                    line(raw.decode(errors="replace").rstrip("\n"))
                    if end and time.monotonic() > end:
                        kill(proc)
                        return 124
                proc.wait()
            except BaseException:
                kill(proc)
                raise
        _running.discard(proc)
        return proc.returncode


def step(what: str, cmd: Sequence[str | Path], log: Path, *,
         cwd: Path | None = None, env: Mapping[str, str] | None = None,
         timeout: float | None = None, append: bool = False,
         way_out: str = "") -> None:
    """A phase of the set-up: shows its line, fails with its log."""
    progress = Progress(f"{what}:")
    code = run_logged(cmd, log, cwd=cwd, env=env, timeout=timeout,
                      append=append)
    if code:
        progress.drop()
        raise Fail(failed(what, code, log, way_out))
    progress.end()


def failed(what: str, code: int, log: Path, way_out: str = "") -> str:
    print(tail(log), file=sys.stderr)
    why = "took too long" if code == 124 else f"failed with exit code {code}"
    return f"{what} {why}; the whole output is in {log}" + (
        f"; {way_out}" if way_out else "")


def capture(cmd: Sequence[str | Path], *, cwd: Path | None = None,
            env: Mapping[str, str] | None = None,
            timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A short command whose output is wanted; never raises for its code."""
    words = [str(c) for c in cmd]
    try:
        return subprocess.run(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", timeout=timeout, check=False)
    except (FileNotFoundError, PermissionError):
        return subprocess.CompletedProcess(words, 127, "", "not found")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", "took too long")


def foreground(cmd: Sequence[str | Path], *, cwd: Path | None = None,
               env: Mapping[str, str] | None = None) -> int:
    """Hands the terminal to cmd and returns its exit code.

    Ctrl-C is cmd's business then (a debugger wants it), not ours.
    """
    old = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        proc = subprocess.Popen(guarded(cmd), cwd=cwd, env=env)
        try:
            code = proc.wait()
        except BaseException:
            proc.kill()
            proc.wait()
            raise
    finally:
        signal.signal(signal.SIGINT, old)
    return code if code >= 0 else 128 - code


# --- Files ----------------------------------------------------------------

def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields NAME.partial, which becomes NAME if the block ends well."""
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(partial)
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(partial)
        raise


def write(path: Path, data: bytes | str) -> None:
    """Writes a file so that it is never seen half written."""
    with whole(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def need_space(path: Path, gib: float, what: str) -> None:
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free / 2**30
    if free < gib:
        raise Fail(f"{what} needs about {gib:g} GiB and {path} has "
                   f"{free:.1f} GiB free; make room, or put the repository "
                   "on a larger disk")


@contextlib.contextmanager
def lock(repo: Repo) -> Iterator[None]:
    """One set-up or build at a time; clears what an earlier one left."""
    path = repo.build / ".lock"
    try:
        repo.build.mkdir(exist_ok=True)
        handle = open(path, "a")
    except PermissionError:
        raise Fail(f"{repo.build} belongs to another user; run as that "
                   "user, or remove it") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another ./fork is at work here; waiting for it to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        for folder in (repo.build, repo.stock.parent, repo.work.parent,
                       repo.build / "cache"):
            for partial in folder.glob("*.partial"):
                remove(partial)
        yield


def slug(text: str) -> str:
    """A file name for a commit subject: its summary, without the area."""
    summary = text.split(": ", 1)[-1]
    return re.sub(r"[^a-z0-9]+", "-", summary.lower()).strip("-")[:50] \
        .strip("-") or "change"
