# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line, its results, and what stays after an interruption."""
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from sandbox import TOP, Sandbox, put

from fork import common, env, mirror, tests
from fork.common import Fail


class Commands(Sandbox):
    def test_help_everywhere(self) -> None:
        said = self.fork("--help")
        for name in ("run", "test", "build", "exec", "apply", "export",
                     "refresh", "check"):
            self.assertRegex(said, rf"(?m)^    {name} ")
            self.assertIn(f"usage: fork {name}", self.fork(name, "--help"))

    def test_unknown(self) -> None:
        self.fork("frobnicate", code=2)
        self.assertIn("there is no test suite x; the suites are fork,",
                      self.fork("test", "x", code=1))

    def test_minutes(self) -> None:
        for bad in ("-1", "0", "nan", "inf", "x"):
            self.assertIn("--minutes", self.fork(
                "stress", f"--minutes={bad}", code=2))

    def test_refresh_before_build(self) -> None:
        self.assertIn("run ./fork build", self.fork("refresh", code=1))

    def test_broken_base_toml(self) -> None:
        put(self.root, {"base.toml": "[qemu\n"})
        self.assertIn("base.toml cannot be used",
                      self.fork("refresh", code=1))

    def test_series_is_optional(self) -> None:
        """A repository that has no change yet."""
        common.remove(self.root / "patches")
        self.assertIn("nothing to apply", self.fork("apply", self.qemu,
                                                    code=1))

    def test_launcher_through_a_link(self) -> None:
        link = self.tmp / "link"
        link.symlink_to(TOP / "fork")
        done = subprocess.run([link, "--help"], capture_output=True,
                              timeout=60, check=False)
        self.assertEqual(done.returncode, 0)


# Does what ./fork does, with a set-up step that takes for ever.
ENDLESS = """
import signal
import sys
import tempfile
# a shell's background job is deaf to Ctrl-C, and so are its children
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from fork import cli, common
from pathlib import Path
def slow(repo, args):
    with common.lock(repo), common.whole(repo.build / "thing") as partial:
        partial.mkdir()
        common.step("slow", ["sh", "-c", "echo $$ > pid; sleep 300 & wait"],
                    repo.log / "slow.log", cwd=partial)
cli.dispatch = slow
sys.exit(cli.main(["build"]))
"""


class Interrupted(Sandbox):
    def start(self) -> subprocess.Popen[str]:
        proc = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, TOP / "scripts"], text=True,
            env=os.environ | {"FORK_ROOT": str(self.root)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True)
        self.addCleanup(proc.stdout.close)  # type: ignore[union-attr]
        self.addCleanup(proc.wait)
        self.addCleanup(proc.kill)
        return proc

    def pid(self) -> int:
        path = self.repo.build / "thing.partial" / "pid"
        for _ in range(300):
            if path.exists() and path.read_text().strip():
                return int(path.read_text())
            time.sleep(0.1)
        self.fail("the step did not start")

    def gone(self, pid: int) -> None:
        for _ in range(100):
            try:
                state = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                return
            if state.rsplit(")", 1)[1].split()[0] == "Z":
                return
            time.sleep(0.1)
        self.fail("the child is still running")

    def test_ctrl_c(self) -> None:
        proc = self.start()
        child = self.pid()
        proc.send_signal(signal.SIGINT)
        said, _ = proc.communicate(timeout=30)
        self.assertEqual(proc.returncode, 130, said)
        self.assertIn("interrupted; run the same again", said)
        self.assertNotIn("Traceback", said)
        self.gone(child)
        self.assertEqual(list(self.repo.build.glob("thing*")), [])

    def test_sigterm(self) -> None:
        proc = self.start()
        child = self.pid()
        proc.terminate()
        proc.communicate(timeout=30)
        self.assertEqual(proc.returncode, 143)
        self.gone(child)
        self.assertEqual(list(self.repo.build.glob("thing*")), [])

    def test_killed_and_started_again(self) -> None:
        proc = self.start()
        child = self.pid()
        proc.kill()
        proc.communicate(timeout=30)
        self.gone(child)
        self.assertTrue((self.repo.build / "thing.partial").exists())
        with common.lock(self.repo):
            self.assertEqual(list(self.repo.build.glob("thing*")), [])

    def test_second_one_waits(self) -> None:
        first = self.start()
        self.pid()
        second = self.start()
        assert second.stdout is not None
        self.assertIn("waiting for it to end", second.stdout.readline())
        self.assertIsNone(second.poll())
        first.kill()
        first.communicate(timeout=30)
        self.pid()


