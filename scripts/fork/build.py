# SPDX-License-Identifier: GPL-2.0-or-later
"""Build trees side by side under build/: patched, stock, sanitizers."""
from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .base import SUBPROJECTS, Base, placeholders
from .common import (Fail, Progress, Repo, failed, need_space, remove, say,
                     write)
from .env import Env
from .graft import commits, tip
from .series import Series
from .worktree import WorkTree

# Explicit, so that stock and patched are alike on every machine.
CONFIGURE = """
--target-list=x86_64-softmmu --disable-install-blobs --disable-docs
--disable-user --disable-download --python=/usr/bin/python3 --enable-tools
--enable-opengl --enable-virglrenderer --enable-sdl --enable-linux-aio
--enable-linux-io-uring --enable-slirp --enable-fuse --enable-cap-ng
--enable-seccomp --enable-zstd --enable-fdt=system --enable-vhost-user
--enable-multiprocess --enable-xen --enable-vfio-user-server
--disable-valgrind
""".split()
# libvfio-user is built with -Werror, and newer compilers warn of its code.
GCC = ["--extra-cflags=-Wno-calloc-transposed-args -Wno-dangling-pointer",
       "--cc=ccache gcc", "--cxx=ccache g++"]

FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu")
TESTS = "meson-test-prereq"  # meson's name for all that tests need
NO_DEVICES = ("--disable-xen", "--disable-vfio-user-server",
              "--disable-multiprocess", "--disable-virglrenderer",
              "--disable-opengl")


def cross(prefix: str, cpu: str, target: str) -> tuple[str, ...]:
    """Options for another architecture, by Debian's cross compiler."""
    return (f"--cross-prefix={prefix}-", f"--cc=ccache {prefix}-gcc",
            f"--cxx=ccache {prefix}-g++", f"--cpu={cpu}",
            f"--target-list={target}", *NO_DEVICES, "--disable-sdl",
            "--disable-fuse", "--disable-slirp")


# What forks build beside the usual: files that are absent then must not be
# missed, by the compiler or by the linker.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "clang": ("--cc=ccache clang", "--cxx=ccache clang++"),
    "targets": ("--target-list=aarch64-softmmu,s390x-softmmu",),
    "modules": ("--enable-modules",),
    "bare": (*NO_DEVICES, "--disable-sdl", "--disable-fuse",
             "--disable-linux-io-uring", "--disable-linux-aio"),
    "tools": ("--target-list=", "--disable-system"),
    "agent": ("--target-list=", "--disable-system", "--disable-tools",
              *NO_DEVICES, "--enable-guest-agent", "--cxx=/nonexistent"),
    "user": ("--target-list=x86_64-linux-user", "--enable-linux-user",
             "--disable-system", "--disable-tools", *NO_DEVICES,
             "--cxx=/nonexistent"),
    # The manual and the man pages; what sphinx warns of is an error.
    "docs": ("--enable-docs", "--enable-werror", "--target-list=",
             "--disable-system", *NO_DEVICES),
    "lto": ("--enable-lto",),
    "fortify": ("--extra-cflags=-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3",
                "--extra-cxxflags=-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3"),
    "static": ("--static", "--target-list=", "--disable-system",
               *NO_DEVICES, "--disable-sdl", "--disable-fuse",
               "--disable-slirp"),
    "i386": cross("i686-linux-gnu", "i386", "i386-softmmu"),
    "s390x": cross("s390x-linux-gnu", "s390x", "s390x-softmmu")}
# What is built of a configuration, if not all with its unit tests; and what
# it needs beside the environment: an architecture, and packages.
TARGETS = {"docs": ("docs/docs.stamp", "docs/qemu.1"),
           "i386": ("all", TESTS), "s390x": ("all", TESTS)}
LIBRARIES = ("libglib2.0-dev", "libpixman-1-dev", "zlib1g-dev",
             "libzstd-dev", "libaio-dev", "liburing-dev", "libcap-ng-dev",
             "libseccomp-dev", "libfdt-dev", "pkgconf")
