# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to a QEMU, or to a storage daemon, for those who ask"""

import asyncio
import errno
import logging
import os
import time
from typing import Any, Awaitable, List, Optional, Tuple, TypeVar, Union, cast

from qemu.qmp import (ConnectError, ExecuteError, Message, QMPClient,
                      QMPError)

from .answer import NAME, UUID, VERSION, pick
from .load import Json, Sample, sample

T = TypeVar('T')
Address = Union[str, Tuple[str, int]]

# All that is ever sent.  None of these changes anything.
COMMANDS = frozenset(['query-name', 'query-uuid', 'query-stats-schemas',
                      'query-stats', 'query-iothreads', 'query-blockstats'])
PROVIDER = 'event-loop'
# How long to wait before the next try to connect
RETRY = 1.0

# States: what the view says of a QEMU
NEW = 'connecting'
UP = 'up'
GONE = 'gone'
ABSENT = 'absent'
BUSY = 'silent'
TAKEN = 'taken'
REFUSED = 'unsuitable'
STATES = NEW, UP, GONE, ABSENT, BUSY, TAKEN, REFUSED

ONE_MORE = 'give QEMU one more, by another -qmp option'

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


def has_client(path: str) -> bool:
    """
    Tell whether the server at this UNIX socket has accepted a client.

    False is also the answer where that cannot be told: on another system
    than Linux, and for a socket of another network namespace.
    """
    try:
        with open('/proc/net/unix', encoding='utf-8',
                  errors='surrogateescape') as stream:
            for line in stream:
                # Num RefCount Protocol Flags Type St Inode Path
                words = line.rstrip('\n').split(maxsplit=7)
                # 3 is connected; who has not been accepted yet is not
                if len(words) == 8 and words[7] == path and words[5] == '03':
                    return True
    except OSError:
        pass
    return False


class Client(QMPClient):
    """A client that does not put each message into words for a log."""

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Lost(Exception):
    """There is no use in the connection: the state, and why."""


