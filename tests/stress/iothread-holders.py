#!/usr/bin/env python3
#
# Random model test of the holders of IOThreads: drives a QEMU (or, with
# --daemon, a qemu-storage-daemon) over QMP with random commands, also such as
# it refuses, and compares query-iothreads with a model after each of them.
#
# What the model knows, it knows from elsewhere: from properties of devices
# (qom-get), from the graph of block nodes (x-debug-query-block-graph), from
# the list of exports, and from the rules by which nodes move between
# AioContexts.  A failing run is shrunk to a short one, which --replay repeats.
#
# Usage: iothread-holders.py [--daemon] --binary PATH [--steps N] [--seed S]
#                            [--replay FILE]
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import collections
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

timeout = 30            # seconds until an answer that does not come is a hang
DISK_SIZE = 1 << 24
SESSION = 2000          # steps between two restarts
SANITIZER = re.compile('ERROR: AddressSanitizer|LeakSanitizer|runtime error')

THREADS = [f'io{i}' for i in range(5)]
NODES = [f'n{i}' for i in range(10)]
OVERLAYS = [f'o{i}' for i in range(4)]
DEVICES = [f'd{i}' for i in range(8)]
EXPORTS = [f'e{i}' for i in range(5)]
CHARDEVS = [f'c{i}' for i in range(5)]
COMPARES = ['cc0', 'cc1']
JOBS = ['j0', 'j1', 'j2']
JOB_COMMANDS = ('blockdev-mirror', 'blockdev-backup', 'block-stream',
                'block-commit')
# may take a parent from a node, which then moves to the main loop
FOR_ALL_NODES = ('nbd-server-stop', 'system_reset', 'quit')
MAY_MOVE = JOB_COMMANDS + FOR_ALL_NODES + (
    'block-export-add', 'block-export-del', 'blockdev-add', 'blockdev-del',
    'device_add', 'device_del', 'eject', 'human-monitor-command')

Step = list[Any]        # command, arguments
Ctx = str | None        # an IOThread, or None for the main loop


