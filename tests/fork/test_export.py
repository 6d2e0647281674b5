# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork export: mails that git am takes, the same bytes every time."""
import shlex
import unittest

from sandbox import CHANGES, Sandbox, put, snapshot


class Export(Sandbox):
    def setUp(self) -> None:
        super().setUp()
        self.mails = self.tmp / "the mails"

    def export(self, *args: str, code: int = 0) -> str:
        return self.fork("export", self.mails, *args, "--source", self.qemu,
                         code=code)

    def am(self) -> None:
        self.git(self.qemu, "am", "-q", "--keep-non-patch",
                 *map(str, sorted(self.mails.glob("*.patch"))))

    def test_am_gives_the_tree_of_apply(self) -> None:
        other = self.tmp / "other"
        self.git(self.tmp, "clone", "-q", str(self.qemu), str(other))
        (self.root / "holds.cc").chmod(0o755)
        self.export()
        self.am()
        self.fork("apply", other)
        self.assertEqual(self.tree(self.qemu), self.tree(other))
        self.assertEqual(
            self.git(self.qemu, "log", "--format=%B", "-4"),
            self.git(other, "log", "--format=%B", "-4"))

    def test_the_hint_is_for_a_shell(self) -> None:
        self.assertIn(f"git am {shlex.quote(str(self.mails))}/*.patch",
                      self.export())

    def test_names_and_cover(self) -> None:
        self.export()
        names = [file.name for file in sorted(self.mails.iterdir())]
        self.assertEqual(names, [
            "0000-cover-letter.txt", "0001-build-take-C.patch",
            "0002-iothread-add-a-registry.patch",
            "0003-iothread-record-users.patch",
            "0004-monitor-kick-the-waiter.patch"])
        cover = (self.mails / names[0]).read_text()
        self.assertIn("Subject: [PATCH 0/4] Fork series for QEMU 10.2.2",
                      cover)
        self.assertIn("holders (after build):", cover)
        for _, message, _ in CHANGES:
            self.assertIn(message.split("\n")[0], cover)
        self.assertIn("5 files changed", cover)

    def test_cover_says_what_a_topic_is_for(self) -> None:
        put(self.root, {"patches/holders/cover.txt": "Who holds it.\n"})
        self.export()
        cover = (self.mails / "0000-cover-letter.txt").read_text()
        self.assertIn("holders (after build):\n\nWho holds it.\n\n  2  ",
                      cover)

    def test_same_bytes(self) -> None:
        self.export()
        before = snapshot(self.mails)
        self.fork("export", self.mails, env={"TZ": "Asia/Tokyo"})
        self.assertEqual(snapshot(self.mails), before)

    def test_an_earlier_export_is_replaced(self) -> None:
        self.export()
        self.fork("export", self.mails, "--topic", "shutdown")
        self.assertEqual([f.name for f in sorted(self.mails.iterdir())], [
            "0000-cover-letter.txt", "0001-monitor-kick-the-waiter.patch"])

    def test_other_files_are_left_alone(self) -> None:
        put(self.mails, {"0001-mine.patch": "mine\n"})
        before = snapshot(self.mails)
        self.assertIn("not of an earlier export", self.export(code=1))
        self.assertEqual(snapshot(self.mails), before)

    def test_work_tree_and_repository_stay(self) -> None:
        before = {k: v for k, v in snapshot(self.root).items()
                  if not k.startswith("build/")}
        self.export()
        self.assertEqual({k: v for k, v in snapshot(self.root).items()
                          if not k.startswith("build/")}, before)


if __name__ == "__main__":
    unittest.main()
