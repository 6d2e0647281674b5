# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line"""

import argparse
import asyncio
import json
import os
from pathlib import Path
import shutil
import sys
import time
from typing import List

from . import command
from .command import (complain, complain_about, connections, positive, seconds,
                      update)
from .live import Live, screen, unusable
from .monitor import UP
from .svg import Recording, picture
from .text import as_json, report
from .vm import Vm

PROGRAM = 'iothread-top'
SVG_SAMPLES = 60


class Failure(Exception):
    """What went wrong, as a sentence for the user."""


def parser() -> argparse.ArgumentParser:
    """Return what knows the options."""
    made = argparse.ArgumentParser(
        prog=PROGRAM, description='Show how busy the event loops of QEMU are'
        ' (IOThreads and the main loop), and who uses them.  The view can move'
        ' devices; all else only asks.',
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


def main() -> int:
    """Return the exit code."""
    made = parser()
    args = made.parse_args()
    vms = connections(made, args)
    if not (args.once or args.json or args.svg):
        why = unusable()
        if why:
            complain(f'{why}: use --once, --json or --svg')
            return 1
    try:
        return command.run(lambda: run(args, vms))
    except Failure as failure:
        complain(str(failure))
        return 1
