# SPDX-License-Identifier: GPL-2.0-or-later
"""What query-stats tells of event loops must be true at every moment."""
from __future__ import annotations

import time
from typing import Any, Callable

TIMES = "busy-time", "poll-hit-time", "poll-miss-time", "blocked-time"
# A reader may meet a thread that has stopped one stopwatch, has not started
# the next, and got no CPU in between.
SLACK = 0.1  # seconds


class Loads:
    """The counters of all threads, as they were last seen."""

    def __init__(self) -> None:
        # Of each thread: its counters, and between which two times they
        # were told
        self.seen: dict[Any, tuple[dict[str, int], float, float]] = {}

    def fault(self, query: Callable[[str], list[Any]], ids: dict[str, int]
              ) -> str:
        """What is wrong with the counters; empty if nothing is.

        query gets a target, ids has the threads' numbers by their names: a
        thread that is created again is another one.
        """
        found = {}
        for target in "iothread", "vm":
            begin = time.monotonic()
            results = query(target)
            end = time.monotonic()
            for result in results:
                path = result.get("qom-path", "")
                now = {each["name"]: each["value"]
                       for each in result["stats"]}
                who = path, ids.get(path.rpartition("/")[2])
                found[who] = now, begin, end
                if (old := self.seen.get(who)) and (
                        bad := self.between(*old, now, begin, end)):
                    return f"{path or 'main loop'}: {bad}"
        missing = set(ids) - {path.rpartition("/")[2] for path, _ in found}
        if missing or ("", None) not in found:
            return f"no counters of {sorted(missing) or 'the main loop'}"
        self.seen = found
        return ""

    @staticmethod
    def between(old: dict[str, int], old_begin: float, old_end: float,
                now: dict[str, int], begin: float, end: float) -> str:
        for name, value in old.items():
            if now[name] < value:
                return f"{name} goes back from {value} to {now[name]}"
        spent = sum(now[name] - old[name] for name in TIMES) / 1e9
        least, most = begin - old_end, end - old_begin
        if not least * .98 - SLACK <= spent <= most * 1.02 + SLACK:
            return f"{spent} s are told of {least} to {most} s"
        return ""
