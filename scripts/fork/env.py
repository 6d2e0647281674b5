# SPDX-License-Identifier: GPL-2.0-or-later
"""The build environment: this host, or a Debian 13 root under build/."""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Mapping, Sequence

from . import mirror
from .common import (Fail, Repo, capture, foreground, need_space,
                     run_logged, say, step, whole, write)

SUITE = "trixie"
PACKAGES = """
build-essential ninja-build meson ccache pkg-config clang clang-format
libclang-rt-dev gdb valgrind git perl flex bison file bzip2 xz-utils cpio kmod
device-tree-compiler
python3 python3-dev python3-venv python3-pycotap python3-packaging
libglib2.0-dev libpixman-1-dev libfdt-dev zlib1g-dev libzstd-dev
libvirglrenderer-dev libepoxy-dev libgbm-dev libsdl2-dev
libegl-dev libgles-dev squashfs-tools
libaio-dev liburing-dev libslirp-dev libfuse3-dev libcap-ng-dev
libseccomp-dev libxen-dev libcmocka-dev libjson-c-dev
libasan8 libtsan2 libubsan1 libgl1-mesa-dri mesa-vulkan-drivers
xvfb xauth socat busybox-static seabios ipxe-qemu qemu-system-data
python3-sphinx python3-sphinx-rtd-theme quilt dpkg-dev rpm
ca-certificates
python3-prometheus-client promtool
""".split()
# Only in a root of our own: a host would start the daemon, now and at boot.
ROOT_PACKAGES = ["prometheus"]
PACKAGES_HASH = hashlib.sha256(" ".join(PACKAGES + ROOT_PACKAGES).encode()
                               ).hexdigest()
# Only unpacked, for a guest.
GUEST_PACKAGES = ["libgl1-mesa-dri", "libegl1", "libgles2", "kmscube"]

# What a command there sees of the caller's environment.
PASSED = re.compile(r"TERM|V|DISPLAY|(QEMU|QTEST|G|MALLOC|FORK)_.*|"
                    r"(ASAN|UBSAN|TSAN|LSAN)_OPTIONS|"
                    r"(https?|ftp|no)_proxy|(HTTPS?|NO)_PROXY")
# Folders that the root has of its own: never hidden by the caller's.
SYSTEM = re.compile(r"/(bin|boot|dev|etc|lib[^/]*|proc|run|sbin|sys|usr|var)"
                    r"(/|$)")