class Results(unittest.TestCase):
    def counts(self, text: str, code: int = 0) -> tuple[int, int, int]:
        found = [r.status for r in tests.from_tap(text, code)]
        return (found.count("passed"), found.count("failed"),
                found.count("skipped"))

    def test_tap(self) -> None:
        for text, code, counts in (
                ("1..2\nok 1 /a\nok 2 - b\n", 0, (2, 0, 0)),
                ("ok 1 a\nnot ok 2 b\n1..2\n", 1, (1, 1, 0)),
                ("1..2\nok 1 a # SKIP no kvm\nok 2 b\n", 0, (1, 0, 1)),
                ("1..2\nok 1 a\n", 134, (1, 1, 0)),
                ("1..2\nok 1 a\n", 0, (1, 1, 0)),
                ("1..1\nok 1 a\n", 1, (1, 1, 0)),
                ("1..0 # SKIP no display\n", 0, (0, 0, 1)),
                ("", 0, (0, 1, 0)), ("", 124, (0, 1, 0))):
            with self.subTest(text, code=code):
                self.assertEqual(self.counts(text, code), counts)

    def test_meson(self) -> None:
        path = Path(self.enterContext(
            tempfile.TemporaryDirectory())) / "log.json"
        path.write_text(
            '{"name": "qemu:qtest - qemu:qtest-x86_64/a", "result": "OK"}\n'
            '{"name": "b", "result": "TIMEOUT"}\n'
            '{"name": "c", "result": "SKIP", "stdout": "1..0 # SKIP no"}\n'
            '{"name": "d", "result": "FAIL", "stdout": "not ok 3 it"}\n')
        found = tests.from_meson(path)
        self.assertEqual([(r.name, r.status, r.why) for r in found], [
            ("qtest-x86_64/a", "passed", ""), ("b", "failed", "timeout"),
            ("c", "skipped", "no"), ("d", "failed", "fail; not ok 3 it")])


class Environment(Sandbox):
    def test_a_tool_that_cannot_be_run(self) -> None:
        """As one in a folder of PATH that only another user may enter."""
        put(self.tmp, {"meson": "not a program\n"})
        for tool in (self.tmp / "meson", self.tmp / "absent"):
            self.assertEqual(common.capture([tool]).returncode, 127)

    def test_stdout_is_that_of_the_program(self) -> None:
        words = [sys.executable, "-c", "import sys; sys.path.insert(0, "
                 "sys.argv[1]); from fork import common as c; "
                 "c.speak_aside(); c.say('aside'); p = c.Progress('p:'); "
                 "p.step(1, 2); p.end()", str(TOP / "scripts")]
        done = subprocess.run(words, capture_output=True, text=True,
                              timeout=60, check=True)
        self.assertEqual(done.stdout, "")
        self.assertIn("aside", done.stderr)

    def test_variables(self) -> None:
        with mock.patch.dict(os.environ, {
                "SECRET": "x", "QEMU_X": "1", "ASAN_OPTIONS": "a",
                "LD_PRELOAD": "x", "G_DEBUG": "g"}):
            seen = env.Env(self.repo).variables({"QEMU_BUILD": "b"})
        self.assertEqual(
            {"QEMU_X": "1", "ASAN_OPTIONS": "a", "G_DEBUG": "g",
             "QEMU_BUILD": "b", "HOME": "/root",
             "QEMU_TEST_LINUX_ROOT": str(self.root / "build/guest")},
            {k: v for k, v in seen.items() if k in (
                "QEMU_X", "ASAN_OPTIONS", "G_DEBUG", "QEMU_BUILD", "HOME",
                "QEMU_TEST_LINUX_ROOT", "SECRET", "LD_PRELOAD")})

    def test_what_is_visible_inside(self) -> None:
        there = env.Env(common.Repo(Path("/srv/repo")))

        def binds(cwd: str) -> list[str]:
            words = there.command(["true"], Path(cwd))
            return words[words.index(cwd, 5) + 1:words.index("--")]
        self.assertEqual(binds("/srv/repo/docs"), ["/tmp", "/srv/repo"])
        self.assertEqual(binds("/data/disks"),
                         ["/tmp", "/srv/repo", "/data/disks"])
        for own in ("/", "/usr/share", "/etc"):
            self.assertEqual(binds(own), ["/tmp", "/srv/repo"])

    def test_mirror_is_that_of_apt(self) -> None:
        lines = ("http://a.example/debian-security/|Debian|Debian-Security|"
                 "s|main\nhttp://b.example/debian/|Debian|Debian|s|main\n")
        with mock.patch.object(mirror, "capture", return_value=mock.Mock(
                stdout=lines)):
            self.assertEqual(mirror.find(None), "http://b.example/debian")
            self.assertEqual(mirror.find("http://c/"), "http://c/")

    def test_mirror_before_the_first_update(self) -> None:
        lines = ("http://a.example/debian-security/||||main\n"
                 "http://b.example/debian/||||main\n")
        for name, found in (("debian", "http://b.example/debian"),
                            ("ubuntu", "")):
            with mock.patch.object(mirror, "capture", return_value=mock.Mock(
                    stdout=lines)), mock.patch.object(
                    mirror, "release", return_value={"ID": name}):
                self.assertEqual(mirror.find(None), found)

    def test_choice(self) -> None:
        for name, number, lacking, native in (
                ("debian", "13", ["x"], True), ("debian", None, ["x"], True),
                ("debian", "12", ["x"], False), ("fedora", "42", [], True),
                ("fedora", "42", ["x", "y"], False)):
            release = {"ID": name} | ({"VERSION_ID": number} if number
                                      else {})
            with self.subTest(release), mock.patch.object(
                    mirror, "release", return_value=release), \
                    mock.patch.object(env, "lacking", return_value=lacking):
                self.assertEqual(env.choose()[0], native)

    def test_native_says_what_is_missing(self) -> None:
        with mock.patch.object(env, "debian_version", return_value=13), \
                mock.patch.object(env, "missing_packages",
                                  return_value=["meson"]), \
                mock.patch("os.geteuid", return_value=1000), \
                self.assertRaisesRegex(Fail, "missing: meson; install"):
            env.Env(self.repo).ready(native=True)


if __name__ == "__main__":
    unittest.main()
