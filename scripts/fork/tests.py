# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork test: all suites, one result, compared with stock QEMU."""
from __future__ import annotations

import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Sequence

from . import check
from .build import Builder, Tree
from .common import Fail, kill_all, lock, run_logged, say, tail

QTESTS = ("qos-test", "qmp-test", "qmp-cmd-test", "device-introspect-test",
          "test-hmp", "drive_del-test", "device-plug-test", "ahci-test",
          "ide-test", "netdev-socket")
OWN_QTESTS = ("iothread-holder-test", "iothread-holder-users-test",
              "iothread-holder-xen-test", "virtio-gpu-blob-test",
              "event-loop-stats-test", "ide-drain-test", "memory-region-test",
              "net-hardening-test", "ram-blocks-test", "tcg-memory-map-test",
              "virtio-gpu-2d-test", "virtio-hardening-test",
              "virtio-limits-test")
# 1,000 rounds of plug and unplug, without a leak; random virtio-gpu commands.
ASAN_QTESTS = (*OWN_QTESTS[:2], "virtio-gpu-blob-test")
PROGRAMS = ("qemu-system-x86_64", "storage-daemon/qemu-storage-daemon")
MODEL = "tests/stress/iothread-holders.py"
# How the units are built: name, meson's sanitizers, compiler.
UNITS = (("plain", "", ""), ("address", "address,undefined", ""),
         ("thread", "thread", ""), ("fuzz", "address,undefined", "clang"))


@dataclass
class Result:
    name: str
    status: str  # passed, failed or skipped
    why: str = ""


@dataclass
class Session:
    """The set-up that the suites of one run share."""
    builder: Builder
    only: str = ""  # run this one test of the suite
    made: set[str] = field(default_factory=set)

    def build(self, *names: str) -> None:
        """Builds the trees that are needed, once per run."""
        with lock(self.builder.repo):
            for name in names:
                if name in self.made:
                    continue
                if name == "asan":
                    self.builder.build(
                        Tree.pick(asan=True)[0],
                        (*PROGRAMS, "tests/qtest/virtio-gpu-blob-shim.so",
                         *(f"tests/qtest/{name}" for name in ASAN_QTESTS)))
                elif name == "stock":
                    self.builder.build(Tree(name, True), PROGRAMS)
                else:
                    self.builder.build(Tree(name))
                self.made.add(name)

    def environment(self) -> None:
        with lock(self.builder.repo):
            self.builder.environment()

    def folder(self, name: str) -> Path:
        return self.builder.folder(Tree(name, name == "stock"))

    def variables(self) -> dict[str, str]:
        stock = str(self.folder("stock") / "qemu-system-x86_64")
        return {"QTEST_QEMU_STOCK_BINARY": stock,
                "QEMU_STOCK_BINARY": stock}


# --- Results --------------------------------------------------------------

def from_tap(text: str, code: int) -> list[Result]:
    """One result for each TAP line; a crash is a failure as well."""
    found = []
    plan = None
    for line in text.splitlines():
        if match := re.match(r"1\.\.(\d+)", line):
            plan = int(match[1])
        match = re.match(r"(not )?ok \d+(?: -)? ?(.*)", line)
        if not match:
            continue
        name, _, note = match[2].partition(" # ")
        if match[1]:
            found.append(Result(name, "failed", note))
        elif note.upper().startswith("SKIP"):
            found.append(Result(name, "skipped", note[4:].strip()))
        else:
            found.append(Result(name, "passed"))
    if plan == 0:
        return [Result("all", "skipped", "the program skips itself")]
    failed = any(r.status == "failed" for r in found)
    if code and not failed:
        found.append(Result("all", "failed", "took too long" if code == 124
                            else f"ended with exit code {code}"))
    elif plan is None or len(found) < plan:
        found.append(Result("all", "failed", "ended before its last test"))
    return found


def from_meson(path: Path) -> list[Result]:
    """Results of meson's testlog.json."""
    found = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        # "project:suite - project:name" in some versions of meson.
        name = entry["name"].split(" - ")[-1].split(":")[-1].split(" / ")[-1]
        result = entry["result"]
        status = {"OK": "passed", "EXPECTEDFAIL": "passed",
                  "SKIP": "skipped"}.get(result, "failed")
        why = ""
        if status == "failed":
            bad = re.findall(r"(?m)^not ok.*|.*ERROR:.*|.*[Aa]ssertion.*|"
                             r".*SUMMARY: .*", entry.get("stdout", "")
                             + "\n" + entry.get("stderr", ""))
            why = "; ".join([result.lower(), *bad[:2]])
        elif status == "skipped":
            skips = re.findall(r"(?i)# SKIP(.*)", entry.get("stdout", ""))
            why = skips[0].strip() if skips else "skips itself"
        found.append(Result(name, status, why))
    return found


