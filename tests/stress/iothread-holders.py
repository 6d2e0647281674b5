#!/usr/bin/env python3
#
# Random test of the holders of IOThreads: drives a QEMU (or, with --daemon, a
# qemu-storage-daemon) over QMP with random commands, also such as it refuses,
# and after each of them compares query-iothreads with what is known otherwise.
#
# Known are the devices and objects that were accepted and are not yet gone,
# the list of exports, and the graph of block nodes.  Where a node runs, no
# other command tells, but x-blockdev-set-iothread does: what a device or an
# export pins can be "moved" only to where it is.  And no node is in an IOThread
# for nobody.
#
# A failing run is shrunk to a short one, which --replay repeats.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import collections
import contextlib
import functools
import json
import os
import pathlib
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from loads import Loads

timeout = 30            # seconds until an answer that does not come is a hang
DISK_SIZE = 1 << 24
SESSION = 1000          # steps between two restarts
BAD = re.compile(r'Assertion.*|ERROR: \w+Sanitizer: [a-z -]+|'
                 r'runtime error: \D*')

THREADS = [f'io{i}' for i in range(5)]
NODES = [f'n{i}' for i in range(10)]
OVERLAYS = [f'o{i}' for i in range(4)]
DEVICES = [f'd{i}' for i in range(8)]
EXPORTS = [f'e{i}' for i in range(5)]
CHARDEVS = [f'c{i}' for i in range(8)]
COMPARES = ['cc0', 'cc1']
JOBS = ['j0', 'j1', 'j2']
JOB_COMMANDS = ('blockdev-mirror', 'blockdev-backup', 'block-stream',
                'block-commit')
MOVE = 'set-iothread-vq-mapping'
JOB_ENDS = ('job-cancel', 'job-complete')
FOR_ALL_NODES = ('nbd-server-stop', 'system_reset', 'quit')

Args = dict[str, Any]
Step = list[Any]        # command, arguments
Holder = dict[str, Any]
Ctx = str | None        # an IOThread, or None for the main loop
Group = frozenset[str]  # block nodes that are connected


class Failure(Exception):
    """A difference; @kind tells one from another."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f'{kind}: {text}')
        self.kind = kind


def require(condition: object, kind: str, text: object) -> None:
    if not condition:
        raise Failure(kind, str(text))


def wait_until(condition: Callable[[], object], text: object) -> None:
    end = time.monotonic() + timeout
    while not condition():
        require(time.monotonic() < end, 'hang', text)


class Refused(Exception):
    """QEMU answered with an error."""


class Channel:
    """A stream socket; silence on it is a hang."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(timeout)
        self.socket = sock
        self.file = sock.makefile('rb')

    def receive(self, size: int | None = None) -> bytes:
        """So many bytes, or a line."""
        try:
            data = (self.file.readline() if size is None else
                    self.file.read(size))
        except TimeoutError:
            raise Failure('hang', f'no answer in {timeout} s') from None
        if len(data) < (size or 1):
            raise ConnectionError('closed')
        return data

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Client(Channel):
    """A client of an NBD export."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(socket.socket(socket.AF_UNIX))
        self.socket.connect(path)
        self.receive(18)
        self.socket.sendall(struct.pack('>L8sLL', 3, b'IHAVEOPT', 1,
                                        len(name)) + name.encode())
        self.receive(10)

    def request(self, kind: int, size: int) -> None:
        self.socket.sendall(struct.pack('>LHHQQL', 0x25609513, 0, kind, 1, 0,
                                        size))

    def pread(self) -> None:
        try:
            self.request(0, 4096)
            magic, error = struct.unpack('>LL8x', self.receive(16))
            self.receive(4096 if error == 0 else 0)
        except ConnectionError as closed:
            raise Failure('I/O', f'NBD: {closed}') from None
        require(magic == 0x67446698 and error == 0, 'I/O',
                f'NBD: reply {magic:#x}, error {error}')

    def disconnect(self) -> None:
        self.close()


class Qemu:
    """The process and its monitor."""

    def __init__(self, binary: str, daemon: bool, directory: str) -> None:
        self.events: list[Args] = []
        self.stderr = f'{directory}/stderr'
        # not stdio: HMP's qemu-io prints to the process' own stdout
        mine, theirs = socket.socketpair()
        self.qmp = Channel(mine)
        args = [binary, '--chardev', f'socket,id=qmp,fd={theirs.fileno()}']
        args += ['--monitor', 'chardev=qmp'] if daemon else [
            '-mon', 'chardev=qmp,mode=control', '-machine', 'pc', '-m', '16',
            '-accel', 'qtest', '-nodefaults', '-display', 'none']
        with open(self.stderr, 'wb') as stderr:
            self.process = subprocess.Popen(
                args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=stderr, pass_fds=[theirs.fileno()])
        theirs.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        try:
            self.qmp.socket.sendall(json.dumps({
                'execute': command, 'arguments': arguments}).encode())
            while True:
                answer = json.loads(self.qmp.receive())
                if 'return' in answer:
                    return answer['return']
                if 'error' in answer:
                    raise Refused(answer['error']['desc'])
                if 'event' in answer:
                    self.events.append(answer)
        except ConnectionError:
            raise self.died() from None

    def wait_event(self, name: str, device: str | None = None) -> None:
        """Wait for an event, from those since the step began."""
        wait_until(lambda: self.execute('query-version') and any(
            e['event'] == name and device in (None, e['data'].get('device'))
            for e in self.events), f'no {name} {device}')

    def hmp(self, command: str) -> Any:
        return self.execute('human-monitor-command',
                            **{'command-line': command})

    def died(self) -> Failure:
        """What a process that has closed its monitor came to."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return Failure('hang', 'does not exit')
        text = pathlib.Path(self.stderr).read_text(errors='replace')[-8000:]
        bad = BAD.search(text)
        return Failure(bad[0] if bad else 'died', f'exit code {code}\n{text}')

    def quit(self) -> None:
        self.execute('quit')
        failure = self.died()
        if failure.kind != 'died' or self.process.returncode != 0:
            raise failure

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.qmp.close()


