# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a disk takes no requests when it moves to another IOThread."""
from __future__ import annotations

import functools
import re
import statistics
import tempfile
import threading
from pathlib import Path

from . import virtqueue
from .virtqueue import CAPACITY

MOVES = 200


@functools.cache
def pauses(build: Path, turn: int, scsi: bool, file: bool, depth: int
           ) -> list[float]:
    """The milliseconds of moves to and fro, with so many requests at a time
    on the way all the while.  QEMU's own clock measures them, from when the
    virtqueues are out of the event loops and their handlers have returned,
    which take requests until then, to when they are back."""
    del turn  # another one is another run
    with tempfile.NamedTemporaryFile() as log, \
            tempfile.NamedTemporaryFile(dir=build) as image:
        image.truncate(CAPACITY)
        node = f"file,filename={image.name},cache.direct=off" if file \
            else f"null-co,size={CAPACITY},read-zeroes=off"
        with virtqueue.disk(build, scsi, 1, (), node, [
                "-trace", "iothread_vqs_move", "-D", log.name]) as disk:
            done = threading.Event()

            def work() -> None:
                while not done.is_set():
                    disk.rounds(depth, 20)

            thread = threading.Thread(target=work)
            thread.start()
            try:
                for number in range(MOVES):
                    disk.qemu.cmd("set-iothread-vq-mapping", **{
                        "device": "moving", "iothread-vq-mapping": [
                            {"iothread": f"io{(number + 1) % 2}"}]})
            finally:
                done.set()
                thread.join()
            disk.check()
        text = Path(log.name).read_text(encoding="utf-8")
    found = [(int(whole) - int(handlers)) / 1e6 for whole, handlers in
             re.findall(r"iothread_vqs_move .* moved 1 ns (\d+)"
                        r" handlers_ns (\d+)", text)]
    if len(found) != MOVES:
        raise RuntimeError(f"{len(found)} of {MOVES} moves were traced: "
                           + text[-300:])
    return sorted(found)


class Pause:
    """Samples of one row; the rows of a disk share the runs."""

    def __init__(self, scsi: bool, file: bool, depth: int, worst: bool
                 ) -> None:
        self.what = scsi, file, depth
        self.worst = worst
        self.turn = 0

    def __call__(self, build: Path) -> float:
        self.turn += 1
        found = pauses(build, self.turn, *self.what)
        return found[len(found) * 99 // 100] if self.worst else \
            statistics.median(found)