NEEDS = {"i386": ("i386", (
    "gcc-i686-linux-gnu", "g++-i686-linux-gnu",
    *(f"{name}:i386" for name in LIBRARIES))),
    "s390x": ("s390x", (
        "gcc-s390x-linux-gnu", "g++-s390x-linux-gnu",
        *(f"{name}:s390x" for name in LIBRARIES)))}


@dataclass(frozen=True)
class Tree:
    """One build folder: from which source, configured how."""
    name: str
    stock: bool = False
    options: tuple[str, ...] = ()

    @staticmethod
    def pick(stock: bool = False, asan: bool = False, tsan: bool = False,
             configurations: tuple[str, ...] = ()) -> list["Tree"]:
        """The trees that the options of `build` ask for."""
        kinds: list[tuple[str, tuple[str, ...]]] = []
        if asan:
            # Half the time to compile; a report still has files and lines.
            kinds.append(("asan", ("--enable-asan", "--enable-ubsan",
                                   "--enable-debug-mutex",
                                   "-Doptimization=1",
                                   "--extra-cflags=-g1")))
        if tsan:
            # gcc warns of stock code when it adds this sanitizer. Not
            # --disable-werror: meson forgets that when it configures again.
            kinds.append(("tsan", ("--enable-tsan",
                                   "--extra-cflags=-Wno-error")))
        kinds += [(name, CONFIGURATIONS[name]) for name in configurations]
        if not kinds:
            return [Tree("stock", True) if stock else Tree("patched")]
        return [Tree(f"stock-{name}" if stock else name, stock, options)
                for name, options in kinds]