class Env:
    """Runs commands where QEMU can be built."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.root = repo.build / "root"
        self.native = False
        self.record = repo.build / "env.json"

    # --- Running ----------------------------------------------------------

    def variables(self, extra: Mapping[str, str] | None = None
                  ) -> dict[str, str]:
        found = {k: v for k, v in os.environ.items() if PASSED.fullmatch(k)}
        found |= {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:"
                    "/sbin:/bin",
            "HOME": os.environ.get("HOME", "/") if self.native else "/root",
            "LANG": "C.UTF-8",
            "CCACHE_DIR": str(self.repo.build / "ccache"),
            # One entry for the same code in stock and patched.
            "CCACHE_BASEDIR": str(self.repo.build),
            "CCACHE_NOHASHDIR": "1",
            "QEMU_TEST_LINUX_ROOT": str(self.repo.guest)}
        return found | dict(extra or {})

    def command(self, cmd: Sequence[str | Path], cwd: Path) -> list[str]:
        """The words that run cmd there; the repository, /tmp and the
        current folder are visible at the same path."""
        words = [str(c) for c in cmd]
        if self.native:
            return words
        binds: list[Path] = [Path("/tmp")]
        for path in (self.repo.root, cwd):
            seen = any(path.is_relative_to(b) for b in binds)
            if not seen and path != Path("/") and (
                    path == self.repo.root or not SYSTEM.match(str(path))):
                binds.append(path)
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child",
                "/bin/sh", str(Path(__file__).with_name("enter.sh")),
                str(self.root), str(cwd), *map(str, binds), "--", *words]

    def logged(self, cmd: Sequence[str | Path], log: Path, *,
               cwd: Path | None = None, env: Mapping[str, str] | None = None,
               **more: object) -> int:
        cwd = cwd or self.repo.root
        return run_logged(self.command(cmd, cwd), log, cwd=cwd,
                          env=self.variables(env), **more)  # type: ignore

    def step(self, what: str, cmd: Sequence[str | Path], log: Path, *,
             cwd: Path | None = None, env: Mapping[str, str] | None = None,
             **more: object) -> None:
        cwd = cwd or self.repo.root
        step(what, self.command(cmd, cwd), log, cwd=cwd,
             env=self.variables(env), **more)  # type: ignore

    def capture(self, cmd: Sequence[str | Path], cwd: Path | None = None,
                timeout: float = 60):  # type: ignore[no-untyped-def]
        cwd = cwd or self.repo.root
        return capture(self.command(cmd, cwd), cwd=cwd,
                       env=self.variables(), timeout=timeout)

    def foreground(self, cmd: Sequence[str | Path],
                   env: Mapping[str, str] | None = None) -> int:
        cwd = Path.cwd()
        return foreground(self.command(cmd, cwd), cwd=cwd,
                          env=self.variables(env))

    def host_path(self, path: str) -> Path:
        """Where a path of the environment is on the host."""
        return Path(path) if self.native else self.root / path.lstrip("/")

    # --- Setting up -------------------------------------------------------

    def ready(self, native: bool = False, archive: str | None = None
              ) -> "Env":
        """Chooses the environment and sets it up where it is missing."""
        old = json.loads(self.record.read_text()) \
            if self.record.exists() else {}
        archive = archive or old.get("mirror")
        if native or old.get("native"):
            self.native, why = True, "as --native asks"
        elif old or self.root.exists():
            self.native, why = False, ""
        else:
            self.native, why = choose()
        if not old or self.native != old["native"]:
            say("environment: " + ("this host" if self.native else
                                   "a Debian 13 root under build/")
                + f", {why}")
        if self.native:
            self._native()
        else:
            self._debian(archive)
        write(self.record, json.dumps({"native": self.native,
                                       "mirror": archive}))
        return self

    def settled(self) -> bool:
        """Is all set up already? Then nobody has to wait for the lock."""
        if not self.record.exists() or os.geteuid():
            return False
        self.native = json.loads(self.record.read_text())["native"]
        return self.native or self._stamped()

    def _stamped(self) -> bool:
        stamp = self.root / "fork-packages"
        return stamp.exists() and stamp.read_text() == PACKAGES_HASH

    def _native(self) -> None:
        if debian_version() < 13:
            if missing := lacking():
                raise Fail("this host lacks " + ", ".join(missing)
                           + "; install them, or leave out --native")
            return
        missing = missing_packages()
        if not missing:
            return
        if os.geteuid():
            raise Fail("these packages are missing: " + " ".join(missing)
                       + "; install them, or run as root")
        log = self.repo.log / "packages.log"
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        step("environment: apt-get update", ["apt-get", "-q", "update"],
             log, env=env, timeout=600, way_out="check the network")
        step("environment: packages", [*INSTALL, *missing], log, env=env,
             timeout=3600, append=True, way_out="check the network")

    def _debian(self, archive: str | None) -> None:
        if os.geteuid():
            raise Fail(NO_ROOT)
        if self._stamped():
            return
        archive = mirror.find(archive)
        if not archive:
            raise Fail("this host's apt names no Debian archive; give one "
                       "with --mirror URL")
        if self.root.exists():  # the list of packages has changed
            self._install(self.root)
            write(self.root / "fork-packages", PACKAGES_HASH)
            return
        need_space(self.repo.root, 3, "the Debian 13 root")
        self._have_debootstrap()
        with whole(self.root) as partial:
            step("environment: debootstrap", [
                "unshare", "--mount", "--pid", "--fork", "--kill-child",
                "debootstrap", "--variant=minbase", SUITE, partial, archive],
                self.repo.log / "debootstrap.log", timeout=1800,
                env=os.environ | {"LC_ALL": "C"},
                way_out="check the network, or name another archive with "
                "--mirror URL")
            self._like_the_host(partial)
            self._install(partial)
            (partial / "fork-packages").write_text(PACKAGES_HASH)

    def _have_debootstrap(self) -> None:
        if shutil.which("debootstrap") or \
                Path("/usr/sbin/debootstrap").exists():
            return
        if not shutil.which("apt-get"):
            raise Fail("debootstrap is not installed; install it")
        log = self.repo.log / "packages.log"
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        step("environment: apt-get update", ["apt-get", "-q", "update"],
             log, env=env, timeout=600,
             way_out="check the network, or install debootstrap by hand")
        step("environment: install debootstrap", [*INSTALL, "debootstrap"],
             log, env=env, timeout=600, append=True,
             way_out="install debootstrap by hand")

    def _like_the_host(self, root: Path) -> None:
        """Some networks need the host's resolver and apt settings."""
        if Path("/etc/resolv.conf").exists():
            shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        lines = [line for line in capture(["apt-config", "dump"])
                 .stdout.splitlines() if re.match(
                     r"Acquire::(http|https|ftp|Retries|Force|Check)", line)]
        lines.append('Acquire::Check-Valid-Until "false";')
        conf = root / "etc/apt/apt.conf.d/90fork"
        conf.write_text("\n".join(lines) + "\n")

    def _install(self, root: Path) -> None:
        """Installs what is missing of the packages in root."""
        there = Env(self.repo)
        there.root = root
        log = self.repo.log / "packages.log"
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        out = "check the network, then run the same again"
        there.step("environment: apt-get update",
                   ["sh", "-c", "dpkg --configure -a && "
                    "apt-get -q -o APT::Update::Error-Mode=any update"],
                   log, cwd=Path("/"), env=env, timeout=600, way_out=out)
        there.step(f"environment: {len(PACKAGES + ROOT_PACKAGES)} packages",
                   [*INSTALL, *PACKAGES, *ROOT_PACKAGES], log, cwd=Path("/"),
                   env=env, timeout=3600, append=True, way_out=out)
        there.logged(["apt-get", "clean"], log, cwd=Path("/"), append=True)

    def add(self, packages: Sequence[str], architecture: str = "") -> None:
        """Installs what a single configuration needs beside the rest."""
        missing = [name for name in packages if self.capture(
            ["dpkg-query", "-W", "-f", "${db:Status-Status}", name]
        ).stdout != "installed"]
        if not missing:
            return
        if self.native:
            raise Fail("these packages are missing: " + " ".join(missing)
                       + "; install them")
        self.step(f"environment: {len(missing)} packages more", [
            "sh", "-ec", '[ "$0" = - ] || dpkg --add-architecture "$0"; '
            'apt-get -q update; exec "$@"', architecture or "-", *INSTALL,
            *missing], self.repo.log / "packages.log", cwd=Path("/"),
            env={"DEBIAN_FRONTEND": "noninteractive"}, timeout=3600,
            way_out="check the network, then run the same again")

    # --- A kernel for guests ----------------------------------------------

    def guest(self) -> None:
        """A Debian kernel and its modules, for the guest that is booted."""
        if self.repo.guest.exists():
            return
        need_space(self.repo.root, 1, "the guest's kernel")
        log = self.repo.log / "guest.log"
        with whole(self.repo.guest) as partial:
            partial.mkdir()
            self.step("guest: Debian's kernel", ["sh", "-ec", """
                set -- -o APT::Sandbox::User=root
                find() {
                    apt-cache depends linux-image-amd64 |
                        sed -n 's/^ *Depends: \\(linux-image-[0-9].*\\)/\\1/p'
                }
                name=$(find)
                [ "$name" ] || { apt-get -q "$@" update; name=$(find); }
                apt-get -q "$@" download $name
                dpkg-deb -x ./linux-image-*.deb .
                rm ./linux-image-*.deb
                """], log, cwd=partial, timeout=1800,
                way_out="check the network")

    def guest_mesa(self) -> None:
        """A user space for that guest: OpenGL, and a program that draws."""
        self.guest()
        image = self.repo.guest / "mesa"
        if image.exists():
            return
        need_space(self.repo.root, 1, "the guest's user space")
        log = self.repo.log / "guest-mesa.log"
        with whole(image) as partial:
            partial.mkdir()
            # All that they depend on, as if nothing were installed; out of
            # date lists of packages show when one of these is not found.
            # Not compressed: the guest is slower than the disk.
            self.step("guest: Debian's Mesa", ["sh", "-ec", """
                apt() { apt-get -q -o APT::Sandbox::User=root "$@"; }
                fetch() {
                    names=$(apt -s -o Dir::State::Status=/dev/null \
                                --no-install-recommends install "$@" |
                            sed -n 's/^Inst \\([^ ]*\\).*/\\1/p')
                    [ "$names" ] && apt download $names
                }
                fetch "$@" || { apt update; fetch "$@"; }
                mkdir root root/dev root/proc root/sys root/tmp
                ln -s usr/lib usr/lib64 root
                for deb in *.deb; do
                    dpkg-deb -x "$deb" root
                done
                rm -rf root/usr/share/doc root/usr/share/locale
                mksquashfs root root.squashfs -quiet -no-progress \
                    -no-xattrs -noI -noD -noF -all-root -all-time 0 \
                    -mkfs-time 0
                rm -r root *.deb
                """, "guest-mesa", *GUEST_PACKAGES], log, cwd=partial,
                timeout=1800, way_out="check the network")