class Failure(Exception):
    """A difference between QEMU and the model; @kind tells such apart."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f'{kind}: {text}')
        self.kind = kind


def require(condition: object, kind: str, text: str) -> None:
    if not condition:
        raise Failure(kind, text)


class Refused(Exception):
    """QEMU answered with an error."""


class Qemu:
    """The process, its monitor and its qtest socket."""

    def __init__(self, binary: str, daemon: bool, directory: str) -> None:
        self.directory = directory
        self.events: list[dict[str, Any]] = []
        self.buffer = b''
        self.qtest: socket.socket | None = None
        self.stderr_path = os.path.join(directory, 'stderr')
        # not stdio: HMP's qemu-io prints to the process' own stdout
        self.qmp, theirs = socket.socketpair()
        self.qmp.settimeout(timeout)
        args = [binary, '--chardev', f'socket,id=qmp,fd={theirs.fileno()}']
        if daemon:
            args += ['--monitor', 'chardev=qmp']
        else:
            args += ['-mon', 'chardev=qmp,mode=control', '-machine', 'pc',
                     '-accel', 'qtest', '-nodefaults', '-display', 'none',
                     '-m', '16', '-qtest-log', 'none',
                     '-qtest', f'unix:{directory}/qtest,server=on,wait=off']
        with open(self.stderr_path, 'wb') as stderr:
            self.process = subprocess.Popen(
                args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=stderr, pass_fds=[theirs.fileno()])
        theirs.close()
        self.read()                                 # the greeting
        self.execute('qmp_capabilities')
        if not daemon:
            self.qtest = socket.socket(socket.AF_UNIX)
            self.qtest.settimeout(timeout)
            self.qtest.connect(f'{directory}/qtest')

    def stderr(self) -> str:
        with open(self.stderr_path, errors='replace') as file:
            return file.read()

    def died(self) -> Failure:
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return Failure('hang', 'the monitor is closed, but no exit')
        text = self.stderr()
        assertion = re.search('Assertion.*', text)
        return Failure(f'died ({assertion[0]})' if assertion else 'died',
                       f'exit code {self.process.returncode}\n{text[-8000:]}')

    def read(self) -> dict[str, Any]:
        while b'\n' not in self.buffer:
            try:
                data = self.qmp.recv(1 << 16)
            except TimeoutError:
                raise Failure('hang', f'no answer in {timeout} s') from None
            except ConnectionError:
                data = b''
            if not data:
                raise self.died()
            self.buffer += data
        line, self.buffer = self.buffer.split(b'\n', 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def execute(self, command: str, **arguments: Any) -> Any:
        request = {'execute': command, 'arguments': arguments}
        try:
            self.qmp.sendall(json.dumps(request).encode() + b'\n')
        except ConnectionError:
            raise self.died() from None
        while True:
            answer = self.read()
            if 'return' in answer:
                return answer['return']
            if 'error' in answer:
                raise Refused(answer['error']['desc'])
            if 'event' in answer:
                self.events.append(answer)

    def wait_event(self, name: str, device: str | None = None) -> None:
        """Wait for an event, from those since the step began."""
        def found() -> bool:
            return any(e['event'] == name and
                       (device is None or e['data'].get('device') == device)
                       for e in self.events)

        while not found():
            answer = self.read()
            if 'event' in answer:
                self.events.append(answer)

    def io(self, command: str) -> int:
        assert self.qtest
        self.qtest.sendall(command.encode() + b'\n')
        answer = b''
        while not answer.endswith(b'\n'):
            try:
                data = self.qtest.recv(4096)
            except TimeoutError:
                raise Failure('hang', f'no answer to {command}') from None
            if not data:
                raise self.died()
            answer += data
        words = answer.split()
        return int(words[1], 0) if len(words) > 1 else 0

    def quit(self) -> None:
        try:
            self.execute('quit')
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failure('hang', 'does not quit') from None
        text = self.stderr()
        require(self.process.returncode == 0 and not SANITIZER.search(text),
                'exit', f'exit code {self.process.returncode}\n{text[-8000:]}')

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.qmp.close()
        if self.qtest:
            self.qtest.close()


class Client:
    """A client of an NBD export."""

    def __init__(self, path: str, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(path)
            self.receive(18)
            self.socket.sendall(struct.pack('>L8sLL', 3, b'IHAVEOPT', 1,
                                            len(name)) + name.encode())
            self.receive(10)
        except OSError:
            self.socket.close()
            raise

    def receive(self, size: int) -> bytes:
        data = b''
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except TimeoutError:
                raise Failure('hang', 'NBD: no answer') from None
            if not more:
                raise ConnectionError
            data += more
        return data

    def pread(self) -> None:
        self.socket.sendall(struct.pack('>LHHQQL', 0x25609513, 0, 0, 1, 0,
                                        4096))
        magic, error = struct.unpack('>LL8x', self.receive(16))
        require(magic == 0x67446698 and error == 0, 'I/O',
                f'NBD: reply {magic:#x}, error {error}')
        self.receive(4096)

    def disconnect(self) -> None:
        # Not just close(): then the NBD server may assert when the export
        # moves to another thread before it has noticed
        self.socket.sendall(struct.pack('>LHHQQL', 0x25609513, 0, 2, 1, 0, 0))
        try:
            self.socket.recv(1)
        except TimeoutError:
            raise Failure('hang', 'NBD: does not disconnect') from None
        except ConnectionError:
            pass
        self.socket.close()


Key = tuple[Any, ...]


def holder_key(holder: dict[str, Any]) -> Key:
    kind = holder['type']
    members = {'qom-object': {'qom-path', 'device', 'vqs'},
               'block-export': {'id', 'node-name'},
               'block-node': {'node-name'}, 'monitor': {'id'}}
    require(set(holder) <= members[kind] | {'type'}, 'schema', str(holder))
    if kind == 'qom-object':
        vqs = holder.get('vqs')
        return (kind, holder['qom-path'], holder.get('device'),
                None if vqs is None else tuple(vqs))
    if kind == 'block-export':
        return (kind, holder['id'], holder['node-name'])
    return (kind, holder['node-name' if kind == 'block-node' else 'id'])


def describe(holders: list[Key]) -> str:
    """What an error message says about the holders."""
    names: list[str] = []
    for key in dict.fromkeys(key[:2] + (key[2:3] if key[0] == 'qom-object'
                                        else ()) for key in holders):
        if key[0] == 'qom-object':
            names.append(f"device '{key[2]}' ({key[1]})" if key[2] else key[1])
        else:
            names.append(f"{key[0].replace('-', ' ')} '{key[1]}'")
    named, more = names[:8], len(names) - 8
    if more > 0:
        return ', '.join(named) + f' and {more} more'
    return ' and '.join(filter(None, [', '.join(named[:-1]), named[-1]]))


@dataclass
class View:
    """What QEMU shows."""
    threads: list[str] = field(default_factory=list)
    holders: dict[str, list[Key]] = field(default_factory=dict)
    poll: dict[str, int] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    # block nodes that are connected, and the jobs that connect them
    group: dict[str, frozenset[str]] = field(default_factory=dict)
    jobs: dict[str, frozenset[str]] = field(default_factory=dict)
    graph: Any = None
    ctx: dict[str, Ctx] = field(default_factory=dict)

    def busy(self, group: frozenset[str]) -> bool:
        return any(nodes & group for nodes in self.jobs.values())

    def place(self, group: frozenset[str]) -> Ctx:
        return self.ctx[next(iter(group))]


def connected(graph: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    neighbours: dict[int, list[int]] = {n['id']: [] for n in graph['nodes']}
    for edge in graph['edges']:
        neighbours[edge['parent']].append(edge['child'])
        neighbours[edge['child']].append(edge['parent'])
    by_id = {n['id']: n for n in graph['nodes']}
    while by_id:
        todo = [next(iter(by_id))]
        group = []
        while todo:
            number = todo.pop()
            if number in by_id:
                group.append(by_id.pop(number))
                todo += neighbours[number]
        yield group


@dataclass
class Device:
    driver: str
    bus: str | None = None      # the HBA of a scsi-hd
    node: str | None = None
    holds: list[tuple[str, tuple[int, ...] | None]] = field(
        default_factory=list)
    started: bool = False
    pending: bool = False       # device_del was accepted

    def first_queue(self) -> Ctx:
        for thread, vqs in self.holds:
            if vqs and 0 in vqs:
                return thread
        return None


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def expand(value: Any, directory: str) -> Any:
    if isinstance(value, str):
        return value.replace('@DIR@', directory)
    if isinstance(value, dict):
        return {k: expand(v, directory) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v, directory) for v in value]
    return value


def write_qcow2(path: str) -> None:
    """An empty image: header, refcount table and block, L1 table."""
    bits = 16
    header = struct.pack('>4sLQLLQLLQQLLQ', b'QFI\xfb', 2, 0, 0, bits,
                         DISK_SIZE, 0, 1, 3 << bits, 1 << bits, 1, 0, 0)
    with open(path, 'wb') as file:
        for cluster in (header, struct.pack('>Q', 2 << bits),
                        struct.pack('>4H', 1, 1, 1, 1), b''):
            file.write(cluster.ljust(1 << bits, b'\0'))


class Session:
    """One QEMU and the model of it."""

    def __init__(self, binary: str, daemon: bool) -> None:
        # short, for it becomes part of the address of sockets
        self.temp = tempfile.TemporaryDirectory(prefix='hold', dir='/tmp')
        self.daemon = daemon
        self.devices: dict[str, Device] = {}
        self.compares: dict[str, str] = {}
        self.fixed: set[str] = set()            # exports that pin their node
        self.types: dict[str, str] = {}         # of exports
        self.writable: set[str] = set()
        self.clients: dict[str, Client] = {}
        self.slow: set[str] = set()             # jobs that go on forever
        self.ending: set[str] = set()
        self.poll: dict[str, int] = {}
        # holders other than nodes and exports: these never move
        self.attached: dict[str, list[Key]] = {
            'mon_iothread': [('monitor', 'qmp')]}
        # the nodes that the step may move, and where to
        self.exact: dict[str, Ctx] = {}
        self.targets: set[Ctx] = set()
        self.qemu = Qemu(binary, daemon, self.temp.name)
        try:
            self.qemu.execute('object-add', **{'qom-type': 'throttle-group',
                                               'id': 'tg0'})
            self.view = self.look()
            self.check_invariants(self.view)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for client in self.clients.values():
            client.socket.close()
        self.qemu.kill()
        self.temp.cleanup()

    # What QEMU shows

    def look(self) -> View:
        view = View()
        try:
            infos = self.qemu.execute('query-iothreads', internal=True)
        except Refused as error:
            raise Failure('no holders', str(error)) from None
        for info in infos:
            require('holders' in info, 'no holders', str(info))
            view.threads.append(info['id'])
            view.poll[info['id']] = info['poll-max-ns']
            view.holders[info['id']] = [holder_key(h) for h in info['holders']]
        for export in self.qemu.execute('query-block-exports'):
            view.exports[export['id']] = export['node-name']
        view.graph = self.qemu.execute('x-debug-query-block-graph')
        for members in connected(view.graph):
            group = frozenset(m['name'] for m in members
                              if m['type'] == 'block-driver')
            view.group.update(dict.fromkeys(group, group))
            view.jobs.update((m['name'], group) for m in members
                             if m['type'] == 'block-job')
        view.ctx = dict.fromkeys(view.group, None)
        seen: set[Key] = set()
        for thread, keys in view.holders.items():
            for key in keys:
                if key[0] == 'block-node':
                    require(key[1] in view.group, 'ghost', f'no node {key}')
                    view.ctx[key[1]] = thread
                if key[0] != 'qom-object':
                    require(key not in seen, 'twice', str(key))
                    seen.add(key)
        return view

    def check_invariants(self, view: View) -> None:
        objects = [o['name'] for o in self.qemu.execute(
            'qom-list', path='/objects') if o['type'] == 'child<iothread>']
        require(sorted(objects + ['mon_iothread']) == sorted(view.threads),
                'threads', f'{objects} are shown as {view.threads}')
        for group in set(view.group.values()):
            places = {view.ctx[node] for node in group}
            require(len(places) == 1, 'split', f'{sorted(group)}: {places}')
        for thread, keys in view.holders.items():
            others = [key for key in keys
                      if key[0] in ('qom-object', 'monitor')]
            require(others == self.attached.get(thread, []), 'holders',
                    f'{thread}: shown {others}\n'
                    f'expected {self.attached.get(thread, [])}')
            expected = {('block-export', name, node)
                        for name, node in view.exports.items()
                        if view.ctx[node] == thread}
            shown = {key for key in keys if key[0] == 'block-export'}
            require(shown == expected, 'exports',
                    f'{thread}: shown {shown}\nexpected {expected}')
            if thread in self.poll:
                require(view.poll[thread] == self.poll[thread], 'poll',
                        f'{thread}: {view.poll[thread]}')

    # Which nodes cannot move, since a device or an export pins them

    def pins(self, view: View) -> dict[str, str]:
        pins = {name: device.node for name, device in self.devices.items()
                if device.node}
        pins.update((name, view.exports[name]) for name in self.fixed
                    if name in view.exports)
        return pins

    def pinned(self, view: View, group: frozenset[str],
               but: str | None = None) -> bool:
        return any(node in group for name, node in self.pins(view).items()
                   if name != but)

    def touched(self, args: Any, view: View) -> set[str]:
        """The nodes that a step names, also by a device, export or job."""
        nodes = set()
        for name in ' '.join(strings(args)).split():
            if name in view.group:
                nodes.add(name)
            elif name in view.exports:
                nodes.add(view.exports[name])
            elif name in view.jobs:
                nodes |= view.jobs[name]
            for number, device in self.devices.items():
                if name in (number, device.bus) and device.node in view.group:
                    nodes.add(device.node)
        return {n for node in nodes for n in view.group[node]}

    # Steps

    def run(self, step: Step) -> bool:
        """Do @step and check what came of it; false if QEMU refused it."""
        command, args = step
        if self.known_crash(command, args):
            if command != 'quit':
                return False
            self.tear_down()
        if command == 'tear-down':
            self.tear_down()
            return True
        if command == 'quit':
            self.qemu.quit()
            return True
        self.qemu.events.clear()
        self.exact, self.targets = {}, set()
        before = self.view
        pins_before = self.pins(before)
        moved = self.touched(args, before)
        if command in FOR_ALL_NODES:
            moved = set(before.group)
        error = ''
        try:
            self.perform(command, args)
        except Refused as refused:
            error = str(refused)
        view = self.settled_view()
        if view.graph != before.graph:
            # a job or a snapshot may have put another node under a device
            for name, device in self.devices.items():
                if device.node and self.exists(name):
                    device.node = self.get(name, 'drive')
        method = getattr(self, 'did_' + command.replace('-', '_'), None)
        if command in JOB_COMMANDS:
            method = self.did_start_job
        self.view = view
        if method:
            method(args, error, before, view)
        moved |= self.touched(args, view)
        for job in set(before.jobs) - set(view.jobs):
            for node in before.jobs[job] & set(view.group):
                moved |= view.group[node]
                self.targets.add(None)
                for member in view.group[node]:
                    self.exact.pop(member, None)
        moved |= {node for node, group in view.group.items()
                  if before.group.get(node) != group}
        self.check_invariants(view)
        self.check_places(before, view, moved, pins_before)
        self.check_order(before, view, moved)
        return not error

    def known_crash(self, command: str, args: dict[str, Any]) -> bool:
        """Steps that crash a QEMU without holders as well."""
        view = self.view
        nodes = view.group if command in FOR_ALL_NODES else \
            self.touched(args, view)
        for group in {view.group[node] for node in nodes}:
            # job_set_aio_context() asserts that the job is paused, but the
            # drain on the removal of a parent does not wait for that
            jobs = sum(bool(members & group)
                       for members in view.jobs.values())
            if view.place(group) is not None and (
                    command in MAY_MOVE and jobs > 0 or
                    command in ('job-cancel', 'job-complete') and jobs > 1 and
                    not self.pinned(view, group)):
                return True
            # a job that ends cannot give back its permissions to others
            if jobs > 0 and (command == 'device_add' or args.get('writable')):
                return True
        if command == 'blockdev-add' and args['driver'] == 'throttle':
            # follows its child into an IOThread before it is set up
            return view.ctx.get(args['file']) is not None
        if command in ('block-stream', 'blockdev-backup'):
            # bdrv_insert_node() asserts that the node stays where it is, but
            # attaching the new node moves it
            node = args['device']
            if view.ctx.get(node) is not None and \
                    not self.pinned(view, view.group[node]):
                return True
        if command == 'block-stream':
            # leaks a BlockBackend where other writers make it fail late
            group = view.group.get(args['device'], frozenset())
            return view.busy(group) or self.pinned(view, group) or \
                any(view.exports[name] in group for name in self.writable)
        if command == 'device_add' and args['driver'] == 'virtio-scsi-pci':
            # freed, but still told when the VM stops
            mapping = args.get('iothread-vq-mapping')
            return args.get('ioeventfd') is False or mapping is not None and (
                'iothread' in args or
                not self.valid(mapping, args['num_queues']))
        if command in ('nbd-server-stop', 'quit'):
            # qcow2 polls when it is detached from an IOThread, under the
            # graph lock, which the deletion of the next export takes as well
            return len(view.exports) > 1 and any(
                view.ctx.get(node) is not None for node in OVERLAYS)
        if command == 'system_reset':
            # a balloon leaves the list of what is reset while that is walked
            return any(device.pending and
                       device.driver == 'virtio-balloon-pci'
                       for device in self.devices.values())
        return False

    def valid(self, mapping: list[dict[str, Any]], queues: int) -> bool:
        names = [item['iothread'] for item in mapping]
        vqs = [n for item in mapping for n in item.get('vqs', [])]
        return len(set(names)) == len(names) and \
            self.poll_threads(self.view) >= set(map(os.path.basename, names)
                                                ) and \
            len({bool(item.get('vqs')) for item in mapping}) == 1 and \
            (not vqs or sorted(vqs) == list(range(queues)))

    def perform(self, command: str, args: dict[str, Any]) -> None:
        if hasattr(self, 'do_' + command.replace('-', '_')):
            getattr(self, 'do_' + command.replace('-', '_'))(args)
            return
        if args.get('driver') == 'qcow2':
            if args['node-name'] not in self.view.group:
                write_qcow2(f"{self.temp.name}/{args['node-name']}.qcow2")
        self.result = self.qemu.execute(command,
                                        **expand(args, self.temp.name))

    def settled_view(self) -> View:
        """What QEMU shows when all is done that the step began."""
        deadline = time.monotonic() + timeout
        while True:
            number = len(self.qemu.events)
            require(time.monotonic() < deadline, 'hang',
                    f'jobs never settle: {self.qemu.events[-9:]}')
            self.settle()
            view = self.look()
            # a job that drains have woken may end by itself
            if not any(event['event'] == 'JOB_STATUS_CHANGE'
                       for event in self.qemu.events[number:]):
                return view

    def settle(self) -> None:
        deadline = time.monotonic() + timeout
        if any(e['event'] == 'JOB_STATUS_CHANGE' for e in self.qemu.events):
            while True:
                jobs = self.qemu.execute('query-jobs')
                self.ending &= {job['id'] for job in jobs}
                if all(job['id'] not in self.ending and
                       (job['status'] == 'ready' or
                        job['status'] == 'running' and job['id'] in self.slow)
                       for job in jobs):
                    break
                require(time.monotonic() < deadline, 'hang', f'jobs: {jobs}')
                time.sleep(0.001)
        while True:
            exports = self.qemu.execute('query-block-exports')
            if not any(export['shutting-down'] for export in exports):
                break
            require(time.monotonic() < deadline, 'hang', f'{exports}')
            time.sleep(0.001)

    def check_places(self, before: View, view: View, moved: set[str],
                     pins_before: dict[str, str]) -> None:
        pins = self.pins(view)
        for node, group in view.group.items():
            place = view.ctx[node]
            if node not in moved:
                require(place == before.ctx[node], 'moved',
                        f'{node}: from {before.ctx[node]} to {place}')
                continue
            if node in self.exact:
                require(place == self.exact[node], 'place',
                        f'{node}: in {place}, expected {self.exact[node]}')
                continue
            may = {before.ctx[n] for n in group if n in before.ctx}
            may |= self.targets
            # a pin that stays keeps its node where it is
            kept = {before.ctx[pins_before[name]] for name in pins
                    if name in pins_before and pins[name] in group}
            if kept and not self.targets:
                may = kept
            else:
                may.add(None)
            require(place in may, 'place', f'{node}: in {place}, not in {may}')

    def check_order(self, before: View, view: View, moved: set[str]) -> None:
        """What stayed keeps its order; what came or moved is at the end."""
        for thread, keys in view.holders.items():
            old = [key[:2] for key in before.holders.get(thread, [])]
            for key in keys:
                if key[:2] in old:
                    del old[:old.index(key[:2]) + 1]
                elif key in before.holders.get(thread, []):
                    node = key[2] if key[0] == 'block-export' else key[1]
                    require(key[0] in ('block-export', 'block-node') and
                            node in moved, 'order',
                            f'{key}\nwas {before.holders[thread]}\n'
                            f'is {keys}')

    def expect(self, node: str, ctx: Ctx) -> None:
        for member in self.view.group[node]:
            self.exact[member] = ctx

    def expect_main(self, node: str | None, before: View, view: View) -> None:
        """@node lost a parent: what is not pinned moves to the main loop."""
        if node not in view.group or node not in before.group:
            return
        group = view.group[node]
        if self.pinned(view, group):
            self.expect(node, before.ctx[node])
        elif not view.busy(group) and not before.busy(before.group[node]):
            self.expect(node, None)

    # IOThreads

    def did_object_add(self, args: dict[str, Any], error: str, before: View,
                       view: View) -> None:
        name = args['id']
        if args['qom-type'] == 'iothread':
            exists = name in before.threads or name in self.compares
            require(bool(error) == exists, 'object-add', error or 'accepted')
            if not error:
                self.attached[name] = []
                self.poll[name] = args.get('poll-max-ns', 32768)
        elif not error:
            thread = self.qemu.execute('qom-get', path=f'/objects/{name}',
                                       property='iothread')
            self.compares[name] = os.path.basename(thread)
            self.attached[self.compares[name]].append(
                ('qom-object', f'/objects/{name}', None, None))

    def did_object_del(self, args: dict[str, Any], error: str, before: View,
                       view: View) -> None:
        name = args['id']
        if name in before.threads:
            holders = before.holders[name]
            expected = holders and (
                f"object '{name}' is in use, can not be deleted: it is held "
                f"by {describe(holders)}")
            require(error == (expected or ''), 'object-del',
                    f'{error!r}\nexpected {expected!r}')
            if not error:
                del self.attached[name]
        elif name in self.compares:
            require(not error, 'object-del', error)
            thread = self.compares.pop(name)
            self.attached[thread].remove(
                ('qom-object', f'/objects/{name}', None, None))
        else:
            require(error, 'object-del', 'accepted')

    def did_qom_set(self, args: dict[str, Any], error: str, before: View,
                    view: View) -> None:
        name = os.path.basename(args['path'])
        require(bool(error) == (name not in before.threads or
                                args['value'] < 0), 'qom-set', error)
        if not error:
            self.poll[name] = args['value']

    # Devices

    def get(self, device: str, name: str) -> Any:
        return self.qemu.execute('qom-get', property=name,
                                 path=f'/machine/peripheral/{device}')

    def exists(self, device: str) -> bool:
        names = self.qemu.execute('qom-list', path='/machine/peripheral')
        return device in [o['name'] for o in names]

    def did_device_add(self, args: dict[str, Any], error: str, before: View,
                       view: View) -> None:
        if error:
            return
        name = args['id']
        require(name not in self.devices, 'device_add', 'accepted twice')
        require(self.get(name, 'realized') is True, 'realized', name)
        device = Device(args['driver'], args.get('bus', '').split('.')[0])
        if device.driver == 'scsi-hd':
            device.node = self.get(name, 'drive')
            ctx = self.devices[device.bus].first_queue()
            group = view.group[device.node]
            if ctx and not self.pinned(view, group):
                if view.busy(group):
                    self.targets.add(ctx)
                else:
                    self.expect(device.node, ctx)
            else:
                self.expect(device.node, before.ctx[device.node])
        else:
            thread = os.path.basename(self.get(name, 'iothread'))
            queues = 'num-queues'
            if device.driver == 'virtio-balloon-pci':
                if self.get(name, 'free-page-hint'):
                    device.holds = [(thread, None)]
            else:
                if device.driver == 'virtio-blk-pci':
                    device.node = self.get(name, 'drive')
                    # the property 'drive' attaches it in the main loop
                    if view.busy(view.group[device.node]):
                        self.targets.add(None)
                    else:
                        self.expect(device.node, None)
                else:
                    queues = 'num_queues'
                device.holds = self.mapping(thread, self.get(name, queues),
                                            self.get(name,
                                                     'iothread-vq-mapping'))
            for thread, vqs in device.holds:
                self.attached[thread].append(self.device_key(name, vqs))
        self.devices[name] = device

    @staticmethod
    def mapping(thread: str, queues: int, mapping: list[dict[str, Any]]
                ) -> list[tuple[str, tuple[int, ...] | None]]:
        if thread:
            return [(thread, tuple(range(queues)))]
        return [(os.path.basename(item['iothread']),
                 tuple(item.get('vqs') or range(i, queues, len(mapping))))
                for i, item in enumerate(mapping or [])]

    @staticmethod
    def device_key(name: str, vqs: tuple[int, ...] | None) -> Key:
        return ('qom-object', f'/machine/peripheral/{name}/virtio-backend',
                name, vqs)

    def forget_device(self, name: str, before: View, view: View) -> None:
        self.qemu.wait_event('DEVICE_DELETED', name)
        device = self.devices.pop(name)
        for thread, vqs in device.holds:
            self.attached[thread].remove(self.device_key(name, vqs))

    def do_device_del(self, args: dict[str, Any]) -> None:
        self.qemu.execute('device_del', **args)
        device = self.devices.get(args['id'])
        if device and device.driver == 'scsi-hd':
            self.qemu.wait_event('DEVICE_DELETED', args['id'])

    def did_device_del(self, args: dict[str, Any], error: str, before: View,
                       view: View) -> None:
        name = args['id']
        if error:
            return
        device = self.devices[name]
        if device.driver == 'scsi-hd':
            self.forget_device(name, before, view)
            self.expect_main(device.node, before, view)
        else:
            device.pending = True

    def do_system_reset(self, args: dict[str, Any]) -> None:
        self.qemu.execute('system_reset')
        self.qemu.wait_event('RESET')
        for name in self.unplugged():
            self.qemu.wait_event('DEVICE_DELETED', name)

    def unplugged(self, only: str | None = None) -> list[str]:
        """What a reset removes: an HBA takes its disks with it."""
        gone = [name for name, device in self.devices.items()
                if device.pending and only in (None, name)]
        return gone + [name for name, device in self.devices.items()
                       if device.bus in gone]

    def do_eject(self, args: dict[str, Any]) -> None:
        """Do what a guest does when it is asked to unplug."""
        name = args['id']
        slot = self.find_slot(name)
        if slot is None or not self.devices[name].pending:
            raise Refused('not being unplugged')
        self.qemu.io('outl 0xae10 0')
        self.qemu.io(f'outl 0xae08 {1 << slot:#x}')
        for gone in self.unplugged(name):
            self.qemu.wait_event('DEVICE_DELETED', gone)

    def did_eject(self, args: dict[str, Any], error: str, before: View,
                  view: View) -> None:
        if error:
            return
        nodes = []
        for name in self.unplugged(args['id']):
            nodes.append(self.devices[name].node)
            self.forget_device(name, before, view)
        for node in nodes:
            self.expect_main(node, before, view)

    def did_system_reset(self, args: dict[str, Any], error: str, before: View,
                         view: View) -> None:
        require(not error, 'system_reset', error)
        pins = self.pins(before)
        started = {name for name, device in self.devices.items()
                   if device.started}
        gone = self.unplugged()
        for name in gone:
            require(not self.exists(name), 'device', f'{name} exists')
            self.forget_device(name, before, view)
        for device in self.devices.values():
            device.started = False
        for group in set(view.group.values()):
            node = next(iter(group))
            members = {name for name, pin in pins.items() if pin in group}
            if not members & (started | set(gone)):
                self.expect(node, before.ctx[node])
            elif view.busy(group):
                self.targets.add(None)
            elif members <= set(gone) or len(members) == 1:
                self.expect(node, None)
            elif not members & set(gone):
                # they keep each other from moving
                self.expect(node, before.ctx[node])
            else:
                self.targets.add(None)

    def do_start(self, args: dict[str, Any]) -> None:
        """Do what a driver does last: tell the device that it is ready."""
        slot = self.find_slot(args['id'])
        if slot is None or self.devices[args['id']].driver == 'scsi-hd':
            raise Refused('no such PCI device')
        config, bar = 0x80000000 | slot << 11, 0x2000 + (slot << 8)
        for register, value in ((0x10, bar), (0x04, 5)):
            self.qemu.io(f'outl 0xcf8 {config | register:#x}')
            self.qemu.io(f'outl 0xcfc {value:#x}')
        for status in (1, 3, 7):
            self.qemu.io(f'outb {bar + 18:#x} {status}')
        require(self.qemu.io(f'inb {bar + 18:#x}') == 7, 'start', args['id'])

    def find_slot(self, name: str) -> int | None:
        for bus in self.qemu.execute('query-pci'):
            for device in bus['devices']:
                if device['qdev_id'] == name:
                    slot: int = device['slot']
                    return slot
        return None

    def did_start(self, args: dict[str, Any], error: str, before: View,
                  view: View) -> None:
        if error:
            return
        name = args['id']
        device = self.devices[name]
        if device.node is None:
            return
        # the first of the writes to the status stops what was started
        if self.pinned(view, view.group[device.node], name):
            self.expect(device.node, before.ctx[device.node])
        elif view.busy(view.group[device.node]):
            self.targets |= {before.ctx[device.node], device.first_queue()}
        else:
            self.expect(device.node, device.first_queue())
        device.started = True

    # Block nodes

    def did_x_blockdev_set_iothread(self, args: dict[str, Any], error: str,
                                    before: View, view: View) -> None:
        node, thread = args['node-name'], args['iothread']
        if node not in before.group or (thread is not None and
                                        thread not in self.poll_threads(view)):
            require(error, 'set-iothread', 'accepted')
            return
        if error:
            group = before.group[node]
            require(not args.get('force') or before.busy(group) or
                    self.pinned(before, group), 'set-iothread', error)
            self.expect(node, before.ctx[node])
            return
        self.expect(node, thread)
        if self.pinned(before, before.group[node]):
            require(before.ctx[node] == thread, 'set-iothread',
                    f'{node} is pinned, and was moved')

    @staticmethod
    def poll_threads(view: View) -> set[str]:
        return set(view.threads) - {'mon_iothread'}

    def did_blockdev_add(self, args: dict[str, Any], error: str, before: View,
                         view: View) -> None:
        if error:
            return
        below = {before.group[name] for name in strings(args)
                 if name in before.group}
        if len(below) > 1:
            self.targets |= {before.place(group) for group in below}
            return
        ctx: Ctx = None
        for group in below:
            if before.busy(group):
                self.targets |= {before.place(group), None}
                return
            if self.pinned(before, group):
                ctx = before.place(group)
        self.expect(args['node-name'], ctx)

    def did_blockdev_del(self, args: dict[str, Any], error: str, before: View,
                         view: View) -> None:
        name = args['node-name']
        if not error:
            require(name not in view.group, 'blockdev-del', f'{name} exists')
            for node in before.group[name]:
                self.expect_main(node, before, view)

    def did_human_monitor_command(self, args: dict[str, Any], error: str,
                                  before: View, view: View) -> None:
        node = args['command-line'].split()[1]
        if node in before.group:
            if self.result:
                self.targets.add(None)
            else:
                self.expect_main(node, before, view)

    # Block exports

    def did_block_export_add(self, args: dict[str, Any], error: str,
                             before: View, view: View) -> None:
        if error:
            return
        node, thread = args['node-name'], args.get('iothread')
        if args.get('fixed-iothread'):
            self.fixed.add(args['id'])
        if args.get('writable'):
            self.writable.add(args['id'])
        self.types[args['id']] = args['type']
        require(view.exports.get(args['id']) == node, 'export', str(args))
        if thread is None or self.pinned(before, before.group[node]):
            self.expect(node, before.ctx[node])
            require(thread is None or not args.get('fixed-iothread') or
                    before.ctx[node] == thread, 'export',
                    f"{args['id']} is fixed to {thread}, and not there")
        elif before.busy(before.group[node]):
            self.targets.add(thread)
        else:
            self.expect(node, thread)

    def drop_export(self, name: str, before: View, view: View) -> None:
        self.fixed.discard(name)
        self.writable.discard(name)
        self.types.pop(name)
        client = self.clients.pop(name, None)
        if client:
            client.socket.close()
        self.expect_main(before.exports[name], before, view)

    def did_block_export_del(self, args: dict[str, Any], error: str,
                             before: View, view: View) -> None:
        if not error:
            require(args['id'] not in view.exports, 'export', str(args))
            self.drop_export(args['id'], before, view)

    def did_nbd_server_stop(self, args: dict[str, Any], error: str,
                            before: View, view: View) -> None:
        gone = [name for name in before.exports if name not in view.exports]
        nodes = [before.exports[name] for name in gone]
        if not error:
            require(sorted(gone) == sorted(
                name for name in before.exports if self.types[name] == 'nbd'),
                'nbd-server-stop', f'gone: {gone}')
            for name in gone:
                self.drop_export(name, before, view)
            self.exact = {}
        for node in view.group:
            if not before.group[node] & set(nodes):
                self.exact[node] = before.ctx[node]
        for node in nodes:
            self.expect_main(node, before, view)

    def do_connect(self, args: dict[str, Any]) -> None:
        name = args['id']
        if name in self.clients or self.types.get(name) != 'nbd':
            raise Refused('nothing to connect to')
        try:
            client = Client(f'{self.temp.name}/nbd', name)
        except ConnectionError as error:
            raise Refused(str(error)) from None
        self.clients[name] = client
        self.do_read({})

    def do_disconnect(self, args: dict[str, Any]) -> None:
        if args['id'] not in self.clients:
            raise Refused('no client')
        self.clients.pop(args['id']).disconnect()

    def do_read(self, args: dict[str, Any]) -> None:
        for client in self.clients.values():
            try:
                client.pread()
            except ConnectionError as error:
                raise Failure('I/O', f'NBD: {error}') from None

    # Jobs

    def did_start_job(self, args: dict[str, Any], error: str, before: View,
                      view: View) -> None:
        self.targets |= {before.ctx.get(name) for name in strings(args)
                         if name in before.group}

    def do_job(self, command: str, args: dict[str, Any]) -> None:
        job = args['job-id']
        if job not in self.view.jobs:
            self.slow.discard(job)
            if args.get('speed') or (command, args.get('sync')) == (
                    'blockdev-backup', 'none'):
                self.slow.add(job)
        self.result = self.qemu.execute(command,
                                        **expand(args, self.temp.name))
        self.wait_job(job)

    def do_blockdev_mirror(self, args: dict[str, Any]) -> None:
        self.do_job('blockdev-mirror', args)

    def do_blockdev_backup(self, args: dict[str, Any]) -> None:
        self.do_job('blockdev-backup', args)

    def do_block_stream(self, args: dict[str, Any]) -> None:
        self.do_job('block-stream', args)

    def do_block_commit(self, args: dict[str, Any]) -> None:
        self.do_job('block-commit', args)

    def wait_job(self, job: str) -> None:
        """Make sure that settle() looks at jobs."""
        self.qemu.events.append({'event': 'JOB_STATUS_CHANGE', 'data': {}})

    def do_job_cancel(self, args: dict[str, Any]) -> None:
        self.qemu.execute('job-cancel', **args)
        self.ending.add(args['id'])
        self.wait_job(args['id'])

    def do_job_complete(self, args: dict[str, Any]) -> None:
        self.qemu.execute('job-complete', **args)
        self.ending.add(args['id'])
        self.wait_job(args['id'])

    # Remove everything: nothing shall hold anything any more

    def tear_down(self) -> None:
        for name in list(self.clients):
            self.run(['disconnect', {'id': name}])
        for name, nodes in list(self.view.jobs.items()):
            for node in nodes:
                self.run(['x-blockdev-set-iothread', {
                    'node-name': node, 'iothread': None, 'force': True}])
                break
            self.run(['job-cancel', {'id': name}])
        for name in list(self.view.exports):
            self.run(['block-export-del', {'id': name, 'mode': 'hard'}])
        for name in list(self.devices):
            if name in self.devices:
                self.run(['device_del', {'id': name}])
                self.run(['eject', {'id': name}])
        if not self.daemon:
            self.run(['system_reset', {}])
        for name in list(self.compares):
            self.run(['object-del', {'id': name}])
        while any([self.run(['blockdev-del', {'node-name': name}])
                   for name in list(self.view.group)
                   if name in NODES + OVERLAYS and name in self.view.group]):
            pass
        require(not self.view.group, 'teardown',
                f'{self.view.graph}\n{self.view.jobs} {self.view.exports}')
        for thread, keys in self.view.holders.items():
            require(thread == 'mon_iothread' or not keys, 'teardown',
                    f'{thread}: {keys}')
        for name in self.poll_threads(self.view):
            require(self.run(['object-del', {'id': name}]), 'teardown', name)


class Generator:
    """Random steps, most of them such as the state allows."""

    def __init__(self, rng: random.Random, session: Session) -> None:
        self.rng = rng
        self.session = session
        self.steps: list[tuple[Callable[[], Step], int]] = [
            (self.object_add, 8), (self.object_del, 8), (self.qom_set, 1),
            (self.blockdev_add, 20), (self.blockdev_del, 12),
            (self.set_iothread, 20), (self.export_add, 14),
            (self.export_del, 8), (self.nbd_server, 2), (self.connect, 4),
            (self.disconnect, 2), (self.read, 2), (self.job, 7),
            (self.job_end, 7), (self.snapshot, 3), (self.reopen, 2),
            (self.chardev, 2)]
        if not session.daemon:
            self.steps += [(self.device_add, 20), (self.device_del, 8),
                           (self.eject, 5), (self.start, 6), (self.reset, 5),
                           (self.colo, 5), (self.qemu_io, 4)]

    def step(self) -> Step:
        functions, weights = zip(*self.steps)
        function: Callable[[], Step] = self.rng.choices(functions, weights)[0]
        return function()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, pool: list[str], live: Any) -> str:
        """Mostly what exists, sometimes what may not."""
        existing = sorted(set(pool) & set(live))
        if existing and self.chance(0.95):
            return self.rng.choice(existing)
        return self.rng.choice(pool)

    def fresh(self, pool: list[str], live: Any) -> str:
        absent = sorted(set(pool) - set(live))
        if absent and self.chance(0.95):
            return self.rng.choice(absent)
        return self.rng.choice(pool)

    def thread(self) -> str:
        if self.chance(0.03):
            return self.rng.choice(['io9', 'mon_iothread', 'tg0'])
        return self.pick(THREADS, self.session.view.threads)

    def node(self) -> str:
        return self.pick(NODES + OVERLAYS, self.session.view.group)

    def object_add(self) -> Step:
        args: dict[str, Any] = {
            'qom-type': 'iothread',
            'id': self.fresh(THREADS, self.session.view.threads)}
        if self.chance(0.2):
            args['poll-max-ns'] = self.rng.choice([0, 1000])
        return ['object-add', args]

    def object_del(self) -> Step:
        pool = THREADS if self.chance(0.8) else COMPARES
        return ['object-del', {'id': self.pick(
            pool, self.session.view.threads + list(self.session.compares))}]

    def qom_set(self) -> Step:
        return ['qom-set', {
            'path': '/objects/' + self.pick(THREADS,
                                            self.session.view.threads),
            'property': 'poll-max-ns',
            'value': self.rng.choice([-1, 0, 5000, 32768])}]

    def blockdev_add(self) -> Step:
        nodes = self.session.view.group
        kind = self.rng.choice(['null-co'] * 4 + ['raw', 'throttle', 'qcow2',
                                                  'qcow2', 'copy-on-read',
                                                  'quorum', 'preallocate'])
        if kind == 'qcow2':
            name = self.fresh(OVERLAYS, nodes)
            return ['blockdev-add', {
                'driver': kind, 'node-name': name,
                'backing': self.node() if self.chance(0.5) else None,
                'file': {'driver': 'file',
                         'filename': f'@DIR@/{name}.qcow2'}}]
        args: dict[str, Any] = {'driver': kind,
                                'node-name': self.fresh(NODES, nodes)}
        if kind == 'null-co':
            args.update({'size': DISK_SIZE, 'read-zeroes': True})
        elif kind == 'quorum':
            args.update({'vote-threshold': 1,
                         'children': [self.node(), self.node()]})
        else:
            args['file'] = self.node()
        if kind == 'throttle':
            args['throttle-group'] = self.rng.choice(['tg0'] * 9 + ['tg9'])
        return ['blockdev-add', args]

    def blockdev_del(self) -> Step:
        return ['blockdev-del', {'node-name': self.node()}]

    def set_iothread(self) -> Step:
        args: dict[str, Any] = {
            'node-name': self.node(),
            'iothread': None if self.chance(0.2) else self.thread()}
        if self.chance(0.7):
            args['force'] = self.chance(0.8)
        return ['x-blockdev-set-iothread', args]

    def reopen(self) -> Step:
        if self.chance(0.5):
            name = self.pick(OVERLAYS, self.session.view.group)
            return ['blockdev-reopen', {'options': [{
                'driver': 'qcow2', 'node-name': name,
                'backing': self.node() if self.chance(0.5) else None,
                'file': {'driver': 'file',
                         'filename': f'@DIR@/{name}.qcow2'}}]}]
        # no overlay: QEMU crashes later where qcow2 is taken for raw
        return ['blockdev-reopen', {'options': [{
            'driver': 'raw', 'node-name': self.pick(NODES,
                                                    self.session.view.group),
            'file': self.node()}]}]

    def snapshot(self) -> Step:
        return ['blockdev-snapshot', {
            'node': self.node(),
            'overlay': self.pick(OVERLAYS, self.session.view.group)}]

    def qemu_io(self) -> Step:
        return ['human-monitor-command', {
            'command-line': f'qemu-io {self.node()} "read 0 4k"'}]

    def export_add(self) -> Step:
        name = self.fresh(EXPORTS, self.session.view.exports)
        kind = self.rng.choice(['nbd', 'nbd', 'vhost-user-blk'])
        args: dict[str, Any] = {'id': name, 'type': kind,
                                'node-name': self.node()}
        if kind == 'nbd':
            args['name'] = name if self.chance(0.95) else 'e0'
        else:
            args['addr'] = {'type': 'unix', 'path': f'@DIR@/{name}'}
            if self.chance(0.1):
                args['logical-block-size'] = 3
            elif self.chance(0.1):
                args['addr']['path'] = '@DIR@/none/socket'
        if self.chance(0.7):
            args['iothread'] = self.thread()
        if self.chance(0.5):
            args['fixed-iothread'] = self.chance(0.5)
        if self.chance(0.3):
            args['writable'] = True
        return ['block-export-add', args]

    def export_del(self) -> Step:
        args = {'id': self.pick(EXPORTS, self.session.view.exports)}
        if self.chance(0.7):
            args['mode'] = self.rng.choice(['safe', 'hard'])
        return ['block-export-del', args]

    def nbd_server(self) -> Step:
        if self.chance(0.2):
            return ['nbd-server-stop', {}]
        return ['nbd-server-start', {
            'addr': {'type': 'unix', 'data': {'path': '@DIR@/nbd'}}}]

    def connect(self) -> Step:
        return ['connect', {'id': self.pick(EXPORTS,
                                            self.session.view.exports)}]

    def disconnect(self) -> Step:
        return ['disconnect', {'id': self.pick(EXPORTS,
                                               self.session.clients)}]

    def read(self) -> Step:
        return ['read', {}]

    def job(self) -> Step:
        command = self.rng.choice(JOB_COMMANDS)
        args: dict[str, Any] = {
            'job-id': self.fresh(JOBS, self.session.view.jobs),
            'device': self.node()}
        if command in ('blockdev-mirror', 'blockdev-backup'):
            args.update({'target': self.node(),
                         'sync': self.rng.choice(['full', 'top', 'none'])})
        elif command == 'block-commit' and self.chance(0.5):
            args['top-node'] = self.node()
            args['base-node'] = self.node()
        if self.chance(0.6):
            args['speed'] = 1
        return [command, args]

    def job_end(self) -> Step:
        name = self.pick(JOBS, self.session.view.jobs)
        return [self.rng.choice(['job-cancel', 'job-complete']), {'id': name}]

    def chardev(self) -> Step:
        name = self.rng.choice(CHARDEVS)
        if self.chance(0.3):
            return ['chardev-remove', {'id': name}]
        return ['chardev-add', {'id': name, 'backend': {
            'type': 'socket', 'data': {
                'server': True, 'wait': False,
                'addr': {'type': 'unix', 'data': {'path': f'@DIR@/{name}'}}}}}]

    def colo(self) -> Step:
        names = self.rng.sample(CHARDEVS, 4)
        args: dict[str, Any] = {
            'qom-type': 'colo-compare',
            'id': self.fresh(COMPARES, self.session.compares),
            'primary_in': names[0], 'secondary_in': names[1],
            'outdev': names[2], 'iothread': self.thread()}
        if self.chance(0.2):
            args['notify_dev'] = names[3]
        if self.chance(0.2):
            del args[self.rng.choice(['primary_in', 'secondary_in', 'outdev',
                                      'iothread'])]
        return ['object-add', args]

    def device_add(self) -> Step:
        args: dict[str, Any] = {
            'id': self.fresh(DEVICES, self.session.devices),
            'driver': self.rng.choice(['virtio-blk-pci'] * 4 +
                                      ['virtio-scsi-pci', 'scsi-hd', 'scsi-hd',
                                       'virtio-balloon-pci'])}
        if args['driver'] == 'scsi-hd':
            hbas = [name for name, device in self.session.devices.items()
                    if device.driver == 'virtio-scsi-pci']
            args['bus'] = self.pick(DEVICES, hbas) + '.0'
        if args['driver'] in ('scsi-hd', 'virtio-blk-pci'):
            args['drive'] = self.node()
            args['share-rw'] = self.chance(0.5)
        if args['driver'] == 'scsi-hd':
            return ['device_add', args]
        if args['driver'] == 'virtio-balloon-pci':
            args['free-page-hint'] = self.chance(0.7)
            if self.chance(0.8):
                args['iothread'] = self.thread()
            return ['device_add', args]
        queues = self.rng.randint(1, 5)
        args['num_queues' if args['driver'] == 'virtio-scsi-pci' else
             'num-queues'] = queues
        if self.chance(0.6):
            args['iothread'] = self.thread()
        if self.chance(0.1 if 'iothread' in args else 0.8):
            args['iothread-vq-mapping'] = self.mapping(queues)
        # refused before and after the IOThread is taken
        if self.chance(0.05):
            args['ioeventfd'] = False
        elif self.chance(0.05) and args['driver'] == 'virtio-blk-pci':
            args['queue-size'] = 3
        elif self.chance(0.1):
            args.update({'iommu_platform': True, 'disable-legacy': 'off'})
        return ['device_add', args]

    def mapping(self, queues: int) -> list[dict[str, Any]]:
        names = [self.thread() for _ in range(self.rng.randint(1, 3))]
        if self.chance(0.9):
            names = list(dict.fromkeys(names))
        if self.chance(0.2):
            # the same IOThread under a name that is no duplicate
            names.append('/objects/' + names[0])
        items: list[dict[str, Any]] = [{'iothread': name} for name in names]
        if self.chance(0.5):
            numbers = list(range(queues + self.chance(0.05)))
            self.rng.shuffle(numbers)
            for i, item in enumerate(items):
                item['vqs'] = numbers[i::len(items)]
            if self.chance(0.05):
                del items[0]['vqs']
        return items

    def device_del(self) -> Step:
        return ['device_del', {'id': self.pick(DEVICES,
                                               self.session.devices)}]

    def eject(self) -> Step:
        return ['eject', {'id': self.pick(DEVICES, [
            name for name, device in self.session.devices.items()
            if device.pending])}]

    def start(self) -> Step:
        return ['start', {'id': self.pick(DEVICES, self.session.devices)}]

    def reset(self) -> Step:
        return ['system_reset', {}]


Options = argparse.Namespace


def replay(options: Options, steps: list[Step]) -> Failure | None:
    session: Session | None = None
    try:
        session = Session(options.binary, options.daemon)
        for step in steps:
            session.run(step)
    except Failure as failure:
        return failure
    finally:
        if session:
            session.close()
    return None


def shrink(options: Options, steps: list[Step], kind: str) -> list[Step]:
    """Leave out what is not needed to fail in the same way."""
    global timeout
    if kind == 'hang':
        timeout = 5
    deadline = time.monotonic() + options.shrink_seconds
    size = max(len(steps) // 2, 1)
    while time.monotonic() < deadline:
        start = 0
        while start < len(steps) and time.monotonic() < deadline:
            fewer = steps[:start] + steps[start + size:]
            failure = replay(options, fewer)
            if failure and failure.kind == kind:
                steps = fewer
            else:
                start += size
        if size == 1:
            break
        size = max(size // 2, 1)
    return steps


def report(options: Options, steps: list[Step], failure: Failure) -> None:
    print(f'FAILED after {len(steps)} steps in this process, by '
          f'{json.dumps(steps[-1:])}: {failure}', flush=True)
    if not steps:
        return
    path = options.output
    for shorter in (False, True):
        if shorter:
            print(f'Shrinking, for at most {options.shrink_seconds} s ...',
                  flush=True)
            steps = shrink(options, steps, failure.kind)
        with open(path, 'w') as file:
            file.write('[\n' + ',\n'.join(json.dumps(s) for s in steps)
                       + '\n]\n')
    print(f'{len(steps)} steps are enough, see {path}:')
    for step in steps:
        print(json.dumps(step))
    print(f'They give: {replay(options, steps)}')


def stress(options: Options, rng: random.Random) -> None:
    counts: collections.Counter[str] = collections.Counter()
    refused: collections.Counter[str] = collections.Counter()
    begin = time.monotonic()
    total = 0
    while total < options.steps:
        done: list[Step] = []
        session: Session | None = None
        try:
            session = Session(options.binary, options.daemon)
            generator = Generator(rng, session)

            def do(step: Step) -> bool:
                done.append(step)
                assert session
                accepted = session.run(step)
                counts[step[0]] += 1
                refused[step[0]] += not accepted
                return accepted

            for _ in range(min(SESSION, options.steps - total)):
                do(generator.step())
                total += 1
            if rng.random() < 0.5:
                do(['tear-down', {}])
            do(['quit', {}])
        except Failure as failure:
            if session:
                session.close()
                session = None
            report(options, done, failure)
            sys.exit(1)
        finally:
            if session:
                session.close()
        print(f'{total} steps, {total / (time.monotonic() - begin):.0f}/s',
              file=sys.stderr)
    print(f'{total} steps without a difference, seed {options.seed}, '
          f'{sum(refused.values())} of {sum(counts.values())} refused: ' +
          ', '.join(f'{name} {counts[name]} ({refused[name]} refused)'
                    for name in sorted(counts)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--daemon', action='store_true',
                        help='the binary is a qemu-storage-daemon')
    parser.add_argument('--binary', required=True)
    parser.add_argument('--steps', type=int, default=20000)
    parser.add_argument('--seed', type=int,
                        default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument('--replay', metavar='FILE')
    parser.add_argument('--output', default='iothread-holders.json',
                        metavar='FILE', help='where a failing run is written')
    parser.add_argument('--shrink', action='store_true',
                        help='shrink what is replayed, if it fails')
    parser.add_argument('--shrink-seconds', type=int, default=300)
    options = parser.parse_args()
    if options.replay:
        with open(options.replay) as file:
            steps = json.load(file)
        failure = replay(options, steps)
        if failure and options.shrink:
            report(options, steps, failure)
        if failure:
            sys.exit(f'FAILED: {failure}')
        print(f'{len(steps)} steps without a difference')
        return
    print(f'seed {options.seed}', flush=True)
    stress(options, random.Random(options.seed))


if __name__ == '__main__':
    main()
