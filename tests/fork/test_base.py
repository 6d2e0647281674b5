# SPDX-License-Identifier: GPL-2.0-or-later
"""Where QEMU's source comes from, and what is refused."""
import contextlib
import hashlib
import http.server
import threading
import unittest
from pathlib import Path
from unittest import mock

from sandbox import Sandbox, put

from fork import base, build, common
from fork.base import Base
from fork.common import Fail


class FromSource(Sandbox):
    def refuse(self, source: Path, why: str) -> None:
        with self.assertRaisesRegex(Fail, why):
            Base(self.repo).ready(str(source))
        self.nothing_half_made()

    def nothing_half_made(self) -> None:
        self.assertFalse(self.repo.stock.exists())
        self.assertEqual([str(p) for p in self.repo.build.rglob("*")
                          if ".partial" in p.name], [])

    def test_checkout_and_tarball_are_the_same_base(self) -> None:
        one = Base(self.repo).ready(str(self.qemu))
        tarball = self.tarball(self.qemu)
        common.remove(self.repo.build)
        self.assertEqual(Base(self.repo).ready(str(tarball)), one)

    def test_uncommitted_edits_of_a_checkout_do_not_count(self) -> None:
        self.edit(self.qemu / "iothread.c", "return 3;", "return 4;")
        put(self.qemu, {"untracked.c": "x\n"})
        Base(self.repo).ready(str(self.qemu))
        self.assertFalse((self.repo.stock / "untracked.c").exists())
        self.assertIn("return 3;",
                      (self.repo.stock / "iothread.c").read_text())

    def test_fetched_subprojects_of_a_checkout_count(self) -> None:
        put(self.qemu, {"subprojects/libvfio-user/meson.build": "x\n",
                        "subprojects/libvfio-user/.git/HEAD": "x\n",
                        "subprojects/other/meson.build": "x\n"})
        Base(self.repo).ready(str(self.qemu))
        found = self.repo.stock / "subprojects"
        self.assertTrue((found / "libvfio-user" / "meson.build").exists())
        self.assertFalse((found / "libvfio-user" / ".git").exists())
        self.assertFalse((found / "other").exists())

    def test_later_runs_go_on_with_it(self) -> None:
        one = Base(self.repo).ready(str(self.qemu))
        self.assertEqual(Base(self.repo).ready(), one)
        self.assertEqual(Base(self.repo).ready(str(self.qemu)), one)
        with self.assertRaisesRegex(Fail, "remove build/stock"):
            Base(self.repo).ready(str(self.root))

    def test_wrong_version(self) -> None:
        put(self.qemu, {"VERSION": "9.0.0\n"})
        self.refuse(self.qemu, "is QEMU 9.0.0, the series is for 10.2.2")
        self.refuse(self.tarball(self.qemu), "is QEMU 9.0.0")

    def test_not_qemu(self) -> None:
        self.refuse(self.root, "has no VERSION file")

    def test_absent(self) -> None:
        self.refuse(self.tmp / "absent", "no such file or folder")

    def test_truncated_tarball(self) -> None:
        tarball = self.tarball(self.qemu)
        tarball.write_bytes(tarball.read_bytes()[:-200])
        self.refuse(tarball, "not a whole tarball")

    def test_not_a_tarball(self) -> None:
        put(self.tmp, {"text": "no tarball\n" * 99})
        self.refuse(self.tmp / "text", "not a whole tarball")

    def test_touched_file_differs(self) -> None:
        self.edit(self.qemu / "iothread.c", "return 9;", "return 8;")
        self.commit(self.qemu, "-m", "theirs")
        self.refuse(self.qemu, "series is for: iothread.c differs")

    def test_untouched_file_may_differ(self) -> None:
        put(self.qemu, {"README.rst": "theirs\n"})
        self.commit(self.qemu, "-m", "theirs")
        Base(self.repo).ready(str(self.qemu))

    def test_added_file_is_there(self) -> None:
        put(self.qemu, {"holds.cc": "theirs\n"})
        self.commit(self.qemu, "-m", "theirs")
        self.refuse(self.qemu, "it has holds.cc")

    def test_one_git_add_away_from_an_end(self) -> None:
        """Interrupted while importing: nothing stays; the next goes on."""
        with mock.patch.object(Base, "_commit", side_effect=KeyboardInterrupt
                               ), self.assertRaises(KeyboardInterrupt):
            Base(self.repo).ready(str(self.qemu))
        self.nothing_half_made()
        Base(self.repo).ready(str(self.qemu))
        self.assertTrue((self.repo.stock / "VERSION").exists())

    def test_killed_while_importing(self) -> None:
        """Nobody cleaned up: the next run clears what was left."""
        put(self.repo.build / "stock" / "src.partial", {"VERSION": "x"})
        put(self.repo.build / "tree.partial", {"junk": "x"})
        with common.lock(self.repo):
            Base(self.repo).ready(str(self.qemu))
        self.assertFalse((self.repo.stock / "junk").exists())
        self.assertEqual(list(self.repo.build.rglob("*.partial")), [])

    def test_firmware_that_the_source_lacks(self) -> None:
        put(self.qemu, {"pc-bios/meson.build":
                        "fds = [\n  'edk2-arm-code.fd',\n]\n"})
        self.commit(self.qemu, "-m", "firmware")
        self.builder()
        for tree in (self.repo.stock, self.repo.work):
            self.assertTrue(
                (tree / "pc-bios/edk2-arm-code.fd.bz2").exists())
            self.assertEqual(self.git(tree, "status", "--porcelain"), "")


