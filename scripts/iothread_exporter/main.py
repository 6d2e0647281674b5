# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line, the HTTP server and the file"""

import argparse
import asyncio
import contextlib
import gc
import glob
import os
import signal
import sys
import threading
from typing import Iterator, List, Tuple

try:
    from prometheus_client import (CollectorRegistry, ProcessCollector,
                                   generate_latest, start_http_server,
                                   write_to_textfile)
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector
except ImportError as problem:
    sys.exit(f'iothread-exporter: {problem}: it needs prometheus_client'
             ' (python3-prometheus-client)')

# pylint: disable=wrong-import-position
from iothread_top.main import seconds
from iothread_top.monitor import parse_address
from iothread_top.text import clean

from .fleet import Fleet
from .metrics import KINDS, metrics

PROGRAM = 'iothread-exporter'
ENDS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def listen(text: str) -> Tuple[str, int]:
    """Return where to listen; a port alone is one of this host only."""
    host, _, port = text.rpartition(':')
    if not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is no [HOST:]PORT")
    return host.strip('[]') or '127.0.0.1', int(port)


def address(text: str) -> str:
    """Return a socket or a pattern."""
    try:
        parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def parser() -> argparse.ArgumentParser:
    """Return what knows the options."""
    made = argparse.ArgumentParser(
        prog=PROGRAM, description='Tell Prometheus how busy the event loops'
        ' of QEMUs are (IOThreads and the main loop), and who uses them.'
        '  Only asks, and changes nothing.')
    made.add_argument('socket', nargs='+', type=address, help='QMP monitor of'
                      ' a QEMU or a storage daemon: the path of its socket,'
                      ' or a pattern of paths (in quotes), or HOST:PORT')
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument('--listen', metavar='[HOST:]PORT', type=listen,
                      help='serve them over HTTP; HOST is 127.0.0.1 by'
                      ' default')
    what.add_argument('--textfile', metavar='FILE', help='write them to a'
                      " file for node_exporter's textfile collector")
    what.add_argument('-1', '--once', action='store_true',
                      help='print them once, and end')
    made.add_argument('--interval', metavar='SECONDS', type=seconds,
                      default=15.0, help='time between two writes of the'
                      ' file (default: 15)')
    made.add_argument('--timeout', metavar='SECONDS', type=seconds,
                      default=2.0, help='how long to wait for QEMUs that do'
                      ' not answer (default: 2)')
    return made


def complain(text: str) -> None:
    """Say it to the user."""
    print(f'{PROGRAM}: {clean(text)}', file=sys.stderr, flush=True)


class QemuCollector(Collector):
    """What prometheus_client asks for metrics, from any of its threads."""

    def __init__(self, fleet: Fleet,
                 loop: asyncio.AbstractEventLoop) -> None:
        self._fleet = fleet
        self._loop = loop

    def describe(self) -> List[Metric]:
        """Return the families, without asking any QEMU."""
        return [kind.make() for kind in KINDS.values()]

    def collect(self) -> List[Metric]:
        """Ask all QEMUs, and return what they tell."""
        reports = asyncio.run_coroutine_threadsafe(
            self._fleet.ask(), self._loop).result()
        return metrics(reports, self._fleet.seconds)


@contextlib.contextmanager
def asking(args: argparse.Namespace) -> Iterator[CollectorRegistry]:
    """Have an event loop that asks QEMUs, beside the caller's thread."""
    fleet = Fleet(args.socket, args.timeout, lambda *news: complain(
        ': '.join(word for word in news if word)))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    if args.listen:
        # The first scrape shall find connections; it may join in this
        asyncio.run_coroutine_threadsafe(fleet.ask(), loop)
    registry = CollectorRegistry()
    registry.register(QemuCollector(fleet, loop))
    ProcessCollector(registry=registry)
    try:
        yield registry
    finally:
        asyncio.run_coroutine_threadsafe(fleet.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def serve(where: Tuple[str, int], registry: CollectorRegistry) -> None:
    """Serve over HTTP until a signal."""
    host, port = where
    server, _ = start_http_server(port, host, registry)
    host = f'[{host}]' if ':' in host else host
    complain(f'serving at http://{host}:{server.server_port}/metrics')
    signal.sigwait(ENDS)


def write(path: str, interval: float, registry: CollectorRegistry) -> None:
    """Write the file again and again until a signal."""
    try:
        while True:
            try:
                write_to_textfile(path, registry)
            except OSError as error:
                complain(f'{path}: {error.strerror}')
                for left in glob.glob(f'{glob.escape(path)}.{os.getpid()}.*'):
                    os.unlink(left)
            if signal.sigtimedwait(ENDS, interval):
                return
    finally:
        # Nobody shall take it for what is now
        with contextlib.suppress(OSError):
            os.unlink(path)


def main() -> int:
    """Return the exit code."""
    args = parser().parse_args()
    # Each scrape makes many objects and drops them; hardly any are in cycles
    gc.set_threshold(100_000)
    if not args.once:
        # For all threads; they are waited for
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    try:
        with asking(args) as registry:
            if args.once:
                sys.stdout.buffer.write(generate_latest(registry))
                sys.stdout.buffer.flush()
            elif args.listen:
                serve(args.listen, registry)
            else:
                write(args.textfile, args.interval, registry)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        complain(error.strerror or str(error))
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0
