# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork package: Debian packages of QEMU with the series.

Debian's own source package of the base, the series in debian/patches, built
by dpkg-buildpackage in a root of its own. By default only what x86 needs.
"""
from __future__ import annotations

import re
import shutil
from pathlib import Path

from . import mirror
from .base import Base, sha256
from .build import Builder
from .common import Fail, Repo, need_space, remove, say, step, whole, write
from .env import INSTALL, SUITE, Env
from .formats import DEBIAN, entry, write_format
from .gitrepo import EMAIL, NAME
from .graft import commits, tip
from .series import Series

MAINTAINER = f"{NAME} <{EMAIL}>"
DATE = "Thu, 01 Jan 2026 00:00:00 +0000"  # as the series' commits
# The packages that are built by default; the rest of Debian's list goes.
KEPT = ("qemu-block-extra", "qemu-system-data", "qemu-system-common",
        "qemu-system-gui", "qemu-system-modules-spice",
        "qemu-system-modules-opengl", "qemu-system-x86", "qemu-utils",
        "qemu-guest-agent", "iothread-tools")
PROFILES = "pkg.qemu.omit-user,pkg.qemu.omit-system-xen"
TOOLS = ["build-essential", "fakeroot", "lintian", "ccache"]
CLIENTS = ["libvirt-daemon", "libvirt-daemon-driver-qemu", "python3-libvirt",
           "apparmor", "busybox-static", "cpio", "kmod"]

# The tools of the series: scripts/NAME, with modules in scripts/MODULE.
COMMANDS = {"iothread-top": "iothread_top",
            "iothread-balance": "iothread_balance",
            "iothread-exporter": "iothread_exporter"}
TOOLS_CONTROL = """
Package: iothread-tools
Architecture: amd64 arm64 loong64 mips64el ppc64el riscv64 s390x
Multi-Arch: foreign
Depends: ${misc:Depends}, python3:any, python3-prometheus-client
Enhances: qemu-system-x86, qemu-utils
Description: how busy the event loops of QEMU are
 Programs that ask the QMP monitors of running QEMUs and storage daemons how
 busy each IOThread and the main loop are, and which disks share a thread:
 iothread-top shows it, as top does for processes, and moves a disk to another
 thread when it is told to; iothread-balance does so by itself;
 iothread-exporter tells Prometheus.
