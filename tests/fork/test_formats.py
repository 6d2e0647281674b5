# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork export for distributions, each format with the tool that reads it.

The tools are those of the build environment, or of this host. With
FORK_TEST_REAL=1 the formats of the real series are tried too, on QEMU's
source in build/stock.
"""
import os
import shutil
import subprocess
import tarfile
import unittest
from pathlib import Path

from sandbox import TOP, Sandbox, put, snapshot

from fork import package
from fork.base import Base
from fork.common import Fail, Repo
from fork.env import Env
from fork.gitrepo import Git, clean_env
from fork.graft import commits, tip
from fork.origin import trailers
from fork.series import Series

CONTROL = """\
Source: qemu
Maintainer: A <a@example.com>
Standards-Version: 4.7.2

Package: qemu
Architecture: all
Description: a tiny one
"""
CHANGELOG = """\
qemu (1:10.2.2+ds-1) unstable; urgency=medium

  * new

 -- A <a@example.com>  Thu, 01 Jan 2026 00:00:00 +0000
"""
THEIRS = """\
Description: a patch of the distribution
---
--- a/iothread.c
+++ b/iothread.c
@@ -56,5 +56,5 @@
 static int line12(void)
 {
-    return 12;
+    return 21;
 }
 %s
"""
SPEC = """\
Name: qemu
Version: 10.2.2
Release: 1
Summary: a tiny one
License: GPL-2.0-or-later
Source0: qemu.tar.xz
%include {inc}

%description
Tiny.