def title(holder: Holder) -> str:
    """How an error message calls a holder."""
    if holder['type'] == 'qom-object':
        path: str = holder['qom-path']
        return f"device '{holder['device']}' ({path})" \
            if 'device' in holder else path
    return f"{holder['type'].replace('-', ' ')} '{ident(holder)}'"


def ident(holder: Holder) -> str:
    """What stays the same while a holder holds."""
    name: str = holder.get('qom-path') or holder.get('id') or \
        holder['node-name']
    return name


def describe(holders: list[Holder]) -> str:
    """Nodes after all others, and those without a name of the user's last."""
    implicit = sum(h.get('node-name', '').startswith('#') and
                   h['type'] == 'block-node' for h in holders)
    order = sorted(holders, key=lambda h: bool(h['type'] == 'block-node'))
    titles = [t for t in dict.fromkeys(map(title, order))
              if not t.startswith("block node '#")]
    if len(titles) > 8:
        titles[8:] = [f'{len(titles) - 8} more']
    if implicit:
        titles.append(f'{implicit} implicit block node{"s"[:implicit > 1]}')
    return ' and '.join(filter(None, [', '.join(titles[:-1]), titles[-1]]))


@dataclass
class View:
    """What QEMU shows."""
    holders: dict[str, list[Holder]] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    group: dict[str, Group] = field(default_factory=dict)
    jobs: dict[str, Group] = field(default_factory=dict)
    graph: Any = None
    ctx: dict[str, Ctx] = field(default_factory=dict)

    def threads(self) -> list[str]:
        return [name for name in self.holders if name != 'mon_iothread']

    def busy(self, group: Group) -> bool:
        return any(nodes & group for nodes in self.jobs.values())


def words(step: Step) -> set[str]:
    """What a step names, and more."""
    return set(re.findall(r'[\w#]+', json.dumps(step)))


def connected(graph: Any) -> list[list[Args]]:
    """The nodes of a graph, those together that are connected."""
    found = {n['id']: [n] for n in graph['nodes']}
    for edge in graph['edges']:
        one, other = found[edge['parent']], found[edge['child']]
        if one is not other:
            one += other
            found.update((n['id'], one) for n in other)
    return list({id(nodes): nodes for nodes in found.values()}.values())


@dataclass
class Device:
    driver: str
    node: str | None
    bus: str                    # the HBA of a scsi-hd
    queues: int = 0             # of those that can move
    pending: bool = False       # device_del was accepted


def slot(name: str) -> int:
    """Where a device is on the PCI bus."""
    return 16 + DEVICES.index(name)


def device_holds(args: Args) -> list[tuple[str, Holder]]:
    """Which IOThreads a virtio device is to hold, and as what."""
    path = f"/machine/peripheral/{args['id']}/virtio-backend"
    holder = {'type': 'qom-object', 'qom-path': path, 'device': args['id']}
    thread = args.get('iothread')
    if args['driver'] == 'virtio-balloon-pci':
        return [(thread, holder)] if thread and args['free-page-hint'] else []
    queues = args.get('num-queues') or args['num_queues']
    mapping = [{'iothread': thread}] if thread else \
        args.get('iothread-vq-mapping', [])
    return [(os.path.basename(item['iothread']), holder | {
        'vqs': item.get('vqs') or list(range(i, queues, len(mapping)))})
            for i, item in enumerate(mapping)]


# header, refcount table and block, L1 table
QCOW2 = b''.join(cluster.ljust(1 << 16, b'\0') for cluster in (
    struct.pack('>4sLQLLQLLQQLLQ', b'QFI\xfb', 2, 0, 0, 16, DISK_SIZE, 0, 1,
                3 << 16, 1 << 16, 1, 0, 0),
    struct.pack('>Q', 2 << 16), struct.pack('>4H', 1, 1, 1, 1), b''))