class Builder:
    """Sets up everything below a build tree, then builds it."""

    def __init__(self, repo: Repo, source: str | None = None,
                 archive: str | None = None, native: bool = False) -> None:
        self.repo = repo
        self.base = Base(repo)
        self.env = Env(repo)
        self.work = WorkTree(repo, self.base)
        self.source, self.archive, self.want_native = source, archive, native

    def environment(self) -> Env:
        return self.env.ready(self.want_native, self.archive)

    def sources(self) -> None:
        self.base.ready(self.source, self.archive)

    def folder(self, tree: Tree) -> Path:
        """Beside the source, under the same relative path for all trees:
        what stock and patched have in common is compiled once."""
        source = self.repo.stock if tree.stock else self.repo.work
        kind = tree.name.removeprefix("stock-")
        return source.parent / ("build" if kind in ("stock", "patched")
                                else kind)

    def build(self, tree: Tree, targets: tuple[str, ...] = ("all", TESTS)
              ) -> None:
        if not self.folder(tree).exists():
            need_space(self.repo.root, 8 if not self.env.root.exists() else
                       4, f"building {tree.name}")
        self.environment()
        self.sources()
        if not tree.stock:
            self.work.ready()
        kind = tree.name.removeprefix("stock-")
        if kind in NEEDS:
            architecture, packages = NEEDS[kind]
            self.env.add(packages, architecture)
        source = self.repo.stock if tree.stock else self.repo.work
        self.make(tree.name, source, self.folder(tree), tree.options,
                  TARGETS.get(kind, targets))

    def make(self, name: str, source: Path, folder: Path,
             options: tuple[str, ...], targets: tuple[str, ...]) -> None:
        self._configure(name, source, folder, options)
        self._ninja(name, folder, targets)
        self._firmware(folder)

    def _configure(self, name: str, source: Path, folder: Path,
                   options: tuple[str, ...]) -> None:
        compilers = [] if any(o.startswith("--cc=") for o in options) else GCC
        cmd = [str(source / "configure"), *CONFIGURE, *compilers, *options]
        stamp = folder / "fork-configure.json"
        wanted = json.dumps({"cmd": cmd, "native": self.env.native})
        if stamp.exists() and stamp.read_text() == wanted:
            return
        missing = [part for part in SUBPROJECTS
                   if not (source / "subprojects" / part).is_dir()]
        if missing:
            raise Fail(f"QEMU's source lacks subprojects/{missing[0]}; run "
                       f"`meson subprojects download {' '.join(missing)}` in "
                       "the checkout that --source named, remove build/stock "
                       "and build/patched, and run the same again")
        remove(folder)
        folder.mkdir(parents=True)
        self.env.step(f"configure {name}", cmd,
                      self.repo.log / f"configure-{name}.log", cwd=folder,
                      timeout=900)
        write(stamp, wanted)

    def _ninja(self, name: str, folder: Path, targets: tuple[str, ...]
               ) -> None:
        log = self.repo.log / f"build-{name}.log"
        progress = Progress(f"build {name}:")
        total = 0

        def line(text: str) -> None:
            nonlocal total
            if match := re.match(r"\[(\d+)/(\d+)\]", text):
                total = int(match[2])
                progress.step(int(match[1]), total)

        code = self.env.logged(["ninja", *targets], log, cwd=folder,
                               timeout=4 * 3600, line=line)
        if code:
            progress.drop()
            raise Fail(failed(f"build {name}", code, log))
        progress.end(f"{total} steps" if total else "up to date")

    def _firmware(self, folder: Path) -> None:
        """A QEMU that runs from its build tree looks for firmware here."""
        bundle = folder / "qemu-bundle/usr/local/share/qemu"
        bundle.mkdir(parents=True, exist_ok=True)
        for place in FIRMWARE:
            there = self.env.host_path(place)
            for file in sorted(there.iterdir()) if there.is_dir() else []:
                link = bundle / file.name
                if file.is_dir() or link.is_symlink() and (
                        link.exists() or self.env.host_path(
                            os.readlink(link)).exists()) or \
                        not link.is_symlink() and link.exists():
                    continue
                link.unlink(missing_ok=True)
                link.symlink_to(f"{place}/{file.name}")

    def unit_tests(self, name: str, folder: Path) -> None:
        log = self.repo.log / f"unit-{name}.log"
        self.env.step(f"unit tests of {name}", [
            "pyvenv/bin/meson", "test", "--no-rebuild", "--suite", "unit",
            "--print-errorlogs"], log, cwd=folder, timeout=1800)

    # --- Every change of the series ---------------------------------------

    def each(self, tree: Tree, names: list[str]) -> None:
        """Builds and unit-tests the source after each change in turn.

        Or only after these changes, and those of these topics. What has
        passed once is not done again while its files are the same.
        """
        need_space(self.repo.root, 8, "build/each")
        self.environment()
        self.sources()
        git, base = self.base.git(), self.base.commit()
        series = Series.load(self.repo)
        known = {*series.topics, *(c.name for c in series.changes)}
        if unknown := [name for name in names if name not in known]:
            raise Fail(f"there is no topic or change {unknown[0]}; they are "
                       "in patches/series")
        outcomes = commits(git, base, series)
        tip(outcomes, base)
        source = self.repo.build / "each" / "src"
        folder = self.repo.build / "each" / tree.name
        record = self.repo.build / "each" / f"{tree.name}.passed"
        passed = record.read_text().split() if record.exists() else []
        if not (source / ".git").exists():
            remove(source)
            git("worktree", "prune")
            git("worktree", "add", "-q", "--force", "--detach", str(source),
                base)
        work = type(git)(source)
        for number, outcome in enumerate(outcomes, 1):
            name, topic = outcome.change.name, outcome.change.topic
            if names and not {name, topic} & set(names):
                continue
            files = git.tree(outcome.commit)
            say(f"--- {number}/{len(outcomes)} {name}"
                + (": passed before" if files in passed else ""))
            if files in passed:
                continue
            work("reset", "-q", "--hard", outcome.commit)
            placeholders(source)
            name = f"{tree.name} {name}".replace("/", "-")
            self.make(name, source, folder, tree.options, ("all", TESTS))
            self.unit_tests(name, folder)
            passed.append(files)
            write(record, "\n".join(passed) + "\n")
