# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork stress: random jobs in turn, on all cores, until the time is over."""
from __future__ import annotations

import hashlib
import itertools
import os
import re
import secrets
import shlex
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from .build import Builder, Tree
from .common import Fail, kill_all, lock, remove, say, write

PROGRAMS = ("qemu-system-x86_64", "storage-daemon/qemu-storage-daemon")
TARGETS = {
    "asan": (*PROGRAMS, "qemu-img", "qemu-nbd",
             "tests/qtest/virtio-gpu-blob-test",
             "tests/qtest/virtio-gpu-blob-shim.so",
             "tests/qtest/virtio-hardening-test",
             "tests/qtest/fake-udmabuf.so"),
    "tsan": PROGRAMS,
    "patched": PROGRAMS}
MODEL = ("{jobs}/iothread-holders.py --seed {seed} --steps {steps} "
         "--output {out}/steps.json --shrink-seconds 120 --binary {build}/")
FAULT = "{jobs}/%s.py --build {build} --seed {seed} --steps {steps}"
SKIPPED = 77  # exit code of a job that cannot run here
# What a hang costs beyond the limit: backtraces of several processes.
GRACE = 300
# A report of the thread sanitizer is a failure by itself: most come from
# programs that end well, or by a signal.
OPTIONS = {
    # Whole stacks, slow as they are: they tell leaks that stock has too.
    "asan": {"ASAN_OPTIONS": "detect_leaks=1:exitcode=99:"
             "fast_unwind_on_malloc=0",
             "LSAN_OPTIONS": "suppressions={jobs}/lsan-suppressions.txt:"
             "print_suppressions=0",
             "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"},
    "tsan": {"TSAN_OPTIONS": "suppressions={jobs}/tsan-suppressions.txt:"
             "log_path={out}/tsan:exitcode=0:history_size=4:"
             "second_deadlock_stack=1",
             "STRESS_SLOWER": "6"},
    "patched": {}}


@dataclass(frozen=True)
class Job:
    """What is run, in which tree, and what repeats a failure."""
    tree: str
    command: str
    steps: int
    limit: int = 300  # seconds until it counts as a hang
    replay: str = ""  # instead of the same once more
    options: dict[str, str] = field(default_factory=dict)


def model(tree: str, program: str, steps: int) -> Job:
    more = " --daemon" if "daemon" in program else ""
    return Job(tree, f"{MODEL}{program}{more}", steps, 900,
               "{jobs}/iothread-holders.py --replay {out}/steps.json "
               f"--binary {{build}}/{program}{more}")


def fault(name: str, steps: int, tree: str = "asan") -> Job:
    return Job(tree, FAULT % name, steps)


