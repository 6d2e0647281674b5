# SPDX-License-Identifier: GPL-2.0-or-later
"""A tiny QEMU and a repository with a series for it, to test ./fork on."""
from __future__ import annotations

import atexit
import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP / "scripts"))
sys.dont_write_bytecode = True

from fork.build import Builder  # noqa: E402
from fork.common import Repo  # noqa: E402
from fork.gitrepo import Git, clean_env  # noqa: E402
from fork.series import Series  # noqa: E402

LICENCE = "/* SPDX-License-Identifier: GPL-2.0-or-later */\n"
IOTHREAD = "".join(f"static int line{n}(void)\n{{\n    return {n};\n}}\n\n"
                   for n in range(1, 21))
BASE = {"VERSION": "10.2.2\n", "iothread.c": IOTHREAD,
        "meson.build": "project('qemu', ['c'])\n\n\n\nsrcs = ['iothread.c']\n",
        "monitor/monitor.c": "int dispatch(void)\n{\n    return 1;\n}\n",
        ".gitattributes": "*.c diff=c\n"}

SERIES = """\
# The order of the changes.
topic build
change build/cxx

topic holders after build
change holders/registry
    include/system/holds.h
    holds.cc
# two hunks in one file
change holders/users

topic shutdown
change shutdown/kick
"""
# Change, message, edits of files that the base has.
CHANGES: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    ("build/cxx", "build: take C++\n\nThe holders are C++.\n\n"
     "Forwarded: not-needed\n",
     (("meson.build", "['c']", "['c', 'cpp']"),)),
    ("holders/registry", "iothread: add a registry\n\nNothing calls it.\n\n"
     "Forwarded: no\n",
     ()),
    ("holders/users", "iothread: record users\n\nTwo places.\n\n"
     "Applied-Upstream: 11.1.0, commit:0123456789\n"
     "Probe: iothread.c: upstream_hold\n",
     (("iothread.c", "return 3;", "return hold(3);"),
      ("iothread.c", "return 17;", "return hold(17);"))),
    ("shutdown/kick", "monitor: kick the waiter\n\nIt sleeps else.\n\n"
     "Partly-Upstream: 11.0.0\nBeyond-Upstream: the waiter is kicked\n",
     (("monitor/monitor.c", "return 1;", "return kick();"),)))
NEW = {"holds.cc": LICENCE + "#include \"qemu/cxx-begin.h\"\n"
       "#include \"system/holds.h\"\n#include \"qemu/cxx-end.h\"\n\n"
       "int hold(int n) noexcept\n{\n"
       "    return n;\n}\n",
       "include/system/holds.h": LICENCE + "int hold(int n);\n"}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below folder, refs and index of git among them."""
    return {str(p.relative_to(folder)):
            hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


class Sandbox(unittest.TestCase):
    """Spaces and quotes in every path: they are to do no harm."""
    template: Path | None = None  # made once, copied for each test

    def setUp(self) -> None:
        self.enterContext(contextlib.redirect_stdout(io.StringIO()))
        self.tmp = self.folder("fork test's ")
        self.root = self.tmp / "the repo"
        self.qemu = self.tmp / "qemu"
        if not Sandbox.template:
            self.make()
            holder = Path(tempfile.mkdtemp(prefix="fork template "))
            atexit.register(shutil.rmtree, holder)
            Sandbox.template = holder / "it"
            shutil.copytree(self.tmp, Sandbox.template)
        else:
            shutil.copytree(Sandbox.template, self.tmp, dirs_exist_ok=True)
        self.repo = Repo(self.root)

    def folder(self, prefix: str) -> Path:
        holder = tempfile.TemporaryDirectory(prefix=prefix)
        self.addCleanup(holder.cleanup)
        return Path(holder.name).resolve()

    def make(self) -> None:
        self.checkout("qemu")
        put(self.root, {"base.toml": "[qemu]\nversion = \"10.2.2\"\n",
                        "patches/series": SERIES,
                        ".gitignore": "/build/\n", **NEW})
        self.write_patches()
        self.git(self.root, "init", "-q", "-b", "main")
        self.git(self.root, "add", "-A")
        self.git(self.root, "commit", "-q", "-m", "repo")

    def checkout(self, name: str) -> Path:
        """A git checkout of the tiny QEMU."""
        path = self.tmp / name
        put(path, BASE)
        self.git(path, "init", "-q", "-b", "master")
        self.git(path, "config", "user.name", "A U Thor")
        self.git(path, "config", "user.email", "author@example.com")
        self.git(path, "add", "-A")
        self.git(path, "commit", "-q", "-m", "QEMU 10.2.2")
        return path

    def write_patches(self) -> None:
        """Makes the patches by git itself, in a checkout thrown away."""
        path = self.checkout("scratch")
        for name, message, edits in CHANGES:
            for file, old, new in edits:
                text = (path / file).read_text()
                self.assertIn(old, text)
                (path / file).write_text(text.replace(old, new))
            hunks = self.git(path, "diff", "--full-index", "-U1")
            put(self.root, {f"patches/{name}.patch":
                            f"{message}---\n{hunks}"})
            self.git(path, "commit", "-qa", "--allow-empty", "-m", message)

    def git(self, path: Path, *args: str, check: bool = True) -> str:
        env = clean_env({"GIT_AUTHOR_NAME": "T", "GIT_AUTHOR_EMAIL": "t@x",
                         "GIT_COMMITTER_NAME": "T",
                         "GIT_COMMITTER_EMAIL": "t@x"})
        done = subprocess.run(["git", *args], cwd=path, env=env,
                              capture_output=True, text=True, timeout=60)
        if check:
            self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def fork(self, *args: str | Path, code: int | None = 0,
             env: dict[str, str] | None = None) -> str:
        """Runs ./fork on the repository here; returns all it says."""
        done = subprocess.run(
            [TOP / "fork", *map(str, args)], cwd=self.tmp, text=True,
            env=os.environ | {"FORK_ROOT": str(self.root)} | (env or {}),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        if code is not None:
            self.assertEqual(done.returncode, code, done.stdout)
        self.assertNotIn("Traceback", done.stdout)
        return done.stdout

    def builder(self, source: Path | None = None) -> Builder:
        """Base and work tree set up, as ./fork build does first."""
        builder = Builder(self.repo, str(source or self.qemu))
        builder.sources()
        builder.work.ready()
        return builder

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        self.assertIn(old, text)
        path.write_text(text.replace(old, new))

    def commit(self, path: Path, *args: str) -> None:
        self.git(path, "add", "-A")
        self.git(path, "commit", "-q", *args)

    def tree(self, path: Path) -> str:
        return self.git(path, "rev-parse", "HEAD^{tree}").strip()

    def tarball(self, source: Path, name: str = "qemu.tar.xz") -> Path:
        path = self.tmp / name
        with tarfile.open(path, "w:xz") as tar:
            tar.add(source, "qemu-10.2.2", filter=lambda i: None
                    if "/.git" in i.name and "attr" not in i.name else i)
        return path


__all__ = ["BASE", "CHANGES", "NEW", "SERIES", "TOP", "Git", "Sandbox",
           "Series", "put", "snapshot"]
