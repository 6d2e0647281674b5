# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to a QEMU, or to a storage daemon: it only ever asks"""

import asyncio
import copy
import errno
import logging
import os
import time
from typing import Any, Awaitable, List, Optional, Tuple, TypeVar, Union, cast

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError

from .load import Json, Sample, Thread, compare, sample

T = TypeVar('T')
Address = Union[str, Tuple[str, int]]

PROVIDER = 'event-loop'
# How long to wait before the next try to connect
RETRY = 1.0

# States: what the view says of a QEMU
NEW = 'connecting'
UP = 'up'
GONE = 'gone'
ABSENT = 'absent'
BUSY = 'silent'
REFUSED = 'unsuitable'

# The library tells all it has seen; what matters comes as an exception
logging.getLogger('qemu.qmp').addHandler(logging.NullHandler())
logging.getLogger('qemu.qmp').propagate = False


def parse_address(text: str) -> Address:
    """
    Return where to connect: a path, or a host and a port.

    Takes what QEMU takes for a socket too (unix:PATH, tcp:HOST:PORT).
    :raise ValueError: it is neither
    """
    kind, _, rest = text.partition(':')
    if kind == 'unix' and rest:
        return rest.partition(',')[0]
    where = rest if kind == 'tcp' else text
    host, colon, port = where.partition(',')[0].rpartition(':')
    if '/' not in where and colon and port.isdecimal() and (
            kind == 'tcp' or not os.path.exists(text)):
        if not 0 < int(port) < 65536:
            raise ValueError(f'{port} is no port')
        return host.strip('[]') or 'localhost', int(port)
    if kind == 'tcp' or not text:
        raise ValueError(f"'{text}' is neither a path nor HOST:PORT")
    return text


class Lost(Exception):
    """There is no use in the connection: the state, and why."""