"""
SHARE = "usr/share/iothread-tools"
TOOLS_INSTALL = f"""\
python/qemu/qmp/*.py {SHARE}/python/qemu/qmp/
contrib/iothread-exporter/* {SHARE}/prometheus/
""" + "".join(f"""\
scripts/{name} {SHARE}/scripts/
scripts/{module}/*.py {SHARE}/scripts/{module}/
b/docs/{name}.1 usr/share/man/man1/
""" for name, module in COMMANDS.items())
TOOLS_LINKS = "".join(f"{SHARE}/scripts/{name} usr/bin/{name}\n"
                      for name in COMMANDS)
# Tests are half of what ninja builds.
INSTALLED = """\
# SPDX-License-Identifier: GPL-2.0-or-later
\"\"\"The targets of a build folder that are installed.\"\"\"
import json
import os
import subprocess
import sys

folder = os.path.abspath(sys.argv[1])
known = {line.split(':')[0] for line in subprocess.check_output(
    ['ninja', '-C', folder, '-t', 'targets', 'all'], text=True).splitlines()}
for path in json.loads(subprocess.check_output(
        ['meson', 'introspect', '--installed', folder])):
    name = os.path.relpath(path, folder)
    if name in known:
        print(name)
"""
X86 = """
# Only what x86 needs.
system-packages := x86
system-archlist-x86 := x86_64
QEMU_CONFIGURE_OPTIONS += --target-list=x86_64-softmmu
"""


def run(builder: Builder, everything: bool, tests: bool, lint: bool,
        trial: bool) -> int:
    """./fork package: builds, and what the options ask for."""
    work = Packages(builder.repo, builder.archive)
    ours = work.build(everything, tests)
    if lint:
        work.compare(ours, work.build(everything, series=False))
    if trial:
        work.try_them(ours)
    return 0


class Packages:
    """The folder build/package: sources, roots and what comes out."""

    def __init__(self, repo: Repo, archive: str | None = None) -> None:
        self.repo = repo
        self.base = Base(repo)
        self.folder = repo.build / "package"
        self.archive = archive
        if "debian" not in self.base.pin:
            raise Fail("base.toml names no Debian source package")
        self.pin = self.base.pin["debian"]

    # --- Roots ------------------------------------------------------------

    def root(self, name: str) -> Env:
        """A Debian root of this folder, made if it is not there."""
        env = Env(self.repo)
        env.root = self.folder / name
        if not env.root.exists():
            archive = mirror.find(self.archive)
            if not archive:
                raise Fail("this host's apt names no Debian archive; give "
                           "one with --mirror URL")
            need_space(self.repo.root, 6, "building packages")
            env._have_debootstrap()
            with whole(env.root) as partial:
                step(f"package: debootstrap of {name}", [
                    "unshare", "--mount", "--pid", "--fork", "--kill-child",
                    "debootstrap", "--variant=minbase", SUITE, partial,
                    archive], self.repo.log / f"package-{name}.log",
                    timeout=3600, way_out="check the network")
                env._like_the_host(partial)
        return env

    def apt(self, env: Env, what: str, *words: str | Path) -> None:
        log = self.repo.log / "package-apt.log"
        env.step(f"package: {what}", ["sh", "-ec",
                 'dpkg --configure -a; apt-get -q update; exec "$@"', "apt",
                 *words], log, cwd=self.folder, timeout=7200,
                 env={"DEBIAN_FRONTEND": "noninteractive"},
                 way_out="check the network, then run the same again")

    # --- Source -----------------------------------------------------------

    def fetch(self) -> Path:
        """Debian's source package of the base; returns its .dsc."""
        version = self.pin["version"].partition(":")[2]
        dsc = self.folder / "src" / f"{self.pin['package']}_{version}.dsc"
        if not dsc.exists():
            self.base.debian_source(dsc.parent, self.archive)
        tarball = dsc.parent / self.pin["tarball"]
        if not tarball.exists() or sha256(tarball) != self.pin["sha256"]:
            raise Fail(f"{tarball} is not what base.toml pins")
        return dsc

    def prepare(self, env: Env, everything: bool, tests: bool, series: bool
                ) -> Path:
        """Unpacks the source and puts the series in; returns the tree."""
        dsc = self.fetch()
        kind = "patched" if series else "plain"
        tree = self.folder / kind / f"qemu-{self.base.version}"
        remove(tree.parent)
        tree.parent.mkdir(parents=True)
        shutil.copy(dsc.parent / self.pin["tarball"], tree.parent)
        env.step("package: source", ["dpkg-source", "--no-check", "-x", dsc,
                 tree], self.repo.log / "package-source.log",
                 cwd=self.folder, timeout=600)
        if series:
            self.add_series(tree)
        if not everything:
            trim(tree / "debian", tests)
        return tree

    def add_series(self, tree: Path) -> None:
        git, start = self.base.git(), self.base.commit()
        outcomes = commits(git, start, Series.load(self.repo))
        tip(outcomes, start)
        write_format("debian", git, start, outcomes, tree, self.base.version)
        remove(tree / f"changelog.{DEBIAN}")
        add(tree / "debian", self.pin["version"],
            entry([(o.change, b"") for o in outcomes]))

    # --- Building ---------------------------------------------------------

    def build(self, everything: bool = False, tests: bool = False,
              series: bool = True) -> list[Path]:
        """Builds; returns the packages."""
        env = self.root("root")
        self.apt(env, "tools", *INSTALL, *TOOLS)
        tree = self.prepare(env, everything, tests, series)
        self.apt(env, "what it is built with", *INSTALL[:-1], "build-dep",
                 "--arch-only", "-P", ("" if tests else "nocheck,")
                 + PROFILES, tree)
        log = self.repo.log / "package-build.log"
        env.step("package: build", [
            "nice", "dpkg-buildpackage", "-us", "-uc", "-B", "-d"], log,
            cwd=tree, timeout=6 * 3600, env={
                "DEB_BUILD_OPTIONS": "noautodbgsym terse" + (
                    "" if tests else " nocheck"),
                "DEB_BUILD_PROFILES": PROFILES.replace(",", " ") + (
                    "" if tests else " nocheck"),
                "PATH": "/usr/lib/ccache:/usr/sbin:/usr/bin:/sbin:/bin"})
        found = sorted(tree.parent.glob("*.deb"))
        for path in found:
            say(f"  {path.relative_to(self.repo.root)}")
        return found

    def lintian(self, packages: list[Path]) -> set[str]:
        """What lintian says, without versions and places."""
        env = self.root("root")
        done = env.capture(["lintian", "--no-cfg", "--allow-root",
                            "--tag-display-limit", "0", *packages],
                           cwd=self.folder, timeout=1800)
        return {re.sub(r"\s*\[.*\]$", "", line)
                for line in done.stdout.splitlines()
                if line.startswith(("E:", "W:"))}

    def compare(self, ours: list[Path], theirs: list[Path]) -> None:
        """lintian has no more to say than of the packages without the
        series; else an error."""
        more = sorted(self.lintian(ours) - self.lintian(theirs))
        for line in more:
            say(f"  {line}")
        if more:
            raise Fail(f"lintian says {len(more)} things more than of the "
                       "packages without the series")
        say("lintian: no more than of the packages without the series")

    # --- Trying -----------------------------------------------------------

    def try_them(self, packages: list[Path]) -> None:
        """Installs them in a fresh root with libvirt, and has libvirt run a
        guest on them."""
        remove(self.folder / "fresh")
        env = self.root("fresh")
        self.apt(env, "install them, with libvirt", *INSTALL, *CLIENTS,
                 *packages)
        qemu = "/usr/bin/qemu-system-x86_64"
        said = env.capture([qemu, "--version"], cwd=self.folder).stdout
        say(f"  {said.splitlines()[0] if said else 'does not run'}")
        for name in COMMANDS:
            env.step(f"package: {name}", [name, "--help"],
                     self.repo.log / "package-tools.log", cwd=self.folder)
        Env(self.repo).ready().guest()
        env.step("package: a guest through libvirt", [
            "python3", self.repo.root / "tests/clients/libvirt-guest.py",
            qemu], self.repo.log / "package-libvirt.log",
            cwd=self.repo.root, timeout=1800)


def add(debian: Path, version: str, text: str) -> None:
    """Puts the exported patches, the tools and a changelog entry into a
    debian/ folder."""
    patches = debian / "patches"
    ours = patches / f"series.{DEBIAN}"
    series = patches / "series"
    series.write_text(series.read_text() + ours.read_text())
    ours.unlink()
    changelog = debian / "changelog"
    name, _, rest = changelog.read_text().partition(" ")
    changelog.write_text(
        f"{name} ({version}+fork1) UNRELEASED; urgency=medium\n\n{text}\n"
        f" -- {MAINTAINER}  {DATE}\n\n{name} {rest}")
    for path in (debian / "control-in", debian / "control"):
        path.write_text(path.read_text().rstrip("\n") + "\n" + TOOLS_CONTROL)
    (debian / "iothread-tools.install").write_text(TOOLS_INSTALL)
    (debian / "iothread-tools.links").write_text(TOOLS_LINKS)


def trim(debian: Path, tests: bool = False) -> None:
    """Leaves what x86 needs of Debian's packaging."""
    for path in (debian / "control-in", debian / "control"):
        stanzas = path.read_text().split("\n\n")
        kept = [s for s in stanzas if not (
            m := re.search(r"(?m)^Package: (\S+)", s)) or m[1] in KEPT]
        text = "\n\n".join(kept).rstrip("\n") + "\n"
        # Data and firmware of another version will do: that is built
        # with cross compilers.
        text = edit(text, r"qemu-system-data \(>> \$\{source:Upstream-"
                    r"Version\}~\)", "qemu-system-data (>> 1:10.0)")
        text = edit(text, r"seabios \([^)]*\)", "seabios")
        path.write_text(text)
    path = debian / "control.mk"
    text = path.read_text()
    mark = "# system-kvm - list"
    if mark not in text:
        raise Fail("debian/control.mk is not as it was")
    path.write_text(text.replace(mark, X86.lstrip("\n") + "\n" + mark, 1))
    path = debian / "rules"
    text = edit(path.read_text(), r"filter qemu-system,",
                "filter qemu-system-common,")
    text = edit(text, r"(?m)^qemu-builds \+= .*microvm\)\n", "")
    path.write_text(edit(text, r"dh_shlibdeps -a -Nqemu-user\b",
                         "dh_shlibdeps -a"))
    if not tests:
        (debian / "fork-installed.py").write_text(INSTALLED)
        text = edit(path.read_text(), r"(?m)^\t\$\{NINJA\} -C b/qemu$",
                    "\t${NINJA} -C b/qemu $$(python3 debian/fork-installed.py "
                    "b/qemu)")
        path.write_text(edit(text, r"\$\{NINJA\} -C b/qemu install",
                             "${MESON} install -C b/qemu --no-rebuild"))


def edit(text: str, old: str, new: str) -> str:
    text, count = re.subn(old, new.replace("\\", "\\\\"), text)
    if not count:
        raise Fail(f"Debian's packaging has no `{old}` any more")
    return text