class Session:
    """One QEMU and the model of it."""

    def __init__(self, binary: str, daemon: bool) -> None:
        # short, for it becomes part of the address of sockets
        self.temp = tempfile.TemporaryDirectory(prefix='hold', dir='/tmp')
        self.daemon = daemon
        self.devices: dict[str, Device] = {}
        # of devices and of colo-compare
        self.holds: dict[str, list[tuple[str, Holder]]] = {}
        self.exports: dict[str, Args] = {}
        # where x-blockdev-set-iothread put nodes
        self.chosen: dict[str, Ctx] = {}
        self.clients: dict[str, Client] = {}
        # holders other than nodes and exports: these never move
        self.attached: dict[str, list[Holder]] = {
            'mon_iothread': [{'type': 'monitor', 'id': 'qmp'}]}
        self.qemu = Qemu(binary, daemon, self.temp.name)
        self.view = View()
        self.moved: set[str] = set()        # devices, by the latest step
        self.loads = Loads()

    def begin(self) -> None:
        self.qemu.execute('qmp_capabilities')
        for name in CHARDEVS:
            self.execute('chardev-add', {'id': name, 'backend': {
                'type': 'socket', 'data': {'wait': False, 'addr': {
                    'type': 'unix', 'data': {'path': f'@DIR@/{name}'}}}}})
        self.sync()

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.qemu.kill()
        self.temp.cleanup()

    def settled(self) -> View:
        """What QEMU shows when nothing changes by itself any more."""
        def quiet() -> bool:
            return not any(
                export['shutting-down']
                for export in self.qemu.execute('query-block-exports')
            ) and all(
                job['status'] == 'ready' or
                job['status'] == 'running' and job['speed']
                for job in self.qemu.execute('query-block-jobs'))

        while True:
            wait_until(quiet, 'jobs or exports do not settle')
            seen = len(self.qemu.events)
            view, failure = None, None
            try:
                view = self.look()
            except Failure as found:
                failure = found
                self.qemu.execute('query-block-jobs')
            # drains wake jobs, which then may end
            if any(event['event'] == 'JOB_STATUS_CHANGE'
                   for event in self.qemu.events[seen:]):
                continue
            if failure:
                raise failure
            assert view
            return view

    def look(self) -> View:
        view = View()
        ids = {}
        for info in self.qemu.execute('query-iothreads', internal=True):
            require(info['internal'] == (info['id'] == 'mon_iothread'),
                    'internal', info)
            view.holders[info['id']] = info['holders']
            ids[info['id']] = info['thread-id']
        fault = self.loads.fault(self.stats, ids)
        require(not fault, 'load', fault)
        view.exports = {e['id']: e['node-name'] for e in
                        self.qemu.execute('query-block-exports')}
        view.graph = self.qemu.execute('x-debug-query-block-graph')
        for members in connected(view.graph):
            group = frozenset(m['name'] for m in members
                              if m['type'] == 'block-driver')
            view.group.update(dict.fromkeys(group, group))
            view.jobs.update((m['name'], group) for m in members
                             if m['type'] == 'block-job')
        view.ctx = dict.fromkeys(view.group)
        for thread, holders in view.holders.items():
            for holder in holders:
                if holder['type'] == 'block-node':
                    name = holder['node-name']
                    require(name in view.group, 'ghost', f'no node {name}')
                    require(view.ctx[name] is None, 'twice', holder)
                    view.ctx[name] = thread
        return view

    def stats(self, target: str) -> list[Any]:
        stats: list[Any] = self.qemu.execute(
            'query-stats', target=target, providers=[
                {'provider': 'event-loop'}])
        return stats

    def sync(self) -> None:
        """Look again; what has gone goes from the model too."""
        before, self.view = self.view, self.settled()
        for event in self.qemu.events:
            name = event['data'].get('device')
            if event['event'] == 'DEVICE_DELETED' and name in self.devices:
                del self.devices[name]
                self.detach(name)
        for name in set(self.exports) - set(self.view.exports):
            del self.exports[name]
            if name in self.clients:
                self.clients.pop(name).close()
        self.chosen = {node: thread for node, thread in self.chosen.items()
                       if node in self.view.group
                       and thread in self.view.holders}
        if self.view.graph != before.graph:
            # a job or a snapshot may have put another node under a device
            for name, device in self.devices.items():
                if device.node:
                    device.node = self.qemu.execute(
                        'qom-get', path=f'/machine/peripheral/{name}',
                        property='drive')

    def attach(self, name: str, held: list[tuple[str, Holder]]) -> None:
        self.holds[name] = held
        for thread, holder in held:
            self.attached[thread].append(holder)

    def detach(self, name: str) -> None:
        for thread, holder in self.holds.pop(name, []):
            self.attached[thread].remove(holder)

    def pinned(self, view: View, group: Group) -> bool:
        """Whether a device or an export keeps nodes where they are."""
        return any(device.node in group for device in self.devices.values()) \
            or any(view.exports.get(name) in group
                   for name, args in self.exports.items()
                   if args['fixed-iothread'])

    def touched(self, step: Step) -> set[str]:
        """The nodes that a step may move."""
        view, named = self.view, words(step)
        nodes = named & set(view.group)
        nodes |= {view.exports[name] for name in named & set(view.exports)}
        nodes |= {min(view.jobs[name]) for name in named & set(view.jobs)}
        nodes |= {device.node for name, device in self.devices.items()
                  if named & {name, device.bus} and device.node in view.group}
        if step[0] in FOR_ALL_NODES:
            nodes = set(view.group)
        return {n for node in nodes for n in view.group[node]}

    def run(self, step: Step) -> bool:
        """Do @step and check what came of it; false if QEMU refused it."""
        command, args = step
        if command in ('quit', 'tear-down'):
            (self.qemu.quit if command == 'quit' else self.tear_down)()
            return True
        name = command.replace('-', '_')
        before = self.view
        touched = self.touched(step)
        error = ''
        self.moved = {args['device']} if command == MOVE else set()
        self.qemu.events.clear()
        try:
            do = getattr(self, 'do_' + name,
                         functools.partial(self.execute, command))
            do(args)
        except Refused as refused:
            error = str(refused)
        self.sync()
        did = getattr(self, 'did_' + name, None)
        if did:
            did(args, error, before)
        self.check_holders()
        touched |= self.touched(step)
        for job in set(before.jobs) - set(self.view.jobs):
            touched |= before.jobs[job]
        for node, group in self.view.group.items():
            if touched & group or before.group.get(node) != group:
                touched |= group
        targets: set[Ctx] = {None}
        if command in JOB_COMMANDS:
            targets |= {before.ctx.get(node) for node in touched}
        if not error:
            targets |= words(step) & set(THREADS)
            targets |= {thread for user in words(step) & set(self.holds)
                        for thread, _ in self.holds[user]}
        self.check_moves(before, touched, targets)
        self.check_pinned(touched)
        return not error

    def check_holders(self) -> None:
        """What must be so whatever came before."""
        view = self.view
        objects = [o['name'] for o in self.qemu.execute(
            'qom-list', path='/objects') if o['type'] == 'child<iothread>']
        require(sorted(objects) == sorted(view.threads()), 'threads',
                f'{objects} are shown as {view.threads()}')
        for group in set(view.group.values()):
            places = {view.ctx[node] for node in group}
            require(len(places) == 1, 'split', f'{sorted(group)}: {places}')
        for thread, holders in view.holders.items():
            shown = [h for h in holders if h['type'] in (
                'qom-object', 'monitor')]
            require(shown == self.attached[thread], 'holders',
                    f'{thread}: shown {shown}\n'
                    f'expected {self.attached[thread]}')
            shown = [h for h in holders if h['type'] == 'block-export']
            expected = [
                {'type': 'block-export', 'id': name, 'node-name': node}
                for name, node in sorted(view.exports.items())
                if view.ctx[node] == thread]
            require(sorted(shown, key=ident) == expected, 'exports',
                    f'{thread}: shown {shown}\nexpected {expected}')
            jobs = sorted(h['id'] for h in holders if h['type'] == 'job')
            running = sorted(job for job, nodes in view.jobs.items()
                             if view.ctx[min(nodes)] == thread)
            require(jobs == running, 'jobs',
                    f'{thread}: shown {jobs}\nexpected {running}')
        self.check_needed()

    def check_needed(self) -> None:
        """Nodes are in an IOThread for somebody, or on their way home."""
        end = time.monotonic() + 2
        while (idle := self.idle()) and time.monotonic() < end:
            time.sleep(0.05)
            self.view = self.settled()
        require(not idle, 'idle', idle)

    def idle(self) -> str:
        """A group of nodes that is in an IOThread for nobody."""
        view = self.view
        for group in set(view.group.values()):
            thread = view.ctx[min(group)]
            if not (thread is None or view.busy(group) or
                    self.pinned(view, group) or
                    any(node in group for node in view.exports.values()) or
                    any(self.chosen.get(node) == thread for node in group)):
                return f'{sorted(group)}: in {thread} for nobody'
        return ''

    def check_moves(self, before: View, touched: set[str],
                    targets: set[Ctx]) -> None:
        """Only what the step touched has moved, and not just anywhere."""
        view = self.view
        for node, group in view.group.items():
            may = {before.ctx[node]} if node not in touched else \
                targets | {before.ctx[n] for n in group if n in before.ctx}
            require(view.ctx[node] in may, 'place',
                    f'{node}: in {view.ctx[node]}, not in {may}')
        # what stayed keeps its order, and what came is behind it
        for thread, holders in view.holders.items():
            old = [ident(h) for h in before.holders.get(thread, [])
                   if h.get('device') not in self.moved]
            new = [ident(h) for h in holders
                   if h.get('device') not in self.moved]
            stayed = [n for n in old if n in new
                      and view.exports.get(n, n) not in touched
                      and not view.jobs.get(n, frozenset()) & touched]
            rest = [n for n in new if n in stayed or n not in old]
            require(rest[:len(stayed)] == stayed, 'order',
                    f'{thread}: was {old}, is {new}')

    def check_pinned(self, touched: set[str]) -> None:
        """What cannot be moved can be "moved" to where it is."""
        # max: not the filter of a job, which may end
        nodes = {max(group) for node, group in self.view.group.items()
                 if node in touched and self.pinned(self.view, group)}
        for node in sorted(nodes):
            place = self.view.ctx[node]
            try:
                self.qemu.execute('x-blockdev-set-iothread', force=True,
                                  **{'node-name': node, 'iothread': place})
            except Refused as error:
                raise Failure('place', f'{node}: not in {place}, for '
                              f'{error}') from None
            self.chosen[node] = place
        if nodes:
            self.sync()
            self.check_holders()

    def execute(self, command: str, args: Args) -> None:
        if args.get('driver') == 'qcow2' and \
                args['node-name'] not in self.view.group:
            path = pathlib.Path(self.temp.name, args['node-name'] + '.qcow2')
            path.write_bytes(QCOW2)
        self.qemu.execute(command, **json.loads(
            json.dumps(args).replace('@DIR@', self.temp.name)))
        if command in JOB_ENDS:
            wait_until(lambda: args['id'] not in [
                job['id'] for job in self.qemu.execute('query-jobs')], args)

    def did_object_add(self, args: Args, error: str, before: View) -> None:
        name = args['id']
        if args['qom-type'] == 'iothread':
            require(bool(error) == (name in before.holders), 'object-add',
                    error or 'accepted')
            self.attached.setdefault(name, [])
        elif not error:
            self.attach(name, [(args['iothread'], {
                'type': 'qom-object', 'qom-path': f'/objects/{name}'})])

    def did_object_del(self, args: Args, error: str, before: View) -> None:
        name = args['id']
        holders = before.holders.get(name)
        expected = f"object '{name}' is in use, can not be deleted: it is " \
            f'held by {describe(holders)}' if holders else ''
        if name in before.threads() or name in self.holds:
            require(error == expected, 'object-del',
                    f'{error!r}\nexpected {expected!r}')
        if not error:
            self.detach(name)

    # Devices

    def did_device_add(self, args: Args, error: str, before: View) -> None:
        if error:
            return
        name = args['id']
        self.devices[name] = Device(
            args['driver'], args.get('drive'),
            args.get('bus', '').split('.')[0],
            args.get('num-queues') or args.get('num_queues', 0))
        if 'bus' not in args:
            self.attach(name, device_holds(args))

    def disks(self, name: str) -> set[str]:
        """The nodes of a device, and of the disks behind it."""
        return {device.node for other, device in self.devices.items()
                if name in (other, device.bus) and
                device.node in self.view.group}

    def did_set_iothread_vq_mapping(self, args: Args, error: str,
                                    before: View) -> None:
        name, mapping = args['device'], args['iothread-vq-mapping']
        device = self.devices.get(name)
        if not error:
            assert device
            self.detach(name)
            self.attach(name, device_holds({
                'id': name, 'driver': device.driver, 'iothread': None,
                'num-queues': device.queues, 'iothread-vq-mapping': mapping}))
            shown = self.qemu.execute(
                'qom-get', path=f'/machine/peripheral/{name}',
                property='iothread-vq-mapping')
            require(shown == mapping, 'move', f'{shown}')
            first = [thread for thread, holder in self.holds[name]
                     if 0 in holder['vqs']]
            for node in self.disks(name):
                require(device.driver != 'virtio-scsi-pci' or
                        self.view.ctx[node] == (first[0] if first else None),
                        'move', f'{node}: in {self.view.ctx[node]}')
            return
        if not device or device.pending or not device.queues or \
                'ioeventfd' in error or \
                self.wrong(mapping, device.queues, before):
            return
        # Others keep its nodes where they are
        groups = {before.group[node] for node in self.disks(name)
                  if node in before.group}
        others = {other.node for key, other in self.devices.items()
                  if name not in (key, other.bus)} | {
            before.exports.get(key) for key, args in self.exports.items()
            if args['fixed-iothread']}
        require(any(others & group or before.busy(group)
                    for group in groups), 'move', error)

    @staticmethod
    def wrong(mapping: list[Args], queues: int, before: View) -> bool:
        """Whether a mapping cannot be that of a device."""
        vqs = [item.get('vqs') for item in mapping]
        flat = [vq for item in vqs for vq in item or []]
        names = [item['iothread'] for item in mapping]
        return len(set(names)) < len(names) or \
            any(os.path.basename(name) not in before.threads()
                for name in names) or \
            any(vqs) and (not all(vqs) or
                          sorted(flat) != list(range(queues)))

    def do_device_del(self, args: Args) -> None:
        self.qemu.execute('device_del', **args)
        device = self.devices[args['id']]
        device.pending = True
        if device.driver == 'scsi-hd':
            self.wait_deleted([args['id']])

    def wait_deleted(self, names: list[str]) -> None:
        """An HBA takes its disks with it."""
        for name, device in self.devices.items():
            if name in names or device.bus in names:
                self.qemu.wait_event('DEVICE_DELETED', name)

    def do_system_reset(self, args: Args) -> None:
        self.qemu.execute('system_reset')
        self.qemu.wait_event('RESET')
        self.wait_deleted([name for name, device in self.devices.items()
                           if device.pending])

    def do_eject(self, args: Args) -> None:
        """Do what a guest does when it is asked to unplug."""
        name = args['id']
        if name not in self.devices or not self.devices[name].pending:
            raise Refused('not being unplugged')
        self.qemu.hmp('o /w 0xae10 0')
        self.qemu.hmp(f'o /w 0xae08 {1 << slot(name):#x}')
        self.wait_deleted([name])

    def do_start(self, args: Args) -> None:
        """Do what a driver does last: tell the device that it is ready."""
        name = args['id']
        if name not in self.devices or self.devices[name].bus:
            raise Refused('no such PCI device')
        config, bar = 0x80000000 | slot(name) << 11, 0x2000 + (slot(name) << 8)
        for register, value in ((0x10, bar), (0x04, 5)):
            self.qemu.hmp(f'o /w 0xcf8 {config | register:#x}')
            self.qemu.hmp(f'o /w 0xcfc {value:#x}')
        for status in (1, 3, 7):
            self.qemu.hmp(f'o /b {bar + 18:#x} {status}')
        answer = self.qemu.hmp(f'i /b {bar + 18:#x}')
        require(answer.endswith('0x07\r\n'), 'start', f'{args}: {answer}')

    # Block nodes, exports and jobs

    def did_x_blockdev_set_iothread(self, args: Args, error: str,
                                    before: View) -> None:
        node, thread = args['node-name'], args['iothread']
        if not error:
            self.chosen[node] = thread
        if error:
            group = before.group.get(node, frozenset())
            require(not group or not args['force'] or before.busy(group) or
                    self.pinned(before, group) or
                    thread and thread not in before.threads(),
                    'set-iothread', error)
        else:
            require(self.view.ctx[node] == thread, 'set-iothread',
                    f'{node}: in {self.view.ctx[node]}, not in {thread}')

    def did_block_export_add(self, args: Args, error: str,
                             before: View) -> None:
        if error:
            return
        node, thread = args['node-name'], args.get('iothread')
        group = before.group[node]
        require(thread in (None, self.view.ctx[node]) or
                not args['fixed-iothread'] and
                (self.pinned(before, group) or before.busy(group)), 'export',
                f"{args} is in {self.view.ctx[node]}")
        self.exports[args['id']] = args

    def do_connect(self, args: Args) -> None:
        name = args['id']
        if name in self.clients or 'name' not in self.exports.get(name, {}):
            raise Refused('nothing to connect to')
        try:
            self.clients[name] = Client(f'{self.temp.name}/nbd', name)
        except ConnectionError as error:
            raise Refused(str(error)) from None
        self.do_read({})

    def do_disconnect(self, args: Args) -> None:
        if args['id'] not in self.clients:
            raise Refused('no client')
        self.clients.pop(args['id']).disconnect()

    def do_read(self, args: Args) -> None:
        for client in self.clients.values():
            client.pread()

    def tear_down(self) -> None:
        """Remove everything: nothing shall hold anything any more."""
        for name in list(self.clients):
            self.run(['disconnect', {'id': name}])
        for name, nodes in list(self.view.jobs.items()):
            self.run(['x-blockdev-set-iothread', {
                'node-name': max(nodes), 'iothread': None, 'force': True}])
            self.run(['job-cancel', {'id': name}])
        for name in list(self.view.exports):
            self.run(['block-export-del', {'id': name, 'mode': 'hard'}])
        for name in list(self.devices):
            self.run(['device_del', {'id': name}])
            self.run(['eject', {'id': name}])
        for name in list(self.holds):
            self.run(['object-del', {'id': name}])
        while any([self.run(['blockdev-del', {'node-name': name}])
                   for name in NODES + OVERLAYS if name in self.view.group]):
            pass
        require(not self.view.group, 'tear-down', self.view)
        for name in self.view.threads():
            require(self.run(['object-del', {'id': name}]), 'tear-down', name)


