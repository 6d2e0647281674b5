#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Looking at the properties of every type, and objects that are refused

qom-list-properties creates an object of the type that it is asked about, and
drops it again.  QEMU must survive that, and keep what it has: its descriptors
(0 is what an unset one looks like), and the guest.
"""

import json
import os
import socket
from typing import Any, Dict, List, Tuple

from qemu_test import QemuSystemTest

Json = Dict[str, Any]

# How many commands are sent before the answers are read
BATCH = 64

# Commands that are refused on every machine but x-remote
REFUSED: List[Tuple[str, Json]] = [
    ('object-add', {'qom-type': 'x-vfio-user-server', 'id': 'o',
                    'device': 'none',
                    'socket': {'type': 'unix', 'path': '/none'}}),
    ('object-add', {'qom-type': 'x-remote-object', 'id': 'o',
                    'devid': 'none', 'fd': 'none'}),
    ('object-add', {'qom-type': 'filter-dump', 'id': 'o', 'netdev': 'none',
                    'file': '/none'}),
    ('object-add', {'qom-type': 'filter-rewriter', 'id': 'o',
                    'netdev': 'none'}),
    ('chardev-add', {'id': 'c', 'backend': {
        'type': 'parallel', 'data': {'device': '/dev/null'}}}),
]


class Introspection(QemuSystemTest):
    """A client that asks many things at once."""

    def launch(self, machine: str) -> None:
        """Start a QEMU, and talk to it."""
        self.set_machine(machine)
        path = os.path.join(self.socket_dir().name, machine)
        self.vm.add_args('-nodefaults', '-S', '-no-shutdown',
                         '-qmp', f'unix:{path},server=on,wait=off')
        self.vm.launch()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(path)
            self.stream = client.makefile('rw', encoding='utf8')
        self.stream.readline()
        self.ask(('qmp_capabilities', {}))

    def ask(self, *commands: Tuple[str, Json]) -> List[Json]:
        """Return the answers to some commands."""
        for command, arguments in commands:
            self.stream.write(json.dumps({'execute': command,
                                          'arguments': arguments}) + '\n')
        self.stream.flush()
        answers: List[Json] = []
        while len(answers) < len(commands):
            line = self.stream.readline()
            self.assertTrue(line, f'QEMU died of one of {commands}')
            answer = json.loads(line)
            if 'event' not in answer:
                answers.append(answer)
        return answers

    def descriptors(self) -> Dict[str, str]:
        """Return the descriptors of QEMU, and what they are of."""
        folder = f'/proc/{self.vm.get_pid()}/fd'
        return {fd: os.readlink(f'{folder}/{fd}')
                for fd in os.listdir(folder)}

    def check_alive(self) -> None:
        """Check that the guest is there."""
        self.assertEqual(self.ask(('query-status', {}))[0]['return']['status'],
                         'prelaunch')

    def check_machine(self, machine: str) -> None:
        """Ask about every type."""
        self.launch(machine)
        before = self.descriptors()
        commands = ['qom-list-properties']
        if machine == 'none':
            commands.append('device-list-properties')
        types = [entry['name'] for abstract in (False, True)
                 for entry in self.ask(('qom-list-types', {
                     'abstract': abstract}))[0]['return']]
        for start in range(0, len(types), BATCH):
            names = types[start:start + BATCH]
            self.ask(*[(command, {'typename': name}) for name in names
                       for command in commands])
            self.assertEqual(self.descriptors(), before, names)
        self.check_alive()

        for target in 'vm', 'vcpu', 'cryptodev', 'iothread':
            self.ask(('query-stats', {'target': target}),
                     ('human-monitor-command', {
                         'command-line': f'info stats {target}'}),
                     ('human-monitor-command', {
                         'command-line': f'info stats {target} *'}))
        self.check_alive()

        if machine == 'none':
            for answer in self.ask(*REFUSED):
                self.assertIn('error', answer)
            self.assertEqual(self.descriptors(), before)
            self.check_alive()
        self.stream.close()
        self.vm.shutdown()
        self.assertEqual(self.vm.exitcode(), 0)

    def test_none(self) -> None:
        """Without a machine"""
        self.check_machine('none')

    def test_pc(self) -> None:
        """The i440fx machine"""
        self.check_machine('pc')

    def test_q35(self) -> None:
        """The q35 machine"""
        self.check_machine('q35')

    def test_microvm(self) -> None:
        """The microvm machine"""
        self.check_machine('microvm')

    def test_remote(self) -> None:
        """The x-remote machine"""
        self.check_machine('x-remote')


if __name__ == '__main__':
    QemuSystemTest.main()