class Monitor:
    """A QEMU, and what it has told last."""

    def __init__(self, address: str, timeout: Optional[float]) -> None:
        """
        The timeout is for all of a connection, and for all of a sample.
        """
        self.address = address
        self.name = address
        # Of the machine; a storage daemon has none
        self.uuid = ''
        self.program = ''
        self.version = ''
        self.state = NEW
        self.why = ''
        self.latest: Optional[Sample] = None
        self._where = parse_address(address)
        self._timeout = timeout
        self._qmp: Optional[QMPClient] = None
        # Who is being connected to
        self._greeter: Optional[QMPClient] = None
        self._retry = 0.0
        self._since: Optional[float] = None

    @property
    def silent(self) -> float:
        """How long it has been asked, and has not yet answered."""
        return time.monotonic() - self._since if self._since else 0.0

    @property
    def named(self) -> bool:
        """Tell whether it has told who it is."""
        return bool(self.program)

    def note(self, now: Optional[Sample]) -> None:
        """
        Take what it has told, None if there is nothing to be had.

        An exception is that its answer makes no sense.
        """
        self.latest = now

    async def update(self) -> None:
        """Ask once: connect if need be.  Never fails; see the state."""
        if self._qmp is None and (self.state == REFUSED or
                                  time.monotonic() < self._retry):
            return
        self._since = time.monotonic()
        try:
            if self._qmp is None:
                await self._connect()
            assert self._qmp
            await self._timed(self._sample(self._qmp))
            self.state, self.why = UP, ''
        except Lost as lost:
            self.state, self.why = lost.args
            await self.close()
        except Exception as error:  # pylint: disable=broad-except
            # This program's fault, on one QEMU's account: not all's
            self.state, self.why = REFUSED, repr(error)
            await self.close()
        finally:
            self._since = None

    async def close(self) -> None:
        """Let go of the monitor, for others."""
        qmp, self._qmp = self._qmp, None
        self.note(None)
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
        qmp = Client()
        # Nobody waits for events, and they would pile up
        qmp.events.event_filter = lambda _: False
        again = self.state in (UP, GONE)
        self._greeter = qmp
        try:
            await asyncio.wait_for(qmp.connect(self._where), self._timeout)
        except asyncio.TimeoutError:
            raise Lost(*self.doubt()) from None
        except ConnectError as error:
            raise Lost(*self._failed(error.exc, again)) from None
        finally:
            self._greeter = None
        self._qmp = qmp
        try:
            await self._timed(self._get_acquainted(qmp))
        except asyncio.CancelledError:
            await self.close()
            raise

    def doubt(self) -> Tuple[str, str]:
        """Return the state of one that has not answered so far, and why."""
        if self._qmp or (self._greeter and self._greeter.greeting):
            return BUSY, f'no answer within {self.silent:.1f} s'
        why = f'no greeting within {self.silent:.1f} s'
        if isinstance(self._where, str) and has_client(self._where):
            return TAKEN, f'{why}: another client has this monitor; {ONE_MORE}'
        return BUSY, (f'{why}: a monitor serves one client at a time, and'
                      f' this one may have another; {ONE_MORE}')

    def _failed(self, error: Exception, again: bool) -> Tuple[str, str]:
        """Return the state and the reason, as to connecting."""
        if isinstance(error, OSError):
            if error.errno in (errno.EAGAIN, errno.EINVAL, errno.ENOTCONN,
                               errno.EPIPE) and isinstance(self._where, str):
                # The queue in front of the socket is full
                return TAKEN if has_client(self._where) else BUSY, (
                    f'others wait for this monitor already; {ONE_MORE}')
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
            raise Lost(*self.doubt()) from None
        except ExecuteError as error:
            raise Lost(REFUSED, f'QEMU says: {error}') from None
        except (QMPError, OSError, EOFError):
            raise Lost(GONE, 'QEMU has hung up') from None
        except (KeyError, TypeError, ValueError, AttributeError,
                IndexError, OverflowError, RecursionError) as error:
            why = str(error) if isinstance(error, ValueError) \
                else f'{type(error).__name__} {error}'
            raise Lost(REFUSED, f'its answer makes no sense: {why}') from None

    @staticmethod
    async def _execute(qmp: QMPClient, command: str,
                       **arguments: Any) -> Any:
        """
        Ask, and return the answer.

        :raise ExecuteError: QEMU will not tell
        """
        if command not in COMMANDS:
            raise AssertionError(f'{command} may change something')
        return await qmp.execute(command, arguments or None)

    async def _get_acquainted(self, qmp: QMPClient) -> None:
        """Find out what it is called, and whether it can tell the load."""
        version = qmp.greeting.QMP.version.get('qemu') if qmp.greeting \
            else None
        self.version = '{major}.{minor}.{micro}'.format(
            **pick(version, VERSION, *VERSION)) if version else ''
        try:
            named = pick(await self._execute(qmp, 'query-name'), NAME)
            self.name = named.get('name') or self.address
            identity = pick(await self._execute(qmp, 'query-uuid'),
                            UUID, 'UUID')
            # All zeroes stand for none
            self.uuid = identity['UUID'].strip('0-') and identity['UUID']
            self.program = 'QEMU'
        except ExecuteError:
            self.program = 'qemu-storage-daemon'
        try:
            schemas = await self._execute(qmp, 'query-stats-schemas',
                                          provider=PROVIDER)
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
        raise Lost(REFUSED, f'this {self.program} {self.version}'.rstrip() +
                   ' cannot tell the load of its event loops: it lacks'
                   f' {lacks}')

    async def _sample(self, qmp: QMPClient) -> None:
        self.note(await self._ask(qmp))

    async def _complete(self, qmp: QMPClient, now: Sample) -> None:
        """Add to the sample what has to be asked for in another way."""

    async def _ask(self, qmp: QMPClient) -> Sample:
        async def stats(target: str) -> Tuple[List[Json], float]:
            start = time.monotonic()
            answer = await self._execute(
                qmp, 'query-stats', target=target,
                providers=[{'provider': PROVIDER}])
            # It counted somewhere in between
            return cast(List[Json], answer), (start + time.monotonic()) / 2

        async def ask(command: str, **arguments: Any) -> List[Json]:
            try:
                return cast(List[Json], await self._execute(
                    qmp, command, **arguments))
            except ExecuteError:
                if arguments:
                    return await ask(command)
                return []

        # A QEMU that does not record holders knows no internal ones
        threads, (results, at), (main, main_at), disks = \
            await asyncio.gather(
                ask('query-iothreads', internal=True), stats('iothread'),
                stats('vm'), ask('query-blockstats'))
        now = sample(threads, results, at, main, main_at, disks,
                     time.monotonic())
        await self._complete(qmp, now)
        return now