class Generator:
    """Random steps, most of them such as the state allows."""

    def __init__(self, rng: random.Random, session: Session) -> None:
        self.rng = rng
        self.session = session
        self.steps: list[tuple[int, Callable[[], Step]]] = [
            (8, lambda: ['object-add', {
                'qom-type': 'iothread',
                'id': self.fresh(THREADS, session.view.holders)}]),
            (8, lambda: ['object-del', self.one(
                THREADS + COMPARES, [*session.view.holders, *session.holds])]),
            (20, self.blockdev_add),
            (12, lambda: ['blockdev-del', {'node-name': self.node()}]),
            (20, lambda: ['x-blockdev-set-iothread', {
                'node-name': self.node(), 'force': self.chance(0.6),
                'iothread': None if self.chance(0.2) else self.thread()}]),
            (2, lambda: ['blockdev-reopen', {'options': [self.overlay(
                self.pick(OVERLAYS, session.view.group))]}]),
            (3, lambda: ['blockdev-snapshot', {
                'node': self.node(),
                'overlay': self.pick(OVERLAYS, session.view.group)}]),
            (14, self.export_add),
            (8, lambda: ['block-export-del',
                         self.one(EXPORTS, session.exports)
                         | {'mode': self.rng.choice(['safe', 'hard'])}]),
            (2, lambda: ['nbd-server-start', {'addr': {
                'type': 'unix', 'data': {'path': '@DIR@/nbd'}}}]),
            (1, lambda: ['nbd-server-stop', {}]),
            (4, lambda: ['connect', self.one(EXPORTS, session.exports)]),
            (2, lambda: ['disconnect', self.one(EXPORTS, session.clients)]),
            (2, lambda: ['read', {}]),
            (9, self.job),
            (7, lambda: [self.rng.choice(JOB_ENDS),
                         self.one(JOBS, session.view.jobs)])]
        if session.daemon:
            return
        self.steps += [
            (20, self.device_add),
            (15, self.move),
            (8, lambda: ['device_del', self.one(DEVICES, session.devices)]),
            (5, lambda: ['eject', self.one(DEVICES, [
                name for name, device in session.devices.items()
                if device.pending])]),
            (6, lambda: ['start', self.one(DEVICES, session.devices)]),
            (5, lambda: ['system_reset', {}]),
            (5, self.colo),
            (4, lambda: ['human-monitor-command', {
                'command-line': f'qemu-io {self.node()} "read 0 4k"'}])]

    def step(self) -> Step:
        weights, functions = zip(*self.steps)
        while True:
            with contextlib.suppress(LookupError):  # nothing to do it with
                step: Step = self.rng.choices(functions, weights)[0]()
                return step

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, pool: list[str], live: Collection[str]) -> str:
        """Mostly one of those that exist, sometimes another one."""
        if self.chance(0.05):
            return self.rng.choice(pool)
        return self.rng.choice([name for name in pool if name in live])

    def fresh(self, pool: list[str], live: Collection[str]) -> str:
        """Mostly a name that is not in use."""
        return self.pick(pool, set(pool) - set(live))

    def thread(self) -> str:
        if self.chance(0.03):
            return self.rng.choice(['io9', 'mon_iothread', 'cc0'])
        return self.pick(THREADS, self.session.view.holders)

    def node(self) -> str:
        return self.pick(NODES + OVERLAYS, self.session.view.group)

    def idle_node(self) -> str:
        """Mostly a node that nothing uses."""
        view = self.session.view
        return self.node() if self.chance(0.3) else self.pick(NODES, [
            node for node, group in view.group.items() if group == {node}
            and node not in view.exports.values()])

    def one(self, pool: list[str], live: Collection[str]) -> Args:
        return {'id': self.pick(pool, live)}

    def overlay(self, name: str) -> Args:
        return {'driver': 'qcow2', 'node-name': name,
                'backing': self.node() if self.chance(0.5) else None,
                'file': {'driver': 'file', 'filename': f'@DIR@/{name}.qcow2'}}

    def blockdev_add(self) -> Step:
        nodes = self.session.view.group
        kind = self.rng.choice(['null-co'] * 4 + ['qcow2'] * 2 + [
            'raw', 'copy-on-read', 'preallocate', 'quorum'])
        if kind == 'qcow2':
            return ['blockdev-add', self.overlay(
                self.fresh(OVERLAYS, nodes))]
        args: Args = {'driver': kind, 'node-name': self.fresh(NODES, nodes)}
        if kind == 'null-co':
            args |= {'size': DISK_SIZE, 'read-zeroes': True}
        elif kind == 'quorum':
            args |= {'vote-threshold': 1,
                     'children': [self.node(), self.node()]}
        else:
            args['file'] = self.node()
        return ['blockdev-add', args]

    def export_add(self) -> Step:
        name = self.fresh(EXPORTS, self.session.view.exports)
        args: Args = {'id': name, 'type': 'nbd', 'node-name': self.node(),
                      'fixed-iothread': self.chance(0.25),
                      'writable': self.chance(0.3)}
        if self.chance(0.7):
            args['name'] = name if self.chance(0.95) else 'e0'
        else:
            path = 'none/socket' if self.chance(0.1) else name
            args |= {'type': 'vhost-user-blk',
                     'addr': {'type': 'unix', 'path': f'@DIR@/{path}'},
                     'logical-block-size': 3 if self.chance(0.1) else 512}
        if self.chance(0.7):
            args['iothread'] = self.thread()
        return ['block-export-add', args]

    def job(self) -> Step:
        command = self.rng.choice(JOB_COMMANDS)
        args: Args = {'job-id': self.fresh(JOBS, self.session.view.jobs)}
        if command in ('blockdev-mirror', 'blockdev-backup'):
            args |= {'device': self.node(), 'target': self.idle_node(),
                     'sync': self.rng.choice(['full', 'top', 'none'])}
        else:
            args['device'] = self.pick(OVERLAYS, self.session.view.group)
        if args.get('sync') == 'none' or self.chance(0.6):
            args['speed'] = 1
        return [command, args]

    def colo(self) -> Step:
        args: Args = {'qom-type': 'colo-compare', 'iothread': self.thread(),
                      'id': self.fresh(COMPARES, self.session.holds)}
        args |= zip(['primary_in', 'secondary_in', 'outdev', 'notify_dev'][
            :self.rng.randint(2, 4)], self.rng.sample([*CHARDEVS, 'c9'], 4))
        return ['object-add', args]

    def device_add(self) -> Step:
        driver = self.rng.choice([
            'virtio-blk-pci', 'virtio-blk-pci', 'virtio-blk-pci',
            'virtio-scsi-pci', 'scsi-hd', 'scsi-hd', 'virtio-balloon-pci'])
        args: Args = {'id': self.fresh(DEVICES, self.session.devices),
                      'driver': driver}
        if driver in ('scsi-hd', 'virtio-blk-pci'):
            args |= {'drive': self.node(), 'share-rw': self.chance(0.5)}
        if driver == 'scsi-hd':
            args['bus'] = self.pick(DEVICES, [
                name for name, device in self.session.devices.items()
                if device.driver == 'virtio-scsi-pci']) + '.0'
            return ['device_add', args]
        args['addr'] = hex(slot(args['id']))
        if self.chance(0.5):
            args['iothread'] = self.thread()
        if driver == 'virtio-balloon-pci':
            args['free-page-hint'] = self.chance(0.7)
            return ['device_add', args]
        queues = self.rng.randint(1, 5)
        args['num-queues' if 'blk' in driver else 'num_queues'] = queues
        if self.chance(0.1 if 'iothread' in args else 0.8):
            args['iothread-vq-mapping'] = self.mapping(queues)
        # refused before and after the IOThread is taken
        if self.chance(0.1):
            args |= self.rng.choice([
                {'ioeventfd': False}, {'queue-size': 3},
                {'iommu_platform': True, 'disable-legacy': 'off'}])
        return ['device_add', args]

    def move(self) -> Step:
        devices = self.session.devices
        name = self.pick(DEVICES, [name for name, device in devices.items()
                                   if device.queues or self.chance(0.05)])
        queues = devices[name].queues if name in devices else 1
        return [MOVE, {'device': name, 'iothread-vq-mapping': [] if
                       self.chance(0.15) else self.mapping(queues)}]

    def mapping(self, queues: int) -> list[Args]:
        names = [self.thread() for _ in range(self.rng.randint(1, 3))]
        if self.chance(0.9):
            names = list(dict.fromkeys(names))
        if self.chance(0.2):
            # the same IOThread under a name that is no duplicate
            names.append('/objects/' + names[0])
        items: list[Args] = [{'iothread': name} for name in names]
        if self.chance(0.5):
            numbers = self.rng.sample(range(queues), queues)
            numbers += [queues] * self.chance(0.1)
            for i, item in enumerate(items):
                item['vqs'] = numbers[i::len(items)]
            if self.chance(0.1):
                del items[0]['vqs']
        return items


