#!/usr/bin/env python3
#
# Compile each C header that C++ files include, alone, with g++ and clang++
#
# SPDX-License-Identifier: GPL-2.0-or-later

"""
A header that stops being valid C++ is named here, whichever compiler QEMU is
built with.  What is compiled is found in compile_commands.json: the files that
include "qemu/cxx-begin.h", and the headers that stand between that and
"qemu/cxx-end.h" in them, or in the header of their own that they list there.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = re.compile(r'#include "qemu/cxx-begin\.h"\n(.*?)'
                   r'#include "qemu/cxx-end\.h"', re.S)
INCLUDE = re.compile(r'#include "([^"]+)"')
KEPT = re.compile(r'-(D|I|std=|m|pthread|fno-exceptions|fno-rtti)')
KEPT_WITH_NEXT = ('-isystem', '-iquote')

Command = tuple[str, ...]


def arguments(command: str) -> Command:
    """What of @command any compiler understands"""
    words = iter(shlex.split(command))
    args: list[str] = []
    for word in words:
        if word in KEPT_WITH_NEXT:
            args += [word, next(words)]
        elif KEPT.match(word):
            args.append(word)
    return (*args, '-O2', '-Wall', '-Werror')


def find_headers(build: Path) -> dict[str, Command]:
    """Each header, and how to compile it"""
    headers: dict[str, Command] = {}
    for entry in json.loads((build / 'compile_commands.json').read_text()):
        unit = build / entry['file']
        if unit.suffix != '.cc' or not unit.exists():
            continue
        for block in BLOCK.findall(unit.read_text()):
            for name in INCLUDE.findall(block):
                own = unit.parent / name
                if own.exists():
                    for inner in INCLUDE.findall(own.read_text()):
                        headers.setdefault(inner, arguments(entry['command']))
                else:
                    headers.setdefault(name, arguments(entry['command']))
    return headers


def main() -> int:
    build = Path(sys.argv[1])
    compilers = [name for name in ('g++', 'clang++') if shutil.which(name)]
    headers = find_headers(build)
    tasks = [(compiler, name, args) for compiler in compilers
             for name, args in sorted(headers.items())]

    def compile_one(task: tuple[str, str, Command]) -> str:
        compiler, name, args = task
        source = (f'#include "qemu/cxx-begin.h"\n#include "{name}"\n'
                  '#include "qemu/cxx-end.h"\n')
        done = subprocess.run(
            [compiler, *args, '-fsyntax-only', '-x', 'c++', '-'],
            input=source, text=True, cwd=build, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.stdout if done.returncode else ''

    print(f'1..{len(tasks)}')
    failed = False
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(compile_one, tasks)
        for number, (task, output) in enumerate(zip(tasks, results), 1):
            failed |= bool(output)
            print(f'{"not " if output else ""}ok {number} {task[0]} {task[1]}')
            for line in output.splitlines()[:20]:
                print('#', line)
    return 1 if failed or not tasks else 0


if __name__ == '__main__':
    sys.exit(main())