def meson_test(session: Session, folder: Path, what: str,
               words: list[str], meson: str = "pyvenv/bin/meson",
               multiplier: str = "4") -> list[Result]:
    """Runs `meson test` and reads what it found."""
    base = f"fork-{what}-{os.getpid()}"
    log = session.builder.repo.log / f"test-{what}.log"
    logs = folder / "meson-logs"
    code = session.builder.env.logged(
        [meson, "test", "--no-rebuild", "--timeout-multiplier", multiplier,
         "--logbase", base, *words], log,
        cwd=folder, env=session.variables(), timeout=2 * 3600)
    # meson adds the set-up's name, where one was asked for.
    found = [result for out in logs.glob(f"{base}*.json")
             for result in from_meson(out)]
    for file in logs.glob(f"{base}*"):
        file.unlink()
    if code and not any(r.status == "failed" for r in found):
        found.append(Result("meson", "failed",
                            f"exit code {code}: {tail(log, 2)} ({log})"))
    elif not found:
        found.append(Result("meson", "failed", f"ran no test ({log})"))
    return found


def with_stock(session: Session, suite: str, found: list[Result],
               full: Callable[[str], str]) -> list[Result]:
    """A failure that stock has as well is not the series' fault."""
    bad = [r for r in found if r.status == "failed" and r.name != "meson"]
    if not bad:
        return found
    with lock(session.builder.repo):  # its tests, too
        session.builder.build(Tree("stock", True))
    folder = session.folder("stock")
    known = session.builder.env.capture(
        ["pyvenv/bin/meson", "test", "--list"], cwd=folder).stdout
    for result in bad:
        if not re.search(rf"(?m)[ :/]{re.escape(result.name)}$", known):
            continue
        again = meson_test(session, folder, f"{suite}-stock",
                           [full(result.name)])
        if any(r.status == "failed" and r.name != "meson" for r in again):
            result.status = "skipped"
            result.why = "fails on stock too: " + result.why
    return found


