# SPDX-License-Identifier: GPL-2.0-or-later
"""The runner of random jobs, with jobs that need no QEMU."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from sandbox import TOP, Sandbox, put

from fork import common, stress
from fork.build import Builder
from fork.common import Fail

WELL = "print('seed', {seed}); print('7 steps, seed 1')"
ILL = "import sys; print('3 steps'); sys.exit('it failed')"
REPORT = "open('{out}/tsan.1', 'w').write('race')"
HANG = "import time; print('begun', flush=True); time.sleep(300)"
ORPHAN = ("import subprocess as s; s.Popen(['sleep', '300'], "
          "start_new_session=True)")


def job(code: str, limit: int = 60, tree: str = "patched") -> stress.Job:
    return stress.Job(tree, f'{sys.executable} -c "{code}"', 7, limit)


# Runs a job that takes for ever, as ./fork stress does.
ENDLESS = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from fork import cli, common, stress
stress.JOBS = {"endless": stress.Job(
    "patched", sys.executable + " -c \\"import time, os; open('pid', "
    "'w').write(str(os.getpid())); time.sleep(300)\\"", 1)}
def run(repo, args):
    builder = cli.Builder(repo)
    builder.env.native = True
    return stress.Runner(builder, stress.JOBS, 1, 1).run()
cli.dispatch = run
sys.exit(cli.main(["stress"]))
"""


class Stress(Sandbox):
    def setUp(self) -> None:
        super().setUp()
        put(self.root, {"tests/stress/watch.py": (
            TOP / "tests/stress/watch.py").read_text()})
        self.enterContext(mock.patch("os.cpu_count", return_value=2))

    def runner(self, minutes: float = 0, seed: int = 1, **jobs: stress.Job
               ) -> stress.Runner:
        builder = Builder(self.repo)
        builder.env.native = True
        return stress.Runner(builder, jobs, seed, minutes)

    def once(self, name: str, one: stress.Job) -> stress.Count:
        runner = self.runner(**{name: one})
        runner.one(name, 0)
        return runner.counts[name]

    def kept(self, name: str) -> Path:
        return self.root / "build/stress" / \
            f"{name}-{stress.derived(1, name, 0)}"

    def test_well(self) -> None:
        count = self.once("a", job(WELL))
        self.assertEqual((count.runs, count.steps, count.failures), (1, 7, 0))
        self.assertEqual(list((self.root / "build/stress").iterdir()), [])

    def test_failure_is_kept_and_repeated(self) -> None:
        count = self.once("a", job(ILL))
        self.assertEqual((count.runs, count.steps, count.failures), (1, 3, 1))
        kept = self.kept("a")
        self.assertIn("it failed", (kept / "log").read_text())
        self.assertEqual((kept / "seed").read_text().strip(),
                         str(stress.derived(1, "a", 0)))
        self.assertIn("sys.exit", (kept / "command").read_text())
        put(self.root, {"fork": "#!/bin/sh\nshift 2\nexec \"$@\"\n"})
        (self.root / "fork").chmod(0o755)
        done = subprocess.run([kept / "replay"], capture_output=True,
                              text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("it failed", done.stderr)

    def test_report_alone_is_a_failure(self) -> None:
        count = self.once("a", job(REPORT, tree="tsan"))
        self.assertEqual(count.failures, 1)
        self.assertTrue((self.kept("a") / "tsan.1").exists())

    def test_hang(self) -> None:
        begin = time.monotonic()
        count = self.once("a", job(HANG, limit=1))
        self.assertEqual(count.failures, 1)
        self.assertLess(time.monotonic() - begin, 30)
        self.assertIn("HANG", (self.kept("a") / "log").read_text())
        self.assertTrue((self.kept("a") / "backtrace").exists())

    def test_left_running(self) -> None:
        count = self.once("a", job(ORPHAN))
        self.assertEqual(count.failures, 1)
        self.assertIn("LEFT RUNNING: sleep",
                      (self.kept("a") / "log").read_text())

    def test_skipped(self) -> None:
        count = self.once("a", job("import sys; sys.exit(77)"))
        self.assertEqual((count.runs, count.failures, count.skipped),
                         (0, 0, 1))

    def test_in_turn_until_the_time_is_over(self) -> None:
        runner = self.runner(.05, a=job(WELL), b=job(ILL))
        said: list[str] = []
        with mock.patch.object(stress, "say", said.append):
            self.assertEqual(runner.run(), 1)
        runs = [runner.counts[name].runs for name in ("a", "b")]
        self.assertGreater(min(runs), 1)
        self.assertLessEqual(abs(runs[0] - runs[1]), 1)
        self.assertRegex(said[-1], rf"^{sum(runs)} runs, {runs[1]} failures")
        self.assertTrue(any(re.match(r"a +\d+ +\d+ +0$", line)
                            for line in said), said)

    def test_same_seed_same_runs(self) -> None:
        seeds = [stress.derived(5, "holders", n) for n in range(100)]
        self.assertEqual(len(set(seeds)), 100)
        self.assertEqual(seeds[7], stress.derived(5, "holders", 7))
        self.assertNotEqual(seeds[7], stress.derived(6, "holders", 7))

    def test_no_such_job(self) -> None:
        with self.assertRaisesRegex(Fail, "no stress job x; the jobs are"):
            stress.run(Builder(self.repo), ["x"], 1, 1)

    def test_all_jobs_exist(self) -> None:
        runner = self.runner(**stress.JOBS)
        for name, one in stress.JOBS.items():
            words, _ = runner.words(one, one.command, 1, "out")
            for word in words:
                self.assertNotIn("{", word)
                if word.startswith("tests/stress/"):
                    self.assertTrue((TOP / word).exists(), name)

    def gone(self, pid: int) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                state = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                return
            if state.rpartition(")")[2].split()[0] == "Z":
                return
            time.sleep(.05)
        self.fail("it is still running")

    def interrupted(self, number: int) -> str:
        proc = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, TOP / "scripts"], text=True,
            env=os.environ | {"FORK_ROOT": str(self.root)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True)
        path = self.root / "pid"
        self.addCleanup(common.remove, path)
        end = time.monotonic() + 60
        while not (path.exists() and path.read_text()):
            self.assertLess(time.monotonic(), end)
            time.sleep(.05)
        proc.send_signal(number)
        said, _ = proc.communicate(timeout=60)
        self.gone(int(path.read_text()))
        self.assertIn("0 runs, 0 failures", said)
        self.assertNotIn("Traceback", said)
        self.assertEqual(list((self.root / "build/stress").iterdir()), [])
        common.remove(path)
        return said

    def test_interrupted(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number):
                self.interrupted(number)
