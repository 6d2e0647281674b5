# SPDX-License-Identifier: GPL-2.0-or-later
"""What the random model says of the counters of event loops."""
import sys
import unittest
from typing import Any
from unittest import mock

from sandbox import TOP

sys.path.insert(0, str(TOP / "tests" / "stress"))

import loads  # noqa: E402


class Counters(unittest.TestCase):
    def setUp(self) -> None:
        self.loads = loads.Loads()
        self.main = {name: 0 for name in loads.TIMES}
        self.io0 = dict(self.main)
        self.clock = 100.0

    def fault(self, seconds: float, **ids: int) -> str:
        """What is wrong after so long, in which all threads were blocked."""
        self.clock += seconds
        for counters in self.main, self.io0:
            counters["blocked-time"] += int(seconds * 1e9)

        def query(target: str) -> list[Any]:
            path, counters = ({}, self.main) if target == "vm" else (
                {"qom-path": "/objects/io0"}, self.io0)
            return [{**path, "stats": [
                {"name": name, "value": value}
                for name, value in counters.items()]}]
        with mock.patch("time.monotonic", lambda: self.clock):
            return self.loads.fault(query, ids)

    def test_true(self) -> None:
        for seconds in 1, 0, 100:
            self.assertEqual(self.fault(seconds, io0=1), "")

    def test_back(self) -> None:
        self.fault(1, io0=1)
        self.io0["blocked-time"] -= 1
        self.assertRegex(self.fault(0, io0=1),
                         "/objects/io0: blocked-time goes back")
        # Another thread of that name begins anew.
        self.assertEqual(self.fault(0, io0=2), "")

    def test_sum(self) -> None:
        for wrong in .5, -.5:
            self.loads.seen.clear()
            self.fault(1, io0=1)
            self.main["blocked-time"] += int(wrong * 1e9)
            self.assertRegex(self.fault(5, io0=1), "main loop: .* are told")

    def test_missing(self) -> None:
        self.assertIn("io1", self.fault(1, io0=1, io1=2))


if __name__ == "__main__":
    unittest.main()