def together(jobs: Sequence[Callable[[], list[Result]]]) -> list[Result]:
    """Runs tests that wait more than they compute, one on each CPU."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(job) for job in jobs]
        try:
            return [result for job in running for result in job.result()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kill_all()
            raise


# --- Suites ---------------------------------------------------------------

def suite_fork(session: Session) -> list[Result]:
    root = session.builder.repo.root
    log = session.builder.repo.log / "test-fork.log"
    cmd = [sys.executable, "-B", "-m", "unittest",
           session.only or "discover", "-v"]
    code = run_logged(cmd, log, cwd=root / "tests" / "fork", timeout=600)
    found = []
    for match in re.finditer(
            r"(?m)^(\w+) \(([\w.]+)\)(?:\n.*?)? \.\.\. "
            r"(ok|FAIL|ERROR|skipped)(.*)$", log.read_text()):
        status = {"ok": "passed", "skipped": "skipped"}.get(
            match[3], "failed")
        found.append(Result(match[2], status, match[4].strip(" '\"") or
                            (f"see {log}" if status == "failed" else "")))
    if code and not any(r.status == "failed" for r in found):
        found.append(Result("unittest", "failed", f"exit code {code} "
                            f"({log})"))
    return found


def suite_units(session: Session) -> list[Result]:
    """The units alone, plain, under the sanitizers, and fuzzed."""
    repo, found = session.builder.repo, []
    session.environment()
    env = session.builder.env
    for name, kind, compiler in UNITS:
        folder = repo.build / f"units-{name}"
        log = repo.log / f"units-{name}.log"
        if not (folder / "build.ninja").exists():
            more = [f"-Db_sanitize={kind}", "-Db_lundef=false"] \
                if kind else []
            # meson makes sense of a half-made folder by --wipe only.
            wipe = ["--wipe"] if folder.exists() else []
            if env.logged(["meson", "setup", *wipe, folder, repo.root,
                           *more], log, timeout=600,
                          env={"CC": compiler, "CXX": f"{compiler}++"}
                          if compiler else {}):
                found.append(Result(name, "failed", "meson setup: "
                                    f"{tail(log, 1)} ({log})"))
                continue
        if env.logged(["ninja"], log, cwd=folder, timeout=1800,
                      append=True):
            found.append(Result(name, "failed", f"does not build ({log})"))
            continue
        for result in meson_test(session, folder, f"units-{name}",
                                 [session.only] if session.only else [],
                                 "meson"):
            result.name = f"{name}/{result.name}"
            found.append(result)
    return found


def suite_check(session: Session) -> list[Result]:
    with lock(session.builder.repo):
        session.builder.environment()
        session.builder.sources()
        items = check.run(session.builder)
    return [Result(item.name, "failed" if item.errors else "passed",
                   "; ".join(item.errors[:3])) for item in items
            if session.only in ("", item.name)]


def suite_unit(session: Session) -> list[Result]:
    session.build("patched")
    found = meson_test(session, session.folder("patched"), "unit",
                       ["--suite", "unit"]
                       + ([session.only] if session.only else []))
    return with_stock(session, "unit", found, lambda name: name)


def suite_qtest(session: Session) -> list[Result]:
    session.build("patched", "stock")
    wanted = [session.only] if session.only else [*QTESTS, *OWN_QTESTS]
    folder = session.folder("patched")
    known = session.builder.env.capture(
        ["pyvenv/bin/meson", "test", "--list"], cwd=folder).stdout
    found, there = [], []
    for name in wanted:
        if re.search(rf"(?m)qtest-x86_64/{re.escape(name)}$", known):
            there.append(f"qtest-x86_64/{name}")
        else:
            found.append(Result(name, "failed", "is not in the build"))
    if there:
        for result in meson_test(session, folder, "qtest",
                                 there):
            result.name = result.name.split("/")[-1]
            found.append(result)
    return with_stock(session, "qtest", found,
                      lambda name: f"qtest-x86_64/{name}")


def own(session: Session, folder: str) -> list[Path]:
    """Our tests in a folder of the repository, or the one that is wanted."""
    files = sorted(session.builder.repo.root.joinpath(folder).iterdir())
    return [file for file in files if not session.only
            or session.only in (file.name, file.stem)]


def suite_functional(session: Session) -> list[Result]:
    session.build("patched", "stock")
    with lock(session.builder.repo):
        session.builder.env.guest_mesa()
    source = session.builder.repo.work
    env = {"PYTHONPATH": f"{source}/python:{source}/tests/functional",
           "PYTHONDONTWRITEBYTECODE": "1"}
    return together([
        partial(tap_program, session, file.stem, "patched",
                source / "tests/functional/x86_64" / file.name, env)
        for file in own(session, "tests/functional/x86_64")])


def image_format(file: Path) -> str:
    """The image format that an iotest says it is for."""
    match = re.search(r"supported_fmts=\['(\w+)'", file.read_text())
    return match[1] if match else "qcow2"


def suite_iotest(session: Session) -> list[Result]:
    session.build("patched")
    return together([partial(iotest, session, file)
                     for file in own(session, "tests/qemu-iotests/tests")
                     if not file.suffix])


def iotest(session: Session, file: Path) -> list[Result]:
    folder = session.folder("patched") / "tests/qemu-iotests"
    log = session.builder.repo.log / f"test-iotest-{file.name}.log"
    code = session.builder.env.logged(
        ["./check", "-" + image_format(file), file.name], log, cwd=folder,
        env={"TEST_DIR": str(folder / "scratch" / file.name)}, timeout=600)
    if code:
        return [Result(file.name, "failed", "took too long" if code == 124
                       else f"{tail(log, 1)} ({log})")]
    why = re.search(r"not run .*\.\.\.\s+(.*\S)", log.read_text())
    return [Result(file.name, "skipped" if why else "passed",
                   why[1] if why else "")]


def suite_model(session: Session) -> list[Result]:
    """The random model, for both programs."""
    session.build("patched")
    return together(models(session, "patched", 5000))


def suite_asan(session: Session) -> list[Result]:
    """Qtests and the model with the sanitizers."""
    session.build("asan", "stock")
    return together([*(partial(asan_qtest, session, name)
                       for name in ASAN_QTESTS if session.only in ("", name)),
                     *models(session, "asan", 2000)])


def models(session: Session, tree: str, steps: int
           ) -> list[Callable[[], list[Result]]]:
    return [partial(model, session, tree, steps, name)
            for name in PROGRAMS if session.only in ("", Path(name).name)]


def asan_qtest(session: Session, name: str) -> list[Result]:
    folder = session.folder("asan")
    env = {"QTEST_QEMU_BINARY": str(folder / "qemu-system-x86_64"), **ASAN}
    if name == "virtio-gpu-blob-test":  # Mesa and SDL leak
        env["ASAN_OPTIONS"] = "detect_leaks=0"
    # qtests name sockets by process id, which two environments may share.
    with TemporaryDirectory(prefix="fork-test-") as temporary:
        return tap_program(session, f"asan-{name}", "asan",
                           folder / "tests/qtest" / name,
                           env | {"TMPDIR": temporary}, "--tap", "-k")


ASAN = {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "detect_leaks=1"),
        "UBSAN_OPTIONS": os.environ.get("UBSAN_OPTIONS", "halt_on_error=1")}


def model(session: Session, tree: str, steps: int, program: str
          ) -> list[Result]:
    name = Path(program).name
    log = session.builder.repo.log / f"test-model-{tree}-{name}.log"
    code = session.builder.env.logged(
        ["python3", session.builder.repo.root / MODEL, "--output",
         log.with_suffix(".json"), "--steps", str(steps), "--seed", "1",
         "--binary", session.folder(tree) / program,
         *(["--daemon"] if program == PROGRAMS[1] else [])],
        log, timeout=1800, env=ASAN)
    return [Result(f"{tree}/{name}", "failed" if code else "passed",
                   f"{tail(log, 1)} ({log})" if code else "")]


def tap_program(session: Session, name: str, tree: str, program: Path,
                env: dict[str, str], *words: str) -> list[Result]:
    """One program that writes TAP, in a build folder."""
    if not program.exists():
        return [Result(name, "failed", f"there is no {program}")]
    folder = session.folder(tree)
    log = session.builder.repo.log / f"test-{name}.log"
    code = session.builder.env.logged(
        ["python3", program] if program.suffix == ".py" else
        [program, *words], log, cwd=folder, timeout=1800,
        env=session.variables() | {
            "QEMU_TEST_QEMU_BINARY": str(folder / "qemu-system-x86_64"),
            "QEMU_TEST_QEMU_IMG": str(folder / "qemu-img"),
            "QEMU_BUILD_ROOT": str(folder),
            "MESON_BUILD_ROOT": str(folder)} | env)
    found = from_tap(log.read_text(errors="replace"), code)
    for result in found:
        if result.status == "failed":
            result.why = f"{result.why} ({log})".strip()
    return found


SUITES: dict[str, Callable[[Session], list[Result]]] = {
    "fork": suite_fork, "units": suite_units, "check": suite_check,
    "unit": suite_unit, "qtest": suite_qtest,
    "iotest": suite_iotest, "functional": suite_functional,
    "model": suite_model, "asan": suite_asan}
# Only when it is asked for: it builds QEMU once more.
LONG = ("asan",)

# --- All of it ------------------------------------------------------------

def run(builder: Builder, names: list[str]) -> int:
    wanted = []
    for name in names or [name for name in SUITES if name not in LONG]:
        suite, _, only = name.partition("/")
        if suite not in SUITES:
            raise Fail(f"there is no test suite {suite}; the suites are "
                       + ", ".join(SUITES))
        wanted.append((suite, only))
    session = Session(builder)
    everything = []
    for suite, only in wanted:
        session.only = only
        start = time.monotonic()
        say(f"--- {suite}")
        try:
            found = SUITES[suite](session)
        except Fail as error:
            found = [Result("set-up", "failed", str(error))]
        if not found:
            found = [Result(only or suite, "failed", "there is no such "
                            "test" if only else "no test ran")]
        show(found)
        say(f"{suite}: {counted(found)} ({time.monotonic() - start:.0f} s)")
        everything += found
    return close(everything)


def show(found: list[Result]) -> None:
    """Prints what did not pass, and why."""
    for result in found:
        if result.status != "passed":
            say(f"  {result.status}: {result.name}"
                + (f": {result.why}" if result.why else ""))


def counted(found: list[Result]) -> str:
    return ", ".join(f"{sum(r.status == status for r in found)} {status}"
                     for status in ("passed", "failed", "skipped"))


def close(found: list[Result]) -> int:
    """Prints the last line, returns the exit code."""
    say(counted(found))
    return int(any(result.status == "failed" for result in found))
