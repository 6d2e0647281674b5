# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: what ./fork understands, and how it fails."""
from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from typing import Iterator, NoReturn

from . import check, deliver, package, stress, tests, upstream
from .build import CONFIGURATIONS, TARGETS, Builder, Tree
from .common import Fail, Repo, kill_all, lock, speak_aside
from .formats import FORMATS

EPILOG = """All that is built or fetched goes to build/ and may be removed.
A second run does only what is missing."""


def minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):  # nan is not, either
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("where things come from")
    group.add_argument("--source", metavar="DIR|TARBALL",
                       help="QEMU's source, instead of fetching it")
    group.add_argument("--mirror", metavar="URL",
                       help="the Debian archive to use, instead of that of "
                       "this host's apt")
    group.add_argument("--native", action="store_true",
                       help="build on this host, not in a Debian 13 root")
    main = argparse.ArgumentParser(
        prog="fork", description="A fork-ready patch series for QEMU: "
        "build it, test it, put it on your own QEMU.", epilog=EPILOG)
    commands = main.add_subparsers(dest="command", metavar="COMMAND",
                                   required=True)

    def add(name: str, text: str, set_up: bool = True
            ) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".",
            parents=[common] if set_up else [])

    demo = add("run", "boot a small guest that shows the series at work; "
               "with -- ARGS, run the patched qemu-system-x86_64 with them")
    demo.add_argument("args", nargs="*", metavar="ARGS")
    demo.add_argument("--picture", metavar="FILE", help="instead, draw the "
                      "load of a guest whose disk moves from one IOThread to "
                      "another")
    test = add("test", "run the tests; the last line counts them")
    test.add_argument("names", nargs="*", metavar="NAME",
                      help="a suite, or suite/test; suites: "
                      + " ".join(tests.SUITES) + "; without a name all but "
                      + " ".join(tests.LONG))
    test.add_argument("--upstream", action="store_true",
                      help="QEMU's own tests instead, on stock and on the "
                      "patched QEMU: what differs; NAME is a part of a name")
    build = add("build", "build the patched QEMU, under build/patched")
    for option, text in (
            ("stock", "QEMU without the series, under build/stock"),
            ("asan", "with the address and undefined sanitizers"),
            ("tsan", "with the thread sanitizer"),
            ("full", "in each of the configurations that forks build "
             "beside the usual, with its unit tests")):
        build.add_argument(f"--{option}", action="store_true", help=text)
    build.add_argument("--each", nargs="*", metavar="NAME",
                       help="every change of the series, or these, or those "
                       "of these topics, one after the other, each with its "
                       "unit tests; not what has passed before")
    build.add_argument("--configuration", metavar="NAME", action="append",
                       choices=CONFIGURATIONS, default=[],
                       help="in one of these: " + ", ".join(CONFIGURATIONS))
    run = add("exec", "run a command in the build environment; QEMU_BUILD "
              "names the build folder")
    run.add_argument("--stock", action="store_true",
                     help="QEMU_BUILD is build/stock")
    run.add_argument("args", nargs="+", metavar="CMD")
    apply = add("apply", "put the series on a git checkout of QEMU, as "
                "commits; all of it or nothing", False)
    apply.add_argument("dir", metavar="DIR")
    apply.add_argument("--signoff", action="store_true",
                       help="add your Signed-off-by, as git knows you")
    export = add("export", "write the series as files: mails for git am, or "
                 "what distributions keep")
    export.add_argument("dir", metavar="DIR")
    export.add_argument("--format", metavar="FORMAT", choices=FORMATS,
                        default="mbox", help=", ".join(FORMATS)
                        + " (default: mbox, one mail per change)")
    for command in (apply, export):
        command.add_argument("--topic", metavar="NAME", help="only this "
                             "topic, and those that it comes after")
    refresh = add("refresh", "write the commits of the work tree "
                  "build/patched/src back into patches/", False)
    refresh.add_argument("--topic", metavar="NAME",
                         help="the topic of new commits, if it is not that "
                         "of the commit before")
    refresh.add_argument("--force", action="store_true",
                         help="even over changes in patches/")
    bench = add("bench", "measure the patched QEMU against stock, in turn; "
                "table here, chart and all figures in build/bench")
    bench.add_argument("rows", nargs="*", metavar="ROW",
                       help="part of a row's name")
    bench.add_argument("--quick", action="store_true",
                       help="few rounds: do all rows work?")
    load = add("stress", "run random jobs with sanitizers and faults until "
               "the time is over; failures are kept in build/stress")
    load.add_argument("jobs", nargs="*", metavar="JOB",
                      help="a job; all of them in turn if none: "
                      + " ".join(stress.JOBS))
    load.add_argument("--minutes", type=minutes, default=30, metavar="N",
                      help="how long (default: 30)")
    load.add_argument("--seed", type=int, metavar="S",
                      help="the same seed gives the same sequences")
    debs = add("package", "build Debian packages of QEMU with the series, "
               "of Debian's own packaging: only what x86 needs")
    for option, text in (
            ("all", "all that Debian builds of it for this architecture"),
            ("tests", "run the tests that Debian runs while building"),
            ("lintian", "build without the series too, and compare what "
             "lintian says"),
            ("try", "install them in a fresh root with libvirt, and run a "
             "guest")):
        debs.add_argument(f"--{option}", action="store_true", help=text)
    add("check", "check that series and files agree, and their style")
    return main


