# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command lines of iothread-top and iothread-balance share"""

import argparse
import asyncio
import os
import signal
import sys
from typing import Callable, Coroutine, List

from .monitor import UP
from .text import clean
from .vm import Vm


def seconds(text: str) -> float:
    """Return a time that is worth waiting for."""
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError('not within 0.05 and 3600 seconds')
    return value


def positive(text: str) -> int:
    """Return a number of something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError('not a number above 0')
    return value


def complain(text: str) -> None:
    """Say it to the user."""
    print(f'{os.path.basename(sys.argv[0])}: {clean(text)}', file=sys.stderr,
          flush=True)


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


def connections(parser: argparse.ArgumentParser,
                args: argparse.Namespace) -> List[Vm]:
    """Return the QEMUs that the user has named."""
    try:
        return [Vm(address, args.timeout)
                for address in dict.fromkeys(args.socket)]
    except ValueError as error:
        parser.error(str(error))


async def guarded(work: Coroutine[None, None, int]) -> int:
    """Have signals unwind it all, so that nothing is left half done."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
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


def run(work: Callable[[], Coroutine[None, None, int]]) -> int:
    """Do the work; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # What their character set lacks stays readable
        stream.reconfigure(errors='backslashreplace')  # type: ignore
    try:
        return asyncio.run(guarded(work()))
    except BrokenPipeError:
        # Nobody reads on: nothing is wrong, and nothing is left to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