class Vm:
    """A QEMU, and its threads as of its last answers."""

    def __init__(self, address: str, timeout: float) -> None:
        """
        The timeout is for all of a connection, and for all of a sample.
        """
        self.address = address
        self.name = address
        self.state = NEW
        self.why = ''
        self.threads: List[Thread] = []
        # Between the two last samples, in seconds
        self.interval: Optional[float] = None
        self._where = parse_address(address)
        self._timeout = timeout
        self._qmp: Optional[QMPClient] = None
        self._before: Optional[Sample] = None
        self._retry = 0.0
        self._since: Optional[float] = None

    @property
    def silent(self) -> float:
        """How long it has been asked, and has not yet answered."""
        return time.monotonic() - self._since if self._since else 0.0

    def snapshot(self) -> 'Vm':
        """Return what stays as it is now; only to be shown."""
        made = copy.copy(self)
        made._since = None
        return made

    async def update(self) -> None:
        """Ask once: connect if need be.  Never fails; see the state."""
        if self._qmp is None and (self.state == REFUSED or
                                  time.monotonic() < self._retry):
            return
        self._since = time.monotonic()
        try:
            if self._qmp is None:
                await self._connect()
            await self._sample()
            self.state, self.why = UP, ''
        except Lost as lost:
            self.state, self.why = lost.args
            await self.close()
        finally:
            self._since = None

    async def close(self) -> None:
        """Let go of the monitor, for others."""
        qmp, self._qmp = self._qmp, None
        self._before = None
        self.interval = None
        self.threads = []
        self._retry = time.monotonic() + RETRY
        if qmp:
            await self._hang_up(qmp)

    @staticmethod
    async def _hang_up(qmp: QMPClient) -> None:
        try:
            await asyncio.wait_for(qmp.disconnect(), 1)
        except Exception:  # pylint: disable=broad-except
            # It raises again what had ended the connection
            pass

    async def _connect(self) -> None:
        qmp = QMPClient()
        again = self.state in (UP, GONE)
        try:
            await asyncio.wait_for(qmp.connect(self._where), self._timeout)
        except asyncio.TimeoutError:
            raise Lost(BUSY, self._silent(qmp)) from None
        except ConnectError as error:
            raise Lost(*self._failed(error.exc, again)) from None
        self._qmp = qmp
        try:
            await self._timed(self._get_acquainted(qmp))
        except asyncio.CancelledError:
            await self.close()
            raise

    def _silent(self, qmp: QMPClient) -> str:
        if qmp.greeting:
            return f'no answer within {self._timeout:g} s'
        return (f'no greeting within {self._timeout:g} s: a monitor serves'
                ' one client at a time, and this one may have another;'
                ' give QEMU one more, by another -qmp option')

    def _failed(self, error: Exception, again: bool) -> Tuple[str, str]:
        """Return the state and the reason, as to connecting."""
        if isinstance(error, OSError):
            if error.errno in (errno.EAGAIN, errno.EINVAL, errno.ENOTCONN,
                               errno.EPIPE) and isinstance(self._where, str):
                # The queue in front of the socket is full
                return BUSY, ('others wait for this monitor already; give'
                              ' QEMU one more, by another -qmp option')
            if again:
                return GONE, 'QEMU has hung up'
            # asyncio puts words of its own in the place of strerror
            why = os.strerror(error.errno) if (error.errno or 0) > 0 \
                else error.strerror or str(error)
            return ABSENT, f'cannot connect: {why}'
        if isinstance(error, EOFError):
            return (GONE, 'QEMU has hung up') if again else \
                (ABSENT, 'it hung up before its greeting')
        return REFUSED, 'this is no QMP monitor'

    async def _timed(self, work: Awaitable[T]) -> T:
        """Do the work, and turn what can go wrong into Lost."""
        try:
            return await asyncio.wait_for(work, self._timeout)
        except asyncio.TimeoutError:
            raise Lost(BUSY, f'no answer within {self._timeout:g} s') \
                from None
        except ExecuteError as error:
            raise Lost(REFUSED, f'QEMU says: {error}') from None
        except (QMPError, OSError, EOFError):
            raise Lost(GONE, 'QEMU has hung up') from None
        except (KeyError, TypeError, ValueError, AttributeError,
                IndexError) as error:
            raise Lost(REFUSED, 'its answer makes no sense:'
                       f' {type(error).__name__} {error}') from None

    async def _get_acquainted(self, qmp: QMPClient) -> None:
        """Find out what it is called, and whether it can tell the load."""
        program = 'QEMU'
        try:
            named = cast(Json, await qmp.execute('query-name'))
            self.name = named.get('name') or self.address
        except ExecuteError:
            program = 'qemu-storage-daemon'
        try:
            schemas = await qmp.execute('query-stats-schemas',
                                        {'provider': PROVIDER})
        except ExecuteError as error:
            if error.error.error.class_ != 'CommandNotFound':
                lacks = f"the provider '{PROVIDER}' of query-stats"
            elif 'preconfig' in str(error):
                lacks = f'a machine yet: {error}'
            else:
                lacks = 'the command query-stats'
        else:
            if schemas:
                return
            lacks = f"the provider '{PROVIDER}' of query-stats"
        version = ''
        if qmp.greeting:
            number = qmp.greeting.QMP.version.get('qemu')
            if isinstance(number, dict):
                version = ' {major}.{minor}.{micro}'.format(**number)
        raise Lost(REFUSED, f'this {program}{version} cannot tell the load of'
                   f' its event loops: it lacks {lacks}')

    async def _sample(self) -> None:
        assert self._qmp
        now = await self._timed(self._ask(self._qmp))
        self.threads = compare(self._before, now)
        self.interval = now.threads[0][1] - self._before.threads[0][1] \
            if self._before and self._before.threads and now.threads else None
        self._before = now

    async def _ask(self, qmp: QMPClient) -> Sample:
        async def stats(target: str) -> Tuple[List[Json], float]:
            start = time.monotonic()
            answer = await qmp.execute('query-stats', {
                'target': target, 'providers': [{'provider': PROVIDER}]})
            # It counted somewhere in between
            return cast(List[Json], answer), (start + time.monotonic()) / 2

        async def ask(command: str, **arguments: Any) -> List[Json]:
            try:
                return cast(List[Json],
                            await qmp.execute(command, arguments))
            except ExecuteError:
                if arguments:
                    return await ask(command)
                return []

        # Nobody waits for these, and they would pile up
        qmp.events.clear()
        # A QEMU that does not record holders knows no internal ones
        threads = await ask('query-iothreads', internal=True)
        results, at = await stats('iothread')
        main, main_at = await stats('vm')
        disks = await ask('query-blockstats')
        return sample(threads, results, at, main, main_at, disks,
                      time.monotonic())
