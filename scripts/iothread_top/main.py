# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line"""

import argparse
import asyncio
import json
import os
from pathlib import Path
import shutil
import signal
import sys
import time
from typing import List

from .live import Live, screen, unusable
from .svg import Recording, picture
from .text import as_json, clean, report
from .vm import UP, Vm

PROGRAM = 'iothread-top'
SVG_SAMPLES = 60


class Failure(Exception):
    """What went wrong, as a sentence for the user."""


def seconds(text: str) -> float:
    """Return a time that is worth waiting for."""
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError('not within 0.05 and 3600 seconds')
    return value


def positive(text: str) -> int:
    """Return a number of samples."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError('not a number above 0')
    return value


def parser() -> argparse.ArgumentParser:
    """Return what knows the options."""
    made = argparse.ArgumentParser(
        prog=PROGRAM, description='Show how busy the event loops of QEMU are'
        ' (IOThreads and the main loop), and who uses them.  Only asks, and'
        ' changes nothing.',
        epilog='Exit code: 0; 1 if a QEMU could not be shown in the end;'
        ' 2 for wrong options.')
    made.add_argument('socket', nargs='+', help='QMP monitor of a QEMU or a'
                      ' storage daemon: the path of its socket, or HOST:PORT')
    made.add_argument('-1', '--once', action='store_true',
                      help='print one table (or -n of them), and end')
    made.add_argument('--json', action='store_true',
                      help='print one JSON object per line and sample;'
                      ' with --once one of them')
    made.add_argument('--svg', metavar='FILE', type=Path,
                      help='record -n samples (or until interrupted), and'
                      ' draw them')
    made.add_argument('-d', '--delay', metavar='SECONDS', type=seconds,
                      default=1.0, help='time between samples (default: 1)')
    made.add_argument('-n', '--count', metavar='COUNT', type=positive,
                      help=f'number of samples (default: 1 for --once,'
                      f' {SVG_SAMPLES} for --svg, else no limit)')
    made.add_argument('-s', '--sort', default='busy',
                      choices=['busy', 'poll', 'cpu', 'events', 'name'],
                      help='order of the threads (default: busy)')
    made.add_argument('--no-holders', action='store_true',
                      help='do not show who uses the threads')
    made.add_argument('--timeout', metavar='SECONDS', type=seconds,
                      default=5.0,
                      help='how long to wait for QEMU (default: 5)')
    return made


def complain(text: str) -> None:
    """Say it to the user."""
    print(f'{PROGRAM}: {clean(text)}', file=sys.stderr, flush=True)


def complain_about(vms: List[Vm]) -> None:
    """Say what is wrong with those that are not there."""
    for vm in vms:
        if vm.state != UP:
            name = vm.address if vm.name == vm.address \
                else f'{vm.name} ({vm.address})'
            complain(f'{name}: {vm.state}: {vm.why}')


async def update(vms: List[Vm]) -> None:
    """Ask all, at the same time, and wait for all."""
    await asyncio.gather(*(vm.update() for vm in vms))


def write_picture(path: Path, recording: Recording) -> None:
    """Write the picture, all of it or nothing."""
    if recording.empty:
        raise Failure('there is nothing to draw')
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        if path.exists() and not path.is_file():
            # /dev/stdout
            path.write_text(picture(recording), encoding='utf-8')
            return
        temporary.write_text(picture(recording), encoding='utf-8')
        temporary.replace(path)
    except OSError as error:
        raise Failure(f'{path}: {error.strerror}') from None
    finally:
        temporary.unlink(missing_ok=True)


async def print_samples(args: argparse.Namespace, vms: List[Vm]) -> int:
    """Print, or draw, sample after sample."""
    recording = Recording()
    count = args.count
    if count is None and (args.once or args.svg):
        count = 1 if args.once else SVG_SAMPLES
    if args.svg and sys.stderr.isatty():
        complain(f'{count} samples of {args.delay:g} s; Ctrl-C ends early')
    recording.add(vms)
    start, taken = time.monotonic(), 0
    try:
        while count is None or taken < count:
            taken += 1
            await asyncio.sleep(start + taken * args.delay
                                - time.monotonic())
            await update(vms)
            recording.add(vms)
            if args.json:
                print(json.dumps(as_json(vms)), flush=True)
            elif args.once:
                if taken > 1:
                    print()
                width = shutil.get_terminal_size((120, 24)).columns
                print(report(vms, max(width, 20), sort=args.sort,
                             holders=not args.no_holders), flush=True)
    except asyncio.CancelledError:
        if not args.svg:
            raise
    if args.svg:
        write_picture(args.svg, recording)
    complain_about(vms)
    return 0 if all(vm.state == UP for vm in vms) else 1


async def show(args: argparse.Namespace, vms: List[Vm]) -> int:
    """Show them on the terminal."""
    with screen() as window:
        await Live(window, vms, args.delay, args.sort,
                   not args.no_holders).run(args.count)
    complain_about(vms)
    return 0 if all(vm.state == UP for vm in vms) else 1


async def run(args: argparse.Namespace, vms: List[Vm]) -> int:
    """Do what the options say; return the exit code."""
    try:
        await update(vms)
        if not any(vm.state == UP for vm in vms):
            complain_about(vms)
            return 1
        if args.once or args.json or args.svg:
            return await print_samples(args, vms)
        return await show(args, vms)
    finally:
        await asyncio.gather(*(vm.close() for vm in vms))


async def guarded(args: argparse.Namespace, vms: List[Vm]) -> int:
    """Have signals unwind it all, so that the terminal is left sane."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(run(args, vms))
    ended = 0

    def end(number: int) -> None:
        nonlocal ended
        ended = number
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        return 128 + ended


def main() -> int:
    """Return the exit code."""
    made = parser()
    args = made.parse_args()
    try:
        vms = [Vm(address, args.timeout)
               for address in dict.fromkeys(args.socket)]
    except ValueError as error:
        made.error(str(error))
    if not (args.once or args.json or args.svg):
        why = unusable()
        if why:
            complain(f'{why}: use --once, --json or --svg')
            return 1
    for stream in (sys.stdout, sys.stderr):
        # What their character set lacks stays readable
        stream.reconfigure(errors='backslashreplace')  # type: ignore
    try:
        return asyncio.run(guarded(args, vms))
    except Failure as failure:
        complain(str(failure))
        return 1
    except BrokenPipeError:
        # Nobody reads on: nothing is wrong, and nothing is left to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