class Server(http.server.SimpleHTTPRequestHandler):
    cut = 0

    def log_message(self, *args: object) -> None:
        pass

    def copyfile(self, source, outputfile) -> None:  # type: ignore
        data = source.read()
        outputfile.write(data[:len(data) - self.cut])


class FromUpstream(Sandbox):
    def setUp(self) -> None:
        super().setUp()
        self.web = self.tmp / "web"
        self.web.mkdir()
        path = str(self.web)

        class Here(Server):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=path)  # type: ignore

        self.handler = Here
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}/qemu.tar.xz"
        self.enterContext(mock.patch.dict("os.environ", {
            "no_proxy": "127.0.0.1"}))

    def pin(self, digest: str = "", more: str = "") -> None:
        put(self.root, {"base.toml": "[qemu]\nversion = \"10.2.2\"\n" + more +
                        f"[upstream]\nurl = \"{self.url}\"\n" + (
                            f"sha256 = \"{digest}\"\n" if digest else "")})

    def serve(self, **edits: str) -> str:
        tarball = self.tarball(self.qemu, "web/qemu.tar.xz")
        return hashlib.sha256(tarball.read_bytes()).hexdigest()

    def refuse(self, why: str) -> None:
        with self.assertRaisesRegex(Fail, why):
            Base(self.repo).ready()
        self.assertFalse(self.repo.stock.exists())

    def test_with_a_checksum(self) -> None:
        self.pin(self.serve())
        Base(self.repo).ready()
        self.assertTrue((self.repo.stock / "VERSION").exists())

    def test_with_a_checksum_the_content_is_known(self) -> None:
        """The sum is right: patches are not asked."""
        put(self.qemu, {"iothread.c": "other\n"})
        self.pin(self.serve())
        Base(self.repo).ready()

    def test_wrong_checksum(self) -> None:
        self.serve()
        self.pin("0" * 64)
        self.refuse("wrong checksum")
        self.assertEqual(list((self.repo.build / "cache").iterdir()), [])

    def test_without_a_checksum_patches_tell(self) -> None:
        self.serve()
        self.pin()
        Base(self.repo).ready()
        common.remove(self.repo.build)
        put(self.qemu, {"iothread.c": "other\n"})
        self.serve()
        self.refuse("iothread.c differs")

    def test_not_found(self) -> None:
        self.pin()
        self.refuse("404.*--source")

    def test_no_network(self) -> None:
        self.url = "http://127.0.0.1:1/qemu.tar.xz"
        self.pin()
        self.refuse("check the network, or give the source with --source")

    def test_the_download_ends_early(self) -> None:
        self.serve()
        self.handler.cut = 100
        self.pin()
        self.refuse("--source")
        self.assertEqual(list((self.repo.build / "cache").iterdir()), [])
        self.handler.cut = 0
        Base(self.repo).ready()

    def test_after_debian(self) -> None:
        """apt does not offer the version any more."""
        self.serve()
        self.pin(more="[debian]\npackage = \"qemu\"\nversion = \"1\"\n"
                 "suite = \"sid\"\ncomponent = \"main\"\n"
                 "tarball = \"q.tar.xz\"\nsha256 = \"0\"\n")
        with mock.patch.object(base.shutil, "which", return_value=None):
            Base(self.repo).ready()
        self.assertTrue((self.repo.stock / "VERSION").exists())

    def test_wrong_checksum_of_what_debian_gave(self) -> None:
        """It stops at once: upstream is not asked."""
        self.serve()
        self.pin(more="[debian]\npackage = \"qemu\"\nversion = \"1\"\n"
                 "suite = \"sid\"\ncomponent = \"main\"\n"
                 "tarball = \"q.tar.xz\"\nsha256 = \"0\"\n")
        put(self.repo.build / "cache", {"q.tar.xz": "tampered\n"})
        self.refuse("wrong checksum")


class Room(Sandbox):
    def test_no_space(self) -> None:
        with mock.patch.object(common.shutil, "disk_usage",
                               return_value=mock.Mock(free=2**30)), \
                self.assertRaisesRegex(Fail, "needs about 8 GiB and .* has "
                                       "1.0 GiB free; make room"):
            build.Builder(self.repo).build(build.Tree("patched"))
        self.assertFalse(self.repo.stock.exists())

    def test_no_root(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch("os.geteuid", return_value=1000))
            stack.enter_context(mock.patch.object(
                build.Env, "_native", side_effect=AssertionError))
            stack.enter_context(mock.patch(
                "fork.env.choose", return_value=(False, "as it is old")))
            stack.enter_context(self.assertRaisesRegex(
                Fail, "needs root.*--native"))
            build.Builder(self.repo).environment()
        self.assertFalse((self.repo.build / "root").exists())


if __name__ == "__main__":
    unittest.main()
