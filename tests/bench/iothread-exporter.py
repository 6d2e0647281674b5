#!/usr/bin/env python3
#
# How long a scrape of scripts/iothread-exporter takes, and how much CPU time,
# by the number of QEMUs.  These are storage daemons with eight IOThreads each
# and an export in each of them, without load.
#
# Usage: iothread-exporter.py STORAGE-DAEMON [NUMBER]...
#
# SPDX-License-Identifier: GPL-2.0-or-later

import contextlib
import os
from pathlib import Path
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Iterator, List
import urllib.request

EXPORTER = Path(__file__).resolve().parents[2] / 'scripts/iothread-exporter'
IOTHREADS = 8
ROUNDS = 10
# Seconds until it has connected to all, with the machine to itself
CONNECT = 3
HERTZ = os.sysconf('SC_CLK_TCK')
# As Prometheus asks
HEADERS = {'Accept': 'application/openmetrics-text;version=1.0.0',
           'Accept-Encoding': 'gzip'}


def arguments(folder: str, number: int) -> List[str]:
    """Return the arguments of a storage daemon."""
    args = ['--chardev', f'socket,id=m,path={folder}/{number}.sock,server=on,'
            'wait=off', '--monitor', 'chardev=m', '--nbd-server',
            f'addr.type=unix,addr.path={folder}/{number}-nbd']
    for i in range(IOTHREADS):
        args += ['--object', f'iothread,id=io{i}',
                 '--blockdev', f'null-co,node-name=disk{i}',
                 '--export', f'nbd,id=export{i},node-name=disk{i},'
                 f'iothread=io{i}']
    return args


@contextlib.contextmanager
def daemons(binary: str, folder: str, number: int) -> Iterator[None]:
    """Have as many storage daemons."""
    with contextlib.ExitStack() as stack:
        for i in range(number):
            daemon = subprocess.Popen([binary, *arguments(folder, i)])
            stack.callback(daemon.wait)
            stack.callback(daemon.kill)
        for i in range(number):
            while not os.path.exists(f'{folder}/{i}-nbd'):
                time.sleep(0.05)
        yield


def cpu(pid: int) -> float:
    """Return the CPU time of the process, in seconds."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / HERTZ


def measure(binary: str, number: int) -> None:
    """Print how long it takes to scrape so many."""
    with tempfile.TemporaryDirectory() as folder, \
            daemons(binary, folder, number), subprocess.Popen(
                [sys.executable, EXPORTER, '--listen', '0',
                 f'{folder}/*.sock'], stderr=subprocess.PIPE,
                text=True) as exporter:
        try:
            assert exporter.stderr
            url = re.search('http://.*', exporter.stderr.readline())
            assert url
            request = urllib.request.Request(url[0], headers=HEADERS)
            # It connects when it starts
            time.sleep(CONNECT)
            connecting = cpu(exporter.pid)
            times, costs, size = [], [], 0
            for _ in range(ROUNDS + 1):
                start, before = time.perf_counter(), cpu(exporter.pid)
                with urllib.request.urlopen(request) as answer:
                    size = len(answer.read())
                times.append(time.perf_counter() - start)
                costs.append(cpu(exporter.pid) - before)
                time.sleep(0.2)
            with urllib.request.urlopen(url[0]) as answer:
                text = answer.read().decode()
            up = len(re.findall('(?m)^qemu_up.* 1', text))
            series = len(re.findall('(?m)^[^#]', text))
            memory = re.search('(?m)^process_resident_memory_bytes (.*)',
                               text)
            assert memory
            print(f'{up} up, {series} series, {size / 1e3:.0f} kB compressed,'
                  f' {float(memory[1]) / 1e6:.0f} MB of memory: start CPU'
                  f' {connecting:.2f} s, first scrape {times[0]:.2f} s (CPU'
                  f' {costs[0]:.2f} s), then median'
                  f' {statistics.median(times[1:]):.2f} s, at most'
                  f' {max(times[1:]):.2f} s; CPU median'
                  f' {statistics.median(costs[1:]):.2f} s, at most'
                  f' {max(costs[1:]):.2f} s', flush=True)
        finally:
            exporter.terminate()


for each in sys.argv[2:] or ['1', '25', '50', '100', '200']:
    measure(sys.argv[1], int(each))