INSTALL = ["apt-get", "-q", "-y", "--no-install-recommends", "-o",
           "Dpkg::Options::=--force-unsafe-io", "install"]
NO_ROOT = ("the Debian 13 root under build/ is entered by chroot, which "
           "needs root; run as root (sudo ./fork …), or on a host with "
           "virglrenderer 1.0 and meson 1.5 use --native")


def debian_version() -> float:
    """13 for Debian 13, infinity for sid, 0 for anything else."""
    release = mirror.release()
    if release.get("ID") != "debian":
        return 0
    return float(release.get("VERSION_ID", "inf"))


def missing_packages() -> list[str]:
    out = capture(["dpkg-query", "-W", "-f",
                   "${Package} ${db:Status-Status}\\n", *PACKAGES]).stdout
    there = {line.split()[0] for line in out.splitlines()
             if line.endswith(" installed")}
    # pkg-config is a virtual package by now.
    if shutil.which("pkg-config"):
        there.add("pkg-config")
    return [name for name in PACKAGES if name not in there]


def lacking() -> list[str]:
    """What a host that is not Debian 13 lacks for building QEMU."""
    missing = [tool for tool in ("gcc", "g++", "ninja", "meson", "ccache",
                                 "git", "perl", "flex", "bison", "python3",
                                 "pkg-config", "clang-format", "bzip2",
                                 "dtc") if not shutil.which(tool)]
    for module, least in (("virglrenderer", "1.0"), ("glib-2.0", "2.66"),
                          ("pixman-1", "0.21.8"), ("epoxy", "1.0"),
                          ("sdl2", "2.0"), ("slirp", "4.1")):
        if capture(["pkg-config", f"--atleast-version={least}",
                    module]).returncode:
            missing.append(f"{module} >= {least} (pkg-config)")
    found = capture(["meson", "--version"]).stdout.strip()
    if found and tuple(int(n) for n in re.findall(r"\d+", found)[:2]) < (1, 5):
        missing.append("meson >= 1.5")
    return missing


def choose() -> tuple[bool, str]:
    """Is this host new enough? And why (not)."""
    if debian_version() >= 13:
        return True, "which is Debian 13 or newer"
    if missing := lacking():
        return False, f"as this host lacks {missing[0]}" + (
            f" and {len(missing) - 1} more" if missing[1:] else "")
    return True, "which has all that is needed"