JOBS = {
    "holders": model("asan", PROGRAMS[0], 1000),
    "holders-daemon": model("asan", PROGRAMS[1], 1000),
    "block-jobs": Job("asan", "{jobs}/block-jobs.py {build}/" + PROGRAMS[0]
                      + " --seed {seed} --steps {steps}", 300, 900),
    "moves": Job("asan", FAULT % "moves", 300, 1500),
    "shutdown": fault("qmp-shutdown", 40),
    # Mesa and SDL leak.
    "virtio-gpu": Job("asan", FAULT % "virtio-gpu", 3000, 900, options={
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99"}),
    "virtio-programs": fault("virtio-programs", 20),
    "failed-realize": fault("failed-realize", 120),
    "no-descriptors": fault("no-descriptors", 100),
    "no-memory": fault("no-memory", 300, "patched"),
    "nbd-clients": fault("nbd-clients", 80),
    "full-disk": fault("full-disk", 500),
    "killed-daemon": fault("killed-daemon", 20),
    "vfio-user-server": fault("vfio-user-server", 40),
    "tsan-holders": model("tsan", PROGRAMS[0], 300),
    "tsan-holders-daemon": model("tsan", PROGRAMS[1], 300),
    "tsan-moves": Job("tsan", FAULT % "moves", 100, 1500),
    "tsan-shutdown": fault("qmp-shutdown", 25, "tsan"),
    "tsan-nbd-clients": fault("nbd-clients", 60, "tsan")}


@dataclass
class Count:
    runs: int = 0
    steps: int = 0
    failures: int = 0
    skipped: int = 0


def derived(seed: int, job: str, number: int) -> int:
    """The seed of a job's run: the same for the same seed."""
    text = f"{seed} {job} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def tail_of(text: str) -> str:
    """The last line that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


class Runner:
    """Runs jobs in turn; a failure is kept, and all that repeats it."""

    def __init__(self, builder: Builder, jobs: dict[str, Job], seed: int,
                 minutes: float) -> None:
        self.builder, self.jobs = builder, jobs
        self.seed, self.end = seed, time.monotonic() + minutes * 60
        self.counts = {name: Count() for name in jobs}
        self.turns = ((number, name) for number in itertools.count()
                      for name in jobs)
        self.guard = threading.Lock()
        self.stopped = threading.Event()
        self.errors: list[BaseException] = []

    def words(self, job: Job, command: str, seed: int, out: Path | str,
              ) -> tuple[list[str], dict[str, str]]:
        """The command of a run and its environment."""
        stress = Path("tests", "stress")
        values = {"jobs": stress, "out": out, "seed": seed,
                  "steps": job.steps, "build": self.folder(job.tree)}
        words = [word.format(**values) for word in shlex.split(command)]
        if words[0].endswith(".py"):
            words = ["python3", "-B", *words]
        env = {key: value.format(**values) for key, value in
               (OPTIONS[job.tree] | job.options).items()}
        return ["python3", "-B", f"{stress}/watch.py", str(job.limit),
                str(out), *words], env

    def folder(self, tree: str) -> Path:
        root = self.builder.repo.root
        folder = self.builder.folder(Tree(tree))
        return folder.relative_to(root) if folder.is_relative_to(root) \
            else folder

    def one(self, name: str, number: int) -> None:
        """One run."""
        job, seed = self.jobs[name], derived(self.seed, name, number)
        root = self.builder.repo.root
        out = Path("build", "stress", f"{name}-{seed}")
        remove(root / out)
        (root / out).mkdir(parents=True)
        log = root / out / "log"
        words, env = self.words(job, job.command, seed, out)
        begin = time.monotonic()
        code = self.builder.env.logged(words, log, cwd=root, env=env,
                                       timeout=job.limit + GRACE)
        if self.stopped.is_set():
            remove(root / out)  # it was interrupted
            return
        text = log.read_text(errors="replace")
        steps = [int(n) for n in re.findall(r"(?m)^(\d+) steps", text)]
        reports = list((root / out).glob("tsan.*"))
        bad = code not in (0, SKIPPED) or bool(reports)
        with self.guard:
            count = self.counts[name]
            if code == SKIPPED:
                count.skipped += 1
            else:
                count.runs += 1
            count.steps += max(steps, default=0 if bad else 1)
            count.failures += bad
        if not bad:
            if code == SKIPPED:
                say(f"  skipped: {name}: {tail_of(text)}")
            remove(root / out)
            return
        self.keep(name, job, seed, out, words, env)
        why = "hangs" if code == 124 else f"{len(reports)} reports" \
            if reports and not code else tail_of(text)
        say(f"  failed: {name}, seed {seed}, after "
            f"{time.monotonic() - begin:.0f} s: {why} ({out})")

    def keep(self, name: str, job: Job, seed: int, out: Path,
             words: list[str], env: dict[str, str]) -> None:
        """Seed, command and a script that runs the same again."""
        folder = self.builder.repo.root / out
        write(folder / "seed", f"{seed}\n")

        def line() -> str:
            return "./fork exec -- " + shlex.join(
                ["env", *(f"{k}={v}" for k, v in env.items()), *words])

        write(folder / "command", f"{line()}\n")
        command = job.command
        if job.replay and (folder / "steps.json").exists():
            command = job.replay
        again = out / "replay.out"
        words, env = self.words(job, command, seed, again)
        words = [word.replace(f"{again}/steps.json", f"{out}/steps.json")
                 for word in words]
        write(folder / "replay", f"#!/bin/sh\n# {name}, seed {seed}\n"
              "cd \"$(dirname \"$0\")/../../..\" || exit\n"
              f"mkdir -p {again}\nexec {line()}\n")
        (folder / "replay").chmod(0o755)

    def worker(self) -> None:
        try:
            while not self.stopped.is_set() and \
                    time.monotonic() < self.end:
                with self.guard:
                    number, name = next(self.turns)
                self.one(name, number)
        except BaseException as error:  # pylint: disable=W0718
            self.errors.append(error)
            self.stopped.set()

    def run(self) -> int:
        """Each worker runs one job at a time."""
        workers = [threading.Thread(target=self.worker)
                   for _ in range(os.cpu_count() or 1)]
        try:
            for worker in workers:
                worker.start()
            # Not join(): interrupted, it takes a thread for ended that runs
            # on, in some versions of Python.
            while any(worker.is_alive() for worker in workers):
                time.sleep(.1)
        finally:
            self.stopped.set()
            while any(worker.is_alive() for worker in workers):
                kill_all()
                time.sleep(.1)
            self.report()
        if self.errors:
            raise self.errors[0]
        return 1 if any(c.failures for c in self.counts.values()) else 0

    def report(self) -> None:
        width = max(map(len, self.jobs))
        say(f"{'job':{width}} {'runs':>6} {'steps':>9} {'failures':>9}")
        for name, count in self.counts.items():
            say(f"{name:{width}} {count.runs:6} {count.steps:9} "
                f"{count.failures:9}"
                + (f"  {count.skipped} skipped" if count.skipped else ""))
        say(f"{sum(c.runs for c in self.counts.values())} runs, "
            f"{sum(c.failures for c in self.counts.values())} failures")


def run(builder: Builder, names: list[str], minutes: float,
        seed: int | None) -> int:
    for name in names:
        if name not in JOBS:
            raise Fail(f"there is no stress job {name}; the jobs are "
                       + ", ".join(JOBS))
    jobs = {name: JOBS[name] for name in names or JOBS}
    with lock(builder.repo):
        for tree in dict.fromkeys(job.tree for job in jobs.values()):
            builder.build(Tree("patched") if tree == "patched" else
                          Tree.pick(**{tree: True})[0], TARGETS[tree])
    if seed is None:
        seed = secrets.randbelow(1 << 32)
    say(f"seed {seed}, {minutes:g} minutes")
    return Runner(builder, jobs, seed, minutes).run()