%prep
%autosetup -p1 -n qemu-10.2.2
"""


class Formats(Sandbox):
    def setUp(self) -> None:
        super().setUp()
        self.out = self.tmp / "out"
        (self.root / "holds.cc").chmod(0o755)

    def export(self, form: str, *args: str, code: int = 0) -> str:
        return self.fork("export", self.out, "--format", form, *args,
                         "--source", self.qemu, code=code)

    def tool(self, *cmd: str | Path, cwd: Path, code: int = 0,
             env: dict[str, str] | None = None, timeout: float = 60) -> str:
        """Runs a program of the environment, or of the host."""
        words = [str(c) for c in cmd]
        words = ["env", *[f"{k}={v}" for k, v in (env or {}).items()], *words]
        if not shutil.which(str(cmd[0])):
            there = Env(Repo(TOP))
            if os.geteuid() or not (there.root / "usr/bin" / str(cmd[0])
                                    ).exists():
                self.skipTest(f"{cmd[0]} is not installed")
            words = there.command(words, cwd)
        done = subprocess.run(words, cwd=cwd, env=clean_env(), text=True,
                              stdout=subprocess.PIPE, timeout=timeout,
                              stderr=subprocess.STDOUT, check=False)
        self.assertEqual(done.returncode, code, done.stdout)
        return done.stdout

    def wanted(self) -> str:
        """The tree that apply makes."""
        other = self.checkout("other")
        self.fork("apply", other)
        return self.tree(other)

    def made(self, path: Path, *aside: str) -> str:
        """The tree of the files in path, but for those aside."""
        for name in aside:
            shutil.rmtree(path / name)
        git = Git(path, {"GIT_DIR": str(self.tmp / "made"),
                         "GIT_WORK_TREE": str(path)})
        git("init", "-q")
        git("add", "-A", "-f")
        return git("write-tree")

    def plain(self, name: str) -> Path:
        """The tiny QEMU without git."""
        path = self.checkout(name)
        shutil.rmtree(path / ".git")
        return path

    def test_quilt(self) -> None:
        self.export("quilt")
        tree = self.plain("plain")
        shutil.copytree(self.out / "patches", tree / "patches")
        said = self.tool("quilt", "--quiltrc", "-", "push", "-a", "--fuzz=0",
                         cwd=tree, env={"QUILT_PATCHES": "patches"})
        self.assertNotIn("offset", said)
        self.assertEqual(self.made(tree, "patches", ".pc"), self.wanted())

    def test_a_second_export_replaces_the_first(self) -> None:
        self.export("quilt")
        before = snapshot(self.out)
        self.export("quilt")
        self.assertEqual(snapshot(self.out), before)
        self.export("rpm", "--topic", "shutdown")
        self.assertEqual(sorted(p.name for p in self.out.iterdir()), [
            ".fork-export", "0001-shutdown-kick.patch", "patches.inc"])
        put(self.out, {"mine": "mine\n"})
        self.assertIn("holds mine, which is not of an earlier export",
                      self.export("quilt", code=1))

    def test_overlay(self) -> None:
        self.export("overlay")
        tree = self.plain("plain")
        with tarfile.open(self.out / "qemu-10.2.2-fork.tar.xz") as tar:
            self.assertEqual(tar.getnames(), [
                "holds.cc", "include/system/holds.h", "iothread.c",
                "meson.build", "monitor/monitor.c"])
            tar.extractall(tree, filter="fully_trusted")
        self.assertEqual(self.made(tree), self.wanted())

    def test_rpm(self) -> None:
        self.export("rpm")
        top = self.folder("fork-rpm-")  # rpmbuild takes no blanks
        shutil.copytree(self.out, top, dirs_exist_ok=True)
        self.tarball(self.plain("plain"))
        shutil.move(self.tmp / "qemu.tar.xz", top)
        (top / "qemu.spec").write_text(SPEC.format(inc=top / "patches.inc"))
        self.tool("rpmbuild", "-bp", "--nodeps", "--define", f"_topdir {top}",
                  "--define", f"_sourcedir {top}", "--define",
                  f"_builddir {top}/BUILD", "qemu.spec", cwd=top)
        found, = [p for p in (top / "BUILD").glob("**/VERSION")]
        self.assertEqual(self.made(found.parent), self.wanted())

    def source(self) -> Path:
        """A Debian source package of the tiny QEMU, with a patch."""
        tree = self.plain("qemu-10.2.2+ds")
        self.tarball(tree, "qemu_10.2.2+ds.orig.tar.xz")
        put(tree, {"debian/control": CONTROL, "debian/control-in": CONTROL,
                   "debian/changelog": CHANGELOG, "debian/rules": "x:\n",
                   "debian/source/format": "3.0 (quilt)\n",
                   "debian/patches/series": "theirs.patch\n",
                   "debian/patches/theirs.patch": THEIRS % ""})
        return tree

    def test_debian(self) -> None:
        self.export("debian")
        tree = self.source()
        shutil.copytree(self.out / "debian", tree / "debian",
                        dirs_exist_ok=True)
        package.add(tree / "debian", "1:10.2.2+ds-1",
                    (self.out / "changelog.fork").read_text())
        said = self.tool("dpkg-source", "--before-build", ".", cwd=tree)
        self.assertNotIn("fuzz", said)
        self.assertNotIn("offset", said)
        series = (tree / "debian/patches/series").read_text()
        self.assertEqual(series.split(), [
            "theirs.patch", "fork/build/cxx.patch",
            "fork/holders/registry.patch", "fork/holders/users.patch",
            "fork/shutdown/kick.patch"])
        self.tool("dpkg-source", "-b", ".", cwd=tree)
        self.assertTrue((self.tmp / "qemu_10.2.2+ds-1+fork1.dsc").exists())
        self.assertTrue(os.access(tree / "holds.cc", os.X_OK))
        self.edit(tree / "iothread.c", "return 21;", "return 12;")
        self.assertEqual(self.made(tree, "debian", ".pc"), self.wanted())

    def test_trimmed_packaging(self) -> None:
        """What is left of Debian's packaging, and that a change of it is
        noticed."""
        debian = self.tmp / "debian"
        control = CONTROL + "\n" + CONTROL.split("\n\n")[1].replace(
            "qemu", "qemu-system-x86") + (
            "Depends: qemu-system-data (>> ${source:Upstream-Version}~),\n"
            " seabios (>> 1.17.0-1~),\n")
        put(debian, {
            "control": control, "control-in": control,
            "control.mk": "system-packages := arm x86\n# system-kvm - list\n",
            "rules": "a = $(if $(filter qemu-system,${P}),y)\n"
            "\t${NINJA} -C b/qemu\n\t    ${NINJA} -C b/qemu install\n"
            "qemu-builds += $(if x,microvm)\n"
            "\tdh_shlibdeps -a -Nqemu-user\n",
            "qemu-system-common.install": "a\nhw-s390x-virtio-gpu-ccw.so\n"})
        package.trim(debian)
        self.assertEqual((debian / "control").read_text(),
                         (debian / "control-in").read_text())
        text = (debian / "control").read_text()
        self.assertNotIn("Package: qemu\n", text)
        self.assertIn("Package: qemu-system-x86\n", text)
        self.assertIn("qemu-system-data (>> 1:10.0),\n seabios,\n", text)
        self.assertIn("system-packages := x86\n",
                      (debian / "control.mk").read_text())
        self.assertEqual((debian / "rules").read_text(), (
            "a = $(if $(filter qemu-system-common,${P}),y)\n"
            "\t${NINJA} -C b/qemu $$(python3 debian/fork-installed.py "
            "b/qemu)\n\t    ${MESON} install -C b/qemu --no-rebuild\n"
            "\tdh_shlibdeps -a\n"))
        with self.assertRaisesRegex(Fail, "has no .* any more"):
            package.trim(debian)

    def test_dep3(self) -> None:
        self.export("debian")
        folder = self.out / "debian/patches/fork"
        users = (folder / "holders/users.patch").read_text()
        head, _, rest = users.partition("\n---\n")
        self.assertEqual(head.split("\n"), [
            "Description: iothread: record users", " Two places.",
            "Author: QEMU fork series <series@qemu-fork.invalid>",
            "Origin: vendor",
            "Applied-Upstream: 11.1.0, commit:0123456789",
            "X-Probe: iothread.c: upstream_hold"])
        self.assertIn("\ndiff --git a/iothread.c b/iothread.c\n", rest)
        kick = (folder / "shutdown/kick.patch").read_text()
        self.assertIn("\nForwarded: no\nX-Partly-Upstream: 11.0.0\n"
                      "X-Beyond-Upstream: the waiter is kicked\n", kick)
        self.assertIn("\nForwarded: not-needed\n",
                      (folder / "build/cxx.patch").read_text())

    def test_trailers_survive_mails(self) -> None:
        self.export("mbox")
        self.git(self.qemu, "am", "-q", *map(
            str, sorted(self.out.glob("*.patch"))))
        body = self.git(self.qemu, "log", "-1", "--format=%B", "HEAD~1")
        self.assertEqual(trailers(body), [
            ("Applied-Upstream", "11.1.0, commit:0123456789"),
            ("Probe", "iothread.c: upstream_hold")])

    @unittest.skipUnless(os.environ.get("FORK_TEST_REAL"),
                         "FORK_TEST_REAL=1 tries the real series: minutes")
    def test_real_series(self) -> None:
        """quilt, rpmbuild and an unpacked overlay on QEMU itself."""
        base = Base(Repo(TOP))
        git, start = base.git(), base.commit()
        wanted = git.tree(tip(commits(
            git, start, Series.load(Repo(TOP))), start))
        for form in ("quilt", "rpm", "overlay"):
            with self.subTest(form):
                top = self.folder("fork-real-")
                out, tree = top / form, top / f"q-{form}"
                subprocess.run([TOP / "fork", "export", out, "--format",
                                form], check=True, timeout=900)
                tree = tree / "qemu-10.2.2"
                tree.mkdir(parents=True)
                at = git.with_env({"GIT_INDEX_FILE": str(top / "index")})
                at("read-tree", start)
                at("checkout-index", "-a", f"--prefix={tree}/")
                if form == "quilt":
                    shutil.copytree(out / "patches", tree / "patches")
                    self.tool("quilt", "--quiltrc", "-", "push", "-a", "-q",
                              "--fuzz=0", cwd=tree, timeout=900,
                              env={"QUILT_PATCHES": "patches"})
                    found, aside = tree, ("patches", ".pc")
                elif form == "rpm":
                    self.tool("tar", "-cf", out / "qemu.tar.xz",
                              "qemu-10.2.2", cwd=tree.parent, timeout=300)
                    (out / "qemu.spec").write_text(
                        SPEC.format(inc=out / "patches.inc"))
                    self.tool("rpmbuild", "-bp", "--nodeps", "--define",
                              f"_topdir {out}", "--define",
                              f"_sourcedir {out}", "--define",
                              f"_builddir {out}/BUILD", "qemu.spec",
                              cwd=out, timeout=900)
                    found = next((out / "BUILD").glob("**/VERSION")).parent
                    aside = ()
                else:
                    self.tool("tar", "-xf",
                              out / "qemu-10.2.2-fork.tar.xz", cwd=tree)
                    found, aside = tree, ()
                self.assertEqual(self.made(found, *aside), wanted)
                shutil.rmtree(self.tmp / "made")


if __name__ == "__main__":
    unittest.main()
