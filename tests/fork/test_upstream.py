# SPDX-License-Identifier: GPL-2.0-or-later
"""How ./fork test --upstream judges; QEMU's tests are not run here."""
import contextlib
import io
import unittest
from unittest import mock

from sandbox import Sandbox

from fork import upstream
from fork.build import Builder
from fork.common import Fail
from fork.tests import Result

LIST = "qemu:unit / a\nqemu:qtest+x / qtest-x86_64/b\nqemu:unit / a\n"


class Upstream(Sandbox):
    def run_with(self, outcomes: dict[str, list[str]], *wanted: str
                 ) -> tuple[int, str]:
        """Each kind's outcomes of the test `a`, one after the other."""
        left = {kind: list(states) for kind, states in outcomes.items()}

        def meson_test(session, folder, what, words, multiplier):
            kind = what.split("-")[-1]
            return [Result(word, left[kind].pop(0)) for word in words]

        builder = Builder(self.repo)
        with mock.patch.object(upstream, "meson_test", meson_test), \
                mock.patch.object(upstream, "SUITES", (("--suite=unit",),)), \
                mock.patch.object(upstream.Session, "build"), \
                mock.patch.object(builder.env, "capture") as capture, \
                contextlib.redirect_stdout(io.StringIO()) as out:
            capture.return_value.stdout = LIST
            return upstream.run(builder, list(wanted)), out.getvalue()

    def judged(self, stock: list[str], patched: list[str]) -> str:
        code, out = self.run_with({"stock": stock, "patched": patched}, "a")
        last = out.splitlines()[-1]
        status = {"1 passed, 0 failed, 0 skipped": "passed",
                  "0 passed, 1 failed, 0 skipped": "failed",
                  "0 passed, 0 failed, 1 skipped": "skipped"}[last]
        self.assertEqual(code, int(status == "failed"))
        return status

    def test_verdicts(self) -> None:
        good, bad, skip = "passed", "failed", "skipped"
        for stock, patched, verdict in (
                ([good], [good], good),
                ([skip], [skip], skip),
                ([bad], [bad], skip),
                ([bad], [good], good),
                # A difference is looked at again, three times on each.
                ([good] + 3 * [good], [bad] + 3 * [bad], bad),
                ([good] + 3 * [good], [bad] + [good, bad, good], bad),
                ([good] + 3 * [good], [bad] + 3 * [good], skip),
                ([good] + [good, bad, good], [bad] + 3 * [bad], skip),
                # What stock runs must run here.
                ([good] + 3 * [good], [skip] + 3 * [skip], bad)):
            with self.subTest(stock=stock, patched=patched):
                self.assertEqual(self.judged(stock, patched), verdict)

    def test_names(self) -> None:
        passed = {kind: ["passed"] * 2 for kind in ("stock", "patched")}
        self.assertIn("2 passed", self.run_with(passed)[1])
        self.assertIn("1 passed", self.run_with(passed, "x86_64/b")[1])
        with self.assertRaisesRegex(Fail, "a name with none or such"):
            self.run_with(passed, "none", "such")


if __name__ == "__main__":
    unittest.main()
