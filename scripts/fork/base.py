# SPDX-License-Identifier: GPL-2.0-or-later
"""The base: QEMU's source as base.toml pins it, as a git commit."""
from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from . import mirror
from .common import (Fail, Progress, Repo, guarded, need_space, remove,
                     run_logged, say, tail, whole, write)
from .gitrepo import Git, version
from .series import Series

BRANCH = "base"
# Release tarballs have these; a git checkout has them once they were fetched.
SUBPROJECTS = ("keycodemapdb", "berkeley-softfloat-3",
               "berkeley-testfloat-3", "libvfio-user")


class Base:
    """The pin, and the commit in build/stock/src once it is there."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        path = repo.root / "base.toml"
        try:
            self.pin: dict[str, Any] = tomllib.loads(path.read_text())
            self.version = str(self.pin["qemu"]["version"])
        except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
            raise Fail(f"{path} cannot be used: {error}") from None
        self.record = repo.build / "base.json"

    def recorded(self) -> dict[str, Any]:
        if not self.record.exists() or not self.repo.stock.exists():
            return {}
        return json.loads(self.record.read_text())

    def git(self) -> Git:
        return Git(self.repo.stock)

    def commit(self) -> str:
        """The base commit; an error where the base is not set up."""
        found = self.recorded()
        if not found:
            raise Fail("QEMU's source is not set up here; run ./fork build "
                       "--stock first")
        return found["commit"]

    def ready(self, source: str | None = None,
              archive: str | None = None) -> str:
        """Sets up build/stock/src where it is missing."""
        old = self.recorded()
        if source:
            source = str(Path(source).resolve())
        if old and (old["pin"] == self.pin or old["own"] and
                    old["version"] == self.version):
            if source and source != old["source"]:
                raise Fail(
                    f"build/stock was made from {old['source']}; remove "
                    "build/stock and build/patched to take "
                    f"{source} instead")
            return old["commit"]
        need_space(self.repo.root, 1.5, "QEMU's source")
        if not old:
            remove(self.repo.stock)
        folder = self.repo.build / "tree.partial"
        remove(folder)
        folder.mkdir(parents=True)
        try:
            name, pinned = self._fetch(folder, source, archive)
            self._check_version(folder, name)
            commit = self._import(folder, name, pinned, old)
        finally:
            remove(folder)
        write(self.record, json.dumps(
            {"commit": commit, "pin": self.pin, "source": name,
             "own": bool(source), "version": self.version}, indent=1))
        return commit

    def _check_version(self, folder: Path, name: str) -> None:
        found = version(folder)
        if found != self.version:
            raise Fail(
                f"{name} is QEMU {found}, the series is for {self.version}; "
                "give the right source with --source" if found else
                f"{name} is not QEMU's source: it has no VERSION file; give "
                "a QEMU checkout or tarball with --source")

    # --- Sources ----------------------------------------------------------

    def _fetch(self, folder: Path, source: str | None,
               archive: str | None) -> tuple[str, bool]:
        """Fills folder; returns where from, and whether a sum was right."""
        if source:
            return source, self._own(folder, Path(source))
        reasons = []
        if "debian" in self.pin:
            try:
                tarball = self._from_debian(archive)
                extract(tarball, folder)
                return f"Debian's {tarball.name}", True
            except Unavailable as error:
                reasons.append(str(error))
                say(f"base: {error}; taking the release of the QEMU project")
        if "upstream" in self.pin:
            url = self.pin["upstream"]["url"]
            digest = self.pin["upstream"].get("sha256")
            try:
                extract(self._from_url(url, digest), folder)
                return url, bool(digest)
            except Unavailable as error:
                reasons.append(str(error))
        raise Fail(f"QEMU {self.version} cannot be fetched: "
                   + "; ".join(reasons) + "; check the network, or give "
                   "the source with --source DIR|TARBALL")

    def _own(self, folder: Path, source: Path) -> bool:
        if source.is_dir():
            self._check_version(source, str(source))
            if (source / ".git").exists():
                git = Git(source, own_config=True)
                # Not git archive: that leaves out what attributes say.
                index = {"GIT_INDEX_FILE": f"{folder}.index.partial"}
                git.with_env(index)("read-tree", "HEAD")
                git.with_env(index)("checkout-index", "-a",
                                    f"--prefix={folder}/")
                remove(Path(f"{folder}.index.partial"))
                for name in SUBPROJECTS:
                    there = source / "subprojects" / name
                    if there.is_dir():
                        shutil.copytree(
                            there, folder / "subprojects" / name,
                            symlinks=True, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns(".git"))
            else:
                shutil.copytree(source, folder, symlinks=True,
                                dirs_exist_ok=True)
            return False
        if not source.is_file():
            raise Fail(f"--source {source}: there is no such file or folder")
        digest = sha256(source)
        extract(source, folder)
        return digest in (self.pin.get("debian", {}).get("sha256"),
                          self.pin.get("upstream", {}).get("sha256"))

    def _from_debian(self, archive: str | None) -> Path:
        pin = self.pin["debian"]
        target = self.repo.build / "cache" / pin["tarball"]
        if target.exists():
            check_sum(target, pin["sha256"])
            return target
        apt = self._apt_source(archive)
        check_sum(apt / pin["tarball"], pin["sha256"])
        (apt / pin["tarball"]).rename(target)
        remove(apt)
        return target

    def debian_source(self, folder: Path, archive: str | None) -> None:
        """Puts the files of Debian's source package into folder."""
        try:
            apt = self._apt_source(archive)
        except Unavailable as error:
            raise Fail(f"{error}; Debian's source package is needed for "
                       "this") from None
        check_sum(apt / self.pin["debian"]["tarball"],
                  self.pin["debian"]["sha256"])
        folder.mkdir(parents=True, exist_ok=True)
        for file in apt.glob(f"{self.pin['debian']['package']}_*"):
            file.rename(folder / file.name)
        remove(apt)

    def _apt_source(self, archive: str | None) -> Path:
        """Has apt fetch Debian's source package; returns the folder."""
        pin = self.pin["debian"]
        if not shutil.which("apt-get"):
            raise Unavailable("this host has no apt")
        archive = mirror.find(archive)
        if not archive:
            raise Unavailable("no Debian mirror is known on this host "
                              "(--mirror URL names one)")
        log = self.repo.log / "source.log"
        apt = self.repo.build / "cache" / "apt.partial"
        for name in ("lists/partial", "cache/archives/partial"):
            (apt / name).mkdir(parents=True, exist_ok=True)
        (apt / "sources.list").write_text(
            f"deb-src {archive} {pin['suite']} {pin['component']}\n")
        # Lists of its own: the host's stay as they are. The index of a
        # suite may be older than its Valid-Until on a mirror.
        options = [f"Dir::Etc::sourcelist={apt}/sources.list",
                   "Dir::Etc::sourceparts=-", f"Dir::State::lists={apt}/lists",
                   f"Dir::Cache={apt}/cache", "APT::Sandbox::User=root",
                   "Acquire::Check-Valid-Until=false", "Acquire::Retries=2",
                   "APT::Update::Error-Mode=any"]
        cmd = ["apt-get", "-q"]
        for option in options:
            cmd += ["-o", option]
        progress = Progress(f"source: QEMU {pin['version']} by apt:")
        env = os.environ | {"LC_ALL": "C"}
        for number, words in enumerate((
                ["update"], ["--download-only", "source",
                             f"{pin['package']}={pin['version']}"])):
            if run_logged([*cmd, *words], log, cwd=apt, env=env,
                          timeout=1800, append=number > 0):
                progress.drop()
                text = tail(log, 100)
                if "Hash Sum mismatch" in text:
                    raise Fail(f"apt found a wrong checksum; see {log}; try "
                               "again later or with another --mirror")
                raise Unavailable(
                    f"apt cannot reach {archive} (see {log})" if number == 0
                    else f"apt does not offer {pin['package']} "
                    f"{pin['version']}")
        progress.end()
        return apt

    def _from_url(self, url: str, digest: str | None) -> Path:
        target = self.repo.build / "cache" / url.rsplit("/", 1)[-1]
        if target.exists():
            if digest:
                check_sum(target, digest)
            return target
        with whole(target) as partial:
            progress = Progress(f"source: {url}:")
            try:
                with urllib.request.urlopen(url, timeout=60) as answer, \
                        open(partial, "wb") as out:
                    size = int(answer.headers.get("Content-Length") or 0)
                    while block := answer.read(1 << 20):
                        out.write(block)
                        progress.step(out.tell() >> 20, size >> 20)
                    if size and out.tell() != size:
                        raise OSError("the download ended too early")
            except OSError as error:  # URLError is one
                progress.drop()
                raise Unavailable(f"{url}: {error}") from None
            progress.end()
            if digest:
                check_sum(partial, digest, url)
        return target

    # --- Into git ---------------------------------------------------------

    def _import(self, folder: Path, name: str, pinned: bool,
                old: dict[str, Any]) -> str:
        progress = Progress("source: git commit:")
        if not old:
            with whole(self.repo.stock) as partial:
                folder.rename(partial)
                git = Git(partial)
                git("init", "-q", "-b", BRANCH)
                exclude(partial)
                git("add", "-A", "-f")
                commit = self._commit(git)
                if not pinned:
                    self._check_blobs(git, commit, name)
                git("update-ref", f"refs/heads/{BRANCH}", commit)
        else:
            # A new base beside the old: git can then rebase the work tree.
            stock = self.git()
            git = stock.with_env({
                "GIT_WORK_TREE": str(folder),
                "GIT_DIR": str(self.repo.stock / ".git"),
                "GIT_INDEX_FILE": str(folder) + ".partial"})
            git("add", "-A", "-f")
            commit = self._commit(git)
            remove(Path(str(folder) + ".partial"))
            if not pinned and old["version"] == self.version:
                self._check_blobs(git, commit, name)
            if commit != old["commit"]:
                stock("tag", "-f", f"{BRANCH}-{old['version']}",
                      old["commit"])
                stock("reset", "-q", "--keep", commit)
        placeholders(self.repo.stock)
        progress.end()
        return commit

    def _commit(self, git: Git) -> str:
        return git.commit_tree(git("write-tree"), None,
                               f"QEMU {self.version}\n", 0)

    def _check_blobs(self, git: Git, commit: str, name: str) -> None:
        """Without a checksum: is each file that the series touches, and
        each that it adds, as the patches say?"""
        series = Series.load(self.repo)
        for path, blob in series.base_blobs().items():
            found = git.raw("rev-parse", f"{commit}:{path}").stdout
            if blob and found.decode().strip() != blob:
                raise Fail(f"{name} is not the QEMU {self.version} that the "
                           f"series is for: {path} differs; give an "
                           "unmodified source with --source")
        for change in series.changes:
            for path in change.paths:
                if git.ok("cat-file", "-e", f"{commit}:{path}"):
                    raise Fail(f"{name} is not an unmodified QEMU "
                               f"{self.version}: it has {path}, which the "
                               "series adds; give another with --source")


