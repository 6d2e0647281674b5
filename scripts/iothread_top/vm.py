# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU, the load of its threads between two samples, and how to move them"""

import copy
from typing import Any, Dict, List, Optional, cast

from qemu.qmp import ExecuteError, QMPClient

from .answer import MAPPING as MAPPED, pick_all
from .load import Json, Sample, Thread, compare
from .monitor import Lost, Monitor

MOVE, MAPPING = 'set-iothread-vq-mapping', 'iothread-vq-mapping'


class NotMoved(Exception):
    """A device is where it was, or that cannot be told: why."""


class Vm(Monitor):
    """A QEMU, and its threads as of its last answers."""

    def __init__(self, address: str, timeout: float) -> None:
        super().__init__(address, timeout)
        self.timeout = timeout
        self.threads: List[Thread] = []
        # Between the two last samples, in seconds
        self.interval: Optional[float] = None
        # Which SCSI controller a disk belongs to, by the disk's name
        self._controllers: Dict[str, str] = {}

    def snapshot(self) -> 'Vm':
        """Return what stays as it is now; only to be shown."""
        made = copy.copy(self)
        made._since = None
        return made

    def note(self, now: Optional[Sample]) -> None:
        before = self.latest
        super().note(now)
        self.threads = compare(before, now) if now else []
        self.interval = now.threads[0][1] - before.threads[0][1] \
            if now and before and before.threads and now.threads else None

    async def move(self, device: str, source: str, target: str) -> None:
        """
        Have a device use the IOThread `target` and `source` no more.

        The device is a QOM path, as holders tell it.  Where it has other
        IOThreads too, these stay, and each queue with those that it is with.
        :raise NotMoved: it has not worked, or nobody knows
        """
        if self._qmp is None:
            raise NotMoved('there is no connection to QEMU')
        try:
            await self._timed(self._move(self._qmp, device, source, target))
        except Lost as lost:
            self.state, self.why = lost.args
            await self.close()
            raise NotMoved(f'{self.why}; it may have moved or not') from None

    async def _move(self, qmp: QMPClient, device: str, source: str,
                    target: str) -> None:
        async def get(name: str) -> Any:
            return await qmp.execute('qom-get', {'path': device,
                                                 'property': name})

        try:
            # What it is now, and not what it was at the last sample
            mapping = cast(List[Json], await get(MAPPING)) or [
                {'iothread': cast(str, await get('iothread')
                                  ).rpartition('/')[2]}]
            names = [each['iothread'] for each
                     in pick_all(mapping, MAPPED, 'iothread')]
            if source not in names or target in names:
                raise NotMoved('it uses ' + (', '.join(filter(None, names))
                                             or 'the main loop'))
            # Have QEMU give up before the tool does, to know what has happened
            await qmp.execute(MOVE, {
                'device': device, 'timeout': int(self.timeout * 500),
                MAPPING: [
                    {**each, 'iothread': target} if each['iothread'] == source
                    else each for each in mapping]})
        except ExecuteError as error:
            if error.error.error.class_ == 'CommandNotFound':
                raise NotMoved('this QEMU cannot move devices: it lacks the'
                               f' command {MOVE}') from None
            raise NotMoved(f'QEMU says: {error}') from None

    async def _complete(self, qmp: QMPClient, now: Sample) -> None:
        """Have each disk tell its controller, if that is on an IOThread."""
        holders = {holder.facts.get('qom-path')
                   for thread, _, _ in now.threads
                   for holder in thread.holders}
        known, self._controllers = self._controllers, {}
        for disk in now.disks:
            name = disk.get('qdev')
            if not name or name in holders:
                continue
            if name not in known:
                path = name if name[0] == '/' else f'/machine/peripheral/{name}'
                try:
                    known[name] = cast(str, await qmp.execute('qom-get', {
                        'path': path, 'property': 'parent_bus'})
                                       ).rpartition('/')[0]
                except ExecuteError:
                    known[name] = ''
            self._controllers[name] = known[name]
            if known[name] in holders:
                disk['controller'] = known[name]