def dispatch(repo: Repo, args: argparse.Namespace) -> int:
    name = args.command
    if name == "apply":
        deliver.apply(repo, args.dir, args.topic, args.signoff)
        return 0
    if name == "refresh":
        with lock(repo):
            builder = Builder(repo)
            builder.work.refresh(args.topic, args.force)
        return 0
    builder = Builder(repo, args.source, args.mirror, args.native)
    if name == "build":
        with lock(repo):
            wanted = tuple(CONFIGURATIONS if args.full
                           else args.configuration)
            for tree in Tree.pick(args.stock, args.asan, args.tsan, wanted):
                if args.each is not None and not tree.stock:
                    builder.each(tree, args.each)
                    continue
                builder.build(tree)
                kind = tree.name.removeprefix("stock-")
                if kind in wanted and kind not in TARGETS:
                    builder.unit_tests(tree.name, builder.folder(tree))
        return 0
    if name == "export":
        with lock(repo):
            builder.sources()
            deliver.export(repo, args.dir, args.topic, args.format)
        return 0
    if name == "package":
        with lock(repo):
            builder.sources()
            return package.run(builder, args.all, args.tests, args.lintian,
                               getattr(args, "try"))
    if name == "check":
        with lock(repo):
            builder.environment()
            builder.sources()
            return check.report(check.run(builder))
    if name == "test":
        if args.upstream:
            return upstream.run(builder, args.names)
        return tests.run(builder, args.names)
    if name == "stress":
        return stress.run(builder, args.jobs, args.minutes, args.seed)
    if name == "bench":
        return bench(builder, args.rows, args.quick)
    if args.args:
        speak_aside()
    if name == "exec":
        if args.native or not builder.env.settled():
            with lock(repo):
                builder.environment()
        tree = Tree("stock") if args.stock else Tree("patched")
        return builder.env.foreground(
            args.args, {"QEMU_BUILD": str(builder.folder(tree))})
    with lock(repo):
        builder.build(Tree("patched"))
        if not args.args:
            builder.env.guest()
    qemu = builder.folder(Tree("patched")) / "qemu-system-x86_64"
    if args.args:
        return builder.env.foreground([qemu, *args.args])
    demo = repo.root / "scripts" / "fork" / "demo.py"
    return builder.env.foreground([
        "python3", demo, "--qemu", qemu,
        *(["--picture", args.picture] if args.picture else [])])


def bench(builder: Builder, rows: list[str], quick: bool) -> int:
    trees = [Tree("stock", True), Tree("patched")]
    with lock(builder.repo):
        for tree in trees:
            builder.build(tree)
        builder.env.guest()
    return builder.env.foreground([
        "python3", "-B", "-m", "bench", *(["--quick"] if quick else []),
        "--out", builder.repo.build / "bench",
        *(builder.folder(tree) for tree in trees), *rows],
        {"PYTHONPATH": str(builder.repo.root / "scripts")})


@contextlib.contextmanager
def endings() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does."""
    def stop(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        yield
    finally:
        kill_all()


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    # What follows `--` is for another program, options and all.
    cut = words.index("--") if "--" in words else len(words)
    args = parser().parse_args(words[:cut] + (
        ["--", *words[cut + 1:]] if cut < len(words) else []))
    os.umask(0o022)
    repo = Repo.find()
    try:
        with endings():
            return dispatch(repo, args)
    except Fail as error:
        print(f"fork: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfork: interrupted; run the same again to go on",
              file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        # A full disk, a folder of another user: no traceback for these.
        print(f"fork: {error.strerror or error}"
              + (f": {error.filename}" if error.filename else "")
              + "; put that right and run the same again", file=sys.stderr)
        return 1
