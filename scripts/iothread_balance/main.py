# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line"""

import argparse
import asyncio
import contextlib
import json
import time
from typing import Any, Dict, Iterator, List, Optional

from iothread_top import command
from iothread_top.command import (complain_about, connections, positive,
                                  seconds, update)
from iothread_top.load import Json
from iothread_top.text import clean
from iothread_top.monitor import REFUSED, UP
from iothread_top.vm import NotMoved, Vm

from .plan import Keeper, Limits, Move, Plan, measure

DEFAULTS = Limits()


def percentage(text: str) -> float:
    """Return a share of a thread's time."""
    value = float(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError('not within 1 and 100 percent')
    return value


def parser() -> argparse.ArgumentParser:
    """Return what knows the options."""
    made = argparse.ArgumentParser(
        prog='iothread-balance', description='Move virtio disks of running'
        ' QEMUs from IOThreads that are full to IOThreads that have time.',
        epilog='Exit code: 0; 1 if a QEMU could not be asked in the end, or'
        ' a move of --once was refused; 2 for wrong options.')
    made.add_argument('socket', nargs='+', help='QMP monitor of a QEMU: the'
                      ' path of its socket, or HOST:PORT')
    how = made.add_mutually_exclusive_group()
    how.add_argument('-n', '--dry-run', action='store_true',
                     help='print what would be moved, and end')
    how.add_argument('-1', '--once', action='store_true',
                     help='move what is to be moved now, and end')
    made.add_argument('--json', action='store_true',
                      help='print JSON: one object, or one per line')
    made.add_argument('-d', '--delay', metavar='SECONDS', type=seconds,
                      default=5.0, help='time between samples (default: 5)')
    made.add_argument('--full', metavar='PERCENT', type=percentage,
                      default=DEFAULTS.full, help='a thread that is less busy'
                      ' keeps its devices (default: %(default)g)')
    made.add_argument('--gain', metavar='POINTS', type=percentage,
                      default=DEFAULTS.gain, help='how much less busy a thread'
                      ' has to become (default: %(default)g)')
    made.add_argument('--samples', metavar='COUNT', type=positive,
                      default=DEFAULTS.samples, help='so many samples in a row'
                      ' have to find it so (default: %(default)s)')
    made.add_argument('--moves', metavar='COUNT', type=positive,
                      default=DEFAULTS.moves, help='most moves of a QEMU per'
                      ' minute (default: %(default)s)')
    made.add_argument('--rest', metavar='SECONDS', type=seconds,
                      default=DEFAULTS.rest, help='how long a device stays'
                      ' after a move (default: %(default)g)')
    made.add_argument('--retry', metavar='SECONDS', type=seconds,
                      default=DEFAULTS.retry, help='how long it stays after'
                      ' one that was refused (default: %(default)g)')
    made.add_argument('--keep', metavar='NAME', action='append', default=[],
                      help='leave that device, or IOThread, alone')
    made.add_argument('--timeout', metavar='SECONDS', type=seconds,
                      default=5.0,
                      help='how long to wait for a QEMU (default: 5)')
    return made


def share(value: Optional[float]) -> str:
    """Return a share of the time."""
    return '-' if value is None else f'{value:.1f}'


def move_json(move: Move) -> Json:
    """Return what is moved where."""
    return {'device': move.name, 'qom-path': move.device,
            'from': move.source, 'to': move.target,
            'load-percent': round(move.load, 3)}


class Balancer:
    """Takes care of one QEMU."""

    def __init__(self, vm: Vm, args: argparse.Namespace) -> None:
        self.vm = vm
        self.args = args
        self.keeper = Keeper(Limits(
            args.full, args.gain, 1 if args.once else args.samples,
            args.moves, args.rest, args.retry, args.keep))
        self.plan = Plan()
        # For each move that was tried: how it ended, nothing if well
        self.results: Dict[Move, str] = {}
        self.measured: Dict[str, float] = {}
        # Which state was printed last
        self.said = ''

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have what fails here be the end of this QEMU's balance only."""
        try:
            yield
        except OSError:
            # It cannot be printed
            raise
        except Exception as error:  # pylint: disable=broad-except
            # This program's fault, on one QEMU's account: not all's
            self.vm.state, self.vm.why = REFUSED, repr(error)
            self.plan = Plan()

    # --- Again and again -------------------------------------------------

    def log(self, event: str, text: str, **facts: Any) -> None:
        """Print what has happened."""
        now = time.time()
        if self.args.json:
            print(json.dumps({
                'time': round(now, 3), 'name': self.vm.name,
                'address': self.vm.address, 'event': event, **facts}),
                flush=True)
        else:
            when = time.strftime('%F %T', time.localtime(now))
            print(clean(f'{when} {self.vm.name}: {text}'), flush=True)

    def tell(self) -> None:
        """Print the state if it is another one."""
        state = f'{self.vm.state} {self.vm.why}'.strip()
        if state != self.said:
            self.log('state', state, state=self.vm.state,
                     message=self.vm.why or None)
            self.said = state

    async def watch(self) -> None:
        """Look after the QEMU until it turns out that it cannot be."""
        with self.alone():
            await self._watch()
        self.tell()
        await self.vm.close()

    async def _watch(self) -> None:
        moved = False
        while self.vm.state != REFUSED:
            start = time.monotonic()
            await self.vm.update()
            self.tell()
            if self.vm.state == UP:
                self.look()
                if moved:
                    self.log('load', 'now ' + ', '.join(
                        f'{name} {share(busy)} %' for name, busy
                        in self.plan.before.items()), threads=self.plan.before)
                moved = await self.act()
            await asyncio.sleep(start + self.args.delay
                                - time.monotonic())

    # --- One time ----------------------------------------------------------

    def look(self) -> None:
        """Make a plan of the last sample."""
        self.plan = self.keeper.plan(measure(self.vm.threads),
                                     time.monotonic())

    async def act(self, quiet: bool = False) -> bool:
        """Move what is due; tell whether anything has been moved."""
        moved = False
        busy = dict(self.plan.before)
        for move in self.keeper.due(self.plan, time.monotonic()):
            # What was refused has left no room for what comes after it
            if busy[move.target] + move.load >= busy[move.source]:
                continue
            what = f'{move.name} from {move.source} to {move.target}'
            start = time.monotonic()
            try:
                await self.vm.move(move.device, move.source, move.target)
            except NotMoved as error:
                self.results[move] = str(error)
                event, text = 'refused', f'cannot move {what}: {error}'
            else:
                self.results[move] = ''
                event, moved = 'moved', True
                busy[move.source] -= move.load
                busy[move.target] += move.load
                text = (f'moved {what}; expected: ' + ', '.join(
                    f'{name} {share(self.plan.before[name])} ->'
                    f' {share(self.plan.after[name])} %'
                    for name in (move.source, move.target)))
            now = time.monotonic()
            self.keeper.tried(move, event == 'moved', now)
            if not quiet:
                self.log(event, text, **move_json(move),
                         seconds=round(now - start, 6),
                         message=self.results[move] or None,
                         before=self.plan.before, expected=self.plan.after)
            if self.vm.state != UP:
                self.keeper.lost(now)
                break
        return moved

    async def once(self, move: bool) -> bool:
        """Make a plan, and carry it out; tell whether that moved anything."""
        with self.alone():
            self.look()
            return move and await self.act(quiet=True)
        return False

    def note_load(self) -> None:
        """Take note of the load after the moves."""
        with self.alone():
            self.measured = {thread.name: thread.busy for thread
                             in measure(self.vm.threads)}

    def as_json(self) -> Json:
        """Return the plan, and what has come of it."""
        plan, vm = self.plan, self.vm
        return {
            'name': vm.name, 'address': vm.address, 'state': vm.state,
            'message': vm.why or None,
            'threads': [{'id': name, 'busy-percent': round(busy, 3),
                         'expected-percent': round(plan.after[name], 3),
                         'measured-percent': None if name not in self.measured
                         else round(self.measured[name], 3)}
                        for name, busy in sorted(plan.before.items())],
            'moves': [{**move_json(move), 'done':
                       not self.results[move] if move in self.results
                       else None, 'message': self.results.get(move) or None}
                      for move in plan.moves],
            'why': plan.why or None}

    def text(self) -> List[str]:
        """Return the same for people."""
        plan, lines = self.plan, [self.vm.name]
        if self.vm.name != self.vm.address:
            lines[0] += f' ({self.vm.address})'
        for move in plan.moves:
            done = self.results.get(move)
            lines.append(f'  move {move.name} ({share(move.load)} %) from'
                         f' {move.source} to {move.target}' + (
                             '' if done is None else
                             f': {done}' if done else ': done'))
        if plan.why:
            lines.append(f'  nothing to be moved: {plan.why}')
        # One long name does not make a mess of all lines
        width = min(max(map(len, ('IOThread', *plan.before))), 40)
        measured = '  measured' if self.measured else ''
        lines.append(f'  {"IOThread":{width}}  busy %  expected{measured}')
        for name, busy in sorted(plan.before.items()):
            lines.append(f'  {name:{width}}  {share(busy):>6}'
                         f'  {share(plan.after[name]):>8}' + (
                             f'  {share(self.measured.get(name)):>8}'
                             if measured else ''))
        return [clean(line) for line in lines]


async def once(args: argparse.Namespace, balancers: List[Balancer]) -> int:
    """Take two samples, print the plans, and carry them out if asked to."""
    vms = [each.vm for each in balancers]
    await update(vms)
    await asyncio.sleep(args.delay)
    await update(vms)
    moved = await asyncio.gather(*(each.once(args.once)
                                   for each in balancers))
    if any(moved):
        await asyncio.sleep(args.delay)
        await update(vms)
        for each in balancers:
            each.note_load()
    if args.json:
        print(json.dumps({'time': round(time.time(), 3),
                          'vms': [each.as_json() for each in balancers]}),
              flush=True)
    else:
        print('\n'.join(line for each in balancers if each.vm.state == UP
                        for line in each.text()), flush=True)
    complain_about(vms)
    return 0 if all(vm.state == UP for vm in vms) and not any(
        why for each in balancers for why in each.results.values()) else 1


async def run(args: argparse.Namespace, vms: List[Vm]) -> int:
    """Do what the options say; return the exit code."""
    balancers = [Balancer(vm, args) for vm in vms]
    try:
        if args.once or args.dry_run:
            return await once(args, balancers)
        # Each by itself: one that hangs does not hold up the others
        await asyncio.gather(*(each.watch() for each in balancers))
        return 1
    finally:
        await asyncio.gather(*(vm.close() for vm in vms))


def main() -> int:
    """Return the exit code."""
    made = parser()
    args = made.parse_args()
    vms = connections(made, args)
    return command.run(lambda: run(args, vms))
