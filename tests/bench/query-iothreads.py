#!/usr/bin/env python3
#
# How long query-iothreads takes, from request to parsed answer, when an
# IOThread has many holds.  A thousand disks would take minutes to start, so
# each disk holds the IOThread four times, under the four names that it has.
#
# Usage: query-iothreads.py QEMU-BINARY
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import statistics
import subprocess
import sys
import time

NAMES = ('io0', '/objects/io0', 'objects/io0', '//objects/io0')
PER_BRIDGE = 125
ROUNDS = 50


def arguments(disks: int) -> list[str]:
    args = ['-machine', 'pc', '-accel', 'qtest', '-nodefaults',
            '-display', 'none', '-qmp', 'stdio', '-object', 'iothread,id=io0']
    for i in range(disks):
        bridge, n = divmod(i, PER_BRIDGE)
        if n == 0:
            args += ['-device',
                     f'pci-bridge,id=br{bridge},chassis_nr={bridge + 1},'
                     'shpc=off']
        device = {
            'driver': 'virtio-blk-pci', 'id': f'd{i}', 'drive': f'n{i}',
            'bus': f'br{bridge}', 'addr': f'{n // 8 + 1:x}.{n % 8}',
            'multifunction': True, 'vectors': 0, 'num-queues': len(NAMES),
            'iothread-vq-mapping': [{'iothread': name} for name in NAMES],
        }
        args += ['-blockdev', f'null-co,node-name=n{i}',
                 '-device', json.dumps(device)]
    return args


def measure(binary: str, disks: int) -> None:
    with subprocess.Popen([binary] + arguments(disks), text=True,
                          stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin and qemu.stdout

        def execute(command: str) -> object:
            qemu.stdin.write(json.dumps({'execute': command}) + '\n')
            qemu.stdin.flush()
            while True:
                answer = json.loads(qemu.stdout.readline())
                if 'return' in answer:
                    return answer['return']

        qemu.stdout.readline()
        execute('qmp_capabilities')
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            (info,) = execute('query-iothreads')
            times.append((time.perf_counter() - start) * 1e3)
        holds = len(info.get('holders', ()))
        print(f'{disks} disks, {holds} holds: median '
              f'{statistics.median(times):.2f} ms, '
              f'min {min(times):.2f}, max {max(times):.2f}')
        execute('quit')


for number in (0, 25, 250):
    measure(sys.argv[1], number)
