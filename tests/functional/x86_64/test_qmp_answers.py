#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Large QMP answers: what is in them, and what they cost

$QEMU_STOCK_BINARY names a QEMU to compare with.
"""

import glob
import os
import statistics
from typing import Any, List

from qemu_test import QemuSystemTest
from qemu.machine import QEMUMachine

ROUNDS = 9
NODES = 400


def cpu_time(pid: int) -> int:
    """Return the CPU time of all threads of a process, in ns."""
    total = 0
    for path in glob.glob(f'/proc/{pid}/task/*/schedstat'):
        with open(path, encoding='ascii') as stat:
            total += int(stat.read().split()[0])
    return total


class QmpAnswers(QemuSystemTest):
    """Asks for much."""

    def start(self, name: str, *args: str,
              binary: str = '') -> QEMUMachine:
        """Start a QEMU without a machine."""
        vm = self.get_vm(name=name)
        if binary:
            # pylint: disable-next=protected-access
            vm._binary = binary
        vm.set_machine('none')
        vm.add_args('-nodefaults', '-accel', 'qtest', *args)
        vm.launch()
        return vm

    def cost(self, vms: List[QEMUMachine], command: str,
             **arguments: Any) -> List[float]:
        """Return what a command costs each, asked in turn: medians."""
        costs: List[List[int]] = [[] for _ in vms]
        for _ in range(ROUNDS):
            for vm, cost in zip(vms, costs):
                before = cpu_time(vm.get_pid())
                vm.cmd(command, **arguments)
                cost.append(cpu_time(vm.get_pid()) - before)
        return [statistics.median(cost) for cost in costs]

    def pair(self, *args: str) -> List[QEMUMachine]:
        """Start a stock QEMU, and one that is not."""
        stock = (os.environ.get('QEMU_STOCK_BINARY') or
                 os.environ.get('QTEST_QEMU_STOCK_BINARY'))
        if not stock:
            self.skipTest('QEMU_STOCK_BINARY names no stock QEMU')
        if not os.path.exists('/proc/self/schedstat'):
            self.skipTest('the kernel does not tell CPU times exactly')
        return [self.start('stock', *args, binary=stock),
                self.start('ours', *args)]

    def test_schema_cost(self) -> None:
        """query-qmp-schema takes less than half of stock's CPU time"""
        stock, ours = self.cost(self.pair(), 'query-qmp-schema')
        self.log.info('query-qmp-schema: stock %.1f ms, here %.1f ms',
                      stock / 1e6, ours / 1e6)
        self.assertLess(ours, stock * 0.5)

    def test_nodes_cost(self) -> None:
        """So do many nodes take less, of which making JSON is only a part"""
        args = []
        for i in range(NODES):
            args += ['-blockdev', f'null-co,node-name=n{i}']
        stock, ours = self.cost(self.pair(*args), 'query-named-block-nodes',
                                flat=True)
        self.log.info('query-named-block-nodes: stock %.1f ms, here %.1f ms',
                      stock / 1e6, ours / 1e6)
        self.assertLess(ours, stock * 0.8)

    def test_schema(self) -> None:
        """The schema is what it was, and heeds the policy"""
        vm = self.start('all')
        schema = vm.cmd('query-qmp-schema')
        entry = {each['name']: each for each in schema
                 if each['meta-type'] == 'command'}['query-qmp-schema']
        types = {each['name']: each for each in schema}
        self.assertEqual(types[entry['ret-type']]['meta-type'], 'array')
        self.assertTrue(any('deprecated' in each.get('features', [])
                            for each in schema))
        answer = vm.qmp('query-qmp-schema', nonsense=1)
        self.assertEqual(answer['error']['desc'],
                         "Parameter 'nonsense' is unexpected")

        vm = self.start('hide', '-compat', 'deprecated-output=hide')
        hidden = vm.cmd('query-qmp-schema')
        self.assertGreater(len(hidden), 100)
        for each in hidden:
            self.assertNotIn('deprecated', each.get('features', []))
            # Deprecated itself
            self.assertNotIn('values', each)
            if each['meta-type'] == 'object':
                for member in each['members']:
                    self.assertNotIn('deprecated',
                                     member.get('features', []))


if __name__ == '__main__':
    QemuSystemTest.main()