class Unavailable(Exception):
    """This source cannot be had; the next one may."""


def exclude(tree: Path) -> None:
    info = tree / ".git" / "info"
    info.mkdir(exist_ok=True)
    (info / "exclude").write_text("/pc-bios/edk2-*.fd.bz2\n")
    # Patches are to have the same bytes whatever attributes a source has.
    (info / "attributes").write_text("* !diff -text !ident !filter\n")


def placeholders(tree: Path) -> None:
    """Empty firmware where the source comes without, as Debian's does:
    meson.build wants the files to be there, no test here uses them."""
    path = tree / "pc-bios" / "meson.build"
    if not path.exists():
        return
    for name in re.findall(r"'(edk2-[\w-]+\.fd)'", path.read_text()):
        packed = tree / "pc-bios" / f"{name}.bz2"
        if not packed.exists():
            packed.write_bytes(bz2.compress(b""))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sum(path: Path, digest: str, name: str = "") -> None:
    found = sha256(path)
    if found != digest:
        raise Fail(f"{name or path} has a wrong checksum (sha256 {found}, "
                   f"base.toml says {digest}); "
                   + ("do not use it, and try again later" if name else
                      "remove it and try again"))


def extract(tarball: Path, folder: Path) -> None:
    """Unpacks a tarball without its top folder."""
    with open(tarball, "rb") as file:
        magic = file.read(6)
    opener = lzma.open if magic == b"\xfd7zXZ\0" else bz2.open \
        if magic[:3] == b"BZh" else gzip.open \
        if magic[:2] == b"\x1f\x8b" else open
    with opener(tarball, "rb") as stream:
        untar(stream, folder, str(tarball), strip=1)


def untar(stream: IO[bytes], folder: Path, name: str, strip: int = 0) -> None:
    tar = subprocess.Popen(
        guarded(["tar", "-x", "--no-same-owner", "--no-same-permissions",
                 f"--strip-components={strip}", "-C", folder]),
        stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, umask=0o022)
    assert tar.stdin is not None
    try:
        shutil.copyfileobj(stream, tar.stdin, 1 << 20)
        tar.stdin.close()
        if tar.wait() == 0 and any(folder.iterdir()):
            return
    except (EOFError, OSError, lzma.LZMAError):
        pass
    finally:
        tar.kill()
        tar.wait()
        with contextlib.suppress(OSError):
            tar.stdin.close()
    raise Fail(f"{name} is not a whole tarball; fetch it again")