Options = argparse.Namespace
counts: collections.Counter[str] = collections.Counter()


def play(options: Options, source: Callable[[Session], Iterable[Step]]
         ) -> tuple[list[Step], Failure | None]:
    """Run the steps of @source; what was run, and why it ended early."""
    done: list[Step] = []
    session = Session(options.binary, options.daemon)
    try:
        session.begin()
        for step in source(session):
            done.append(step)
            accepted = session.run(step)
            counts[step[0] + (' accepted' if accepted else ' refused')] += 1
    except Failure as failure:
        return done, failure
    finally:
        session.close()
    return done, None


def shrink(options: Options, steps: list[Step], kind: str) -> list[Step]:
    """Leave out what is not needed to fail in the same way."""
    global timeout
    if kind == 'hang':
        timeout = 5
    end = time.monotonic() + options.shrink_seconds
    size = len(steps)
    while size > 1:
        size = (size + 1) // 2
        start = 0
        while start < len(steps) and time.monotonic() < end:
            fewer = steps[:start] + steps[start + size:]
            failure = play(options, lambda session: fewer)[1]
            if failure and failure.kind == kind:
                steps = fewer
            else:
                start += size
    return steps


def stress(options: Options) -> None:
    rng = random.Random(options.seed)
    begin = time.monotonic()

    def source(session: Session) -> Iterator[Step]:
        generator = Generator(rng, session)
        for _ in range(min(SESSION, options.steps - first)):
            yield generator.step()
        if rng.random() < 0.5:
            yield ['tear-down', {}]
        yield ['quit', {}]

    for first in range(0, options.steps, SESSION):
        steps, failure = play(options, source)
        if failure:
            options.output.write_text(json.dumps(steps))
            print(f'FAILED after {len(steps)} steps, by {steps[-1:]}: '
                  f'{failure}\nSee {options.output}; shrinking it, for at '
                  f'most {options.shrink_seconds} s', flush=True)
            steps = shrink(options, steps, failure.kind)
            options.output.write_text(json.dumps(steps))
            print(*map(json.dumps, steps), sep='\n')
            sys.exit(f'These {len(steps)} steps are enough for {failure.kind}')
    print(f'{options.steps} steps without a difference, seed {options.seed}, '
          f'{options.steps / (time.monotonic() - begin):.0f}/s: '
          + ', '.join(f'{name} {n}' for name, n in sorted(counts.items())))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--daemon', action='store_true',
                        help='the binary is a qemu-storage-daemon')
    parser.add_argument('--binary', required=True)
    parser.add_argument('--steps', type=int, default=20000)
    parser.add_argument('--seed', type=int,
                        default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument('--replay', type=pathlib.Path, metavar='FILE')
    parser.add_argument('--output', type=pathlib.Path, metavar='FILE',
                        default=pathlib.Path('iothread-holders.json'),
                        help='where a failing run is written')
    parser.add_argument('--shrink-seconds', type=int, default=300)
    options = parser.parse_args()
    if options.replay:
        steps = json.loads(options.replay.read_text())
        failure = play(options, lambda session: steps)[1]
        sys.exit(f'FAILED: {failure}' if failure else 0)
    print(f'seed {options.seed}', flush=True)
    stress(options)


if __name__ == '__main__':
    main()
