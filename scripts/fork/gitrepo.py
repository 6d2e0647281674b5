# SPDX-License-Identifier: GPL-2.0-or-later
"""Git, the same on every machine: no user configuration, fixed options."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Mapping

from .common import Fail

NAME = "QEMU fork series"
EMAIL = "series@qemu-fork.invalid"
# Commit dates: this plus one minute per change, so that ids are the same
# on every machine.
EPOCH = 1767225600

HUNKS = ("--full-index", "-U1", "--no-renames", "--no-color",
         "--no-ext-diff", "--no-textconv", "--diff-algorithm=myers",
         "--indent-heuristic", "--src-prefix=a/", "--dst-prefix=b/")


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what would make git behave differently."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"LC_ALL": "C", "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1", "GIT_EDITOR": "true",
            "GIT_TERMINAL_PROMPT": "0"}
    return env | dict(extra or {})


def seconds(number: int) -> int:
    """The date of the commit with this number (0 is the base)."""
    return EPOCH + 60 * number


def dates(number: int) -> dict[str, str]:
    """Identity and date of the commit with this number."""
    date = f"{seconds(number)} +0000"
    return {"GIT_AUTHOR_NAME": NAME, "GIT_AUTHOR_EMAIL": EMAIL,
            "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_NAME": NAME,
            "GIT_COMMITTER_EMAIL": EMAIL, "GIT_COMMITTER_DATE": date}


class Git:
    """Commands in one git repository or work tree."""

    def __init__(self, path: Path, env: Mapping[str, str] | None = None,
                 own_config: bool = False) -> None:
        """own_config: the user's configuration counts (identity, line
        ends), as in a checkout that is the user's own."""
        self.path = path
        self.env = clean_env(env)
        if own_config:
            del self.env["GIT_CONFIG_GLOBAL"]
            del self.env["GIT_CONFIG_NOSYSTEM"]

    def with_env(self, extra: Mapping[str, str]) -> "Git":
        other = Git(self.path)
        other.env = self.env | dict(extra)
        return other

    def raw(self, *args: str, data: bytes | None = None
            ) -> subprocess.CompletedProcess[bytes]:
        # The checkout may belong to another user than the one who runs us
        # (sudo); hooks and signing are for people.
        cmd = ["git", "-c", "safe.directory=*", "-c",
               "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false",
               "-c", "gc.auto=0", *args]
        stdin = {"input": data} if data is not None else {
            "stdin": subprocess.DEVNULL}
        try:
            return subprocess.run(cmd, cwd=self.path, env=self.env,
                                  stdout=subprocess.PIPE, check=False,
                                  stderr=subprocess.PIPE, **stdin)
        except FileNotFoundError:
            raise Fail("git is not installed; install it") from None

    def bytes(self, *args: str, data: bytes | None = None) -> bytes:
        done = self.raw(*args, data=data)
        if done.returncode:
            text = done.stderr.decode(errors="replace").strip()
            raise Fail(f"git {args[0]} failed in {self.path}: "
                       f"{' '.join(text.split())}")
        return done.stdout

    def __call__(self, *args: str, data: bytes | None = None) -> str:
        return self.bytes(*args, data=data).decode(
            errors="surrogateescape").rstrip("\n")

    def ok(self, *args: str) -> bool:
        return self.raw(*args).returncode == 0

    def commit_tree(self, tree: str, parent: str | None, message: str,
                    number: int) -> str:
        parents = ("-p", parent) if parent else ()
        return self.with_env(dates(number))(
            "commit-tree", tree, *parents, data=message.encode())

    def tree(self, commit: str) -> str:
        return self("rev-parse", f"{commit}^{{tree}}")

    def head(self) -> str:
        return self("rev-parse", "HEAD")

    def dirty(self) -> list[str]:
        """Tracked files that differ from HEAD; touches nothing."""
        out = self("--no-optional-locks", "status", "--porcelain", "-uno",
                   "--ignore-submodules=dirty")
        return [line[3:] for line in out.splitlines()]

    def busy(self) -> str:
        """What the checkout is in the middle of, if anything."""
        for name, what in (("rebase-merge", "a rebase"),
                           ("rebase-apply", "a rebase or git am"),
                           ("MERGE_HEAD", "a merge"),
                           ("CHERRY_PICK_HEAD", "a cherry-pick"),
                           ("REVERT_HEAD", "a revert")):
            where = Path(self("rev-parse", "--git-path", name))
            if (self.path / where).exists():
                return what
        return ""

    def objects(self) -> Path:
        return self.path / self("rev-parse", "--git-path", "objects")


def version(tree: Path) -> str:
    """What the VERSION file of a QEMU source tree says."""
    try:
        return (tree / "VERSION").read_text().strip()
    except OSError:
        return ""
