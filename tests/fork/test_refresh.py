# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork refresh: commits of the work tree, back into patches/ and files."""
import unittest

from sandbox import Sandbox, Series, put, snapshot


class Refresh(Sandbox):
    def setUp(self) -> None:
        super().setUp()
        self.builder()
        self.work = self.repo.work

    def changed(self) -> list[str]:
        """What git sees as changed in the repository."""
        return [line[3:] for line in self.git(
            self.root, "status", "--porcelain", "-uall").splitlines()]

    def amend(self, subject: str, edit) -> None:
        """Edits the commit with this subject, by a fixup."""
        sha = self.git(self.work, "log", "--format=%H", "--fixed-strings",
                       f"--grep={subject}").split()[0]
        edit()
        self.commit(self.work, "--fixup", sha)

    def names(self) -> list[str]:
        return [change.name for change in Series.load(self.repo).changes]

    def tree_is_the_series(self) -> None:
        other = self.checkout("proof")
        self.fork("apply", other)
        self.assertEqual(self.tree(other), self.tree(self.work))

    def test_nothing_to_do(self) -> None:
        self.assertIn("up to date", self.fork("refresh"))
        self.assertEqual(self.changed(), [])

    def test_fixup_of_a_hunk(self) -> None:
        self.amend("monitor: kick", lambda: self.edit(
            self.work / "monitor/monitor.c", "kick()", "wake()"))
        self.assertIn("changed shutdown/kick", self.fork("refresh"))
        self.assertEqual(self.changed(), ["patches/shutdown/kick.patch"])
        self.tree_is_the_series()

    def test_fixup_of_a_new_file(self) -> None:
        self.amend("iothread: add", lambda: self.edit(
            self.work / "holds.cc", "return n;", "return n + 1;"))
        self.fork("refresh")
        self.assertEqual(self.changed(), ["holds.cc"])
        self.assertIn("n + 1", (self.root / "holds.cc").read_text())

    def test_mode_of_a_new_file(self) -> None:
        self.amend("iothread: add",
                   lambda: (self.work / "holds.cc").chmod(0o755))
        self.fork("refresh")
        self.assertTrue((self.root / "holds.cc").stat().st_mode & 0o100)

    def test_second_refresh_does_nothing(self) -> None:
        self.amend("monitor: kick", lambda: self.edit(
            self.work / "monitor/monitor.c", "kick()", "wake()"))
        self.fork("refresh")
        before = snapshot(self.root / "patches")
        self.assertIn("up to date", self.fork("refresh"))
        self.assertEqual(snapshot(self.root / "patches"), before)

    def test_fixup_that_conflicts(self) -> None:
        self.edit(self.work / "iothread.c", "hold(17)", "hold(18)")
        self.commit(self.work, "-m", "fixup! build: take C++")
        head = self.git(self.work, "rev-parse", "HEAD")
        self.assertIn("does not fit the commit", self.fork("refresh",
                                                           code=1))
        self.assertEqual(self.git(self.work, "rev-parse", "HEAD"), head)
        self.assertEqual(self.git(self.work, "status", "--porcelain",
                                  "-uno"), "")
        self.assertEqual(self.changed(), [])

    def test_new_subject_keeps_the_name(self) -> None:
        self.git(self.work, "commit", "-q", "--amend", "-m",
                 "monitor: wake the waiter\n\nIt sleeps else.")
        self.fork("refresh")
        self.assertEqual(self.changed(), ["patches/shutdown/kick.patch"])

    def test_new_commit(self) -> None:
        put(self.work, {"hw/new.c": "/* new */\n"})
        self.edit(self.work / "meson.build", "srcs", "sources")
        self.commit(self.work, "-m", "hw: add a Thing, twice\n\nSo.")
        self.fork("refresh")
        self.assertEqual(self.names()[-1], "shutdown/add-a-thing-twice")
        self.assertEqual(Series.load(self.repo).changes[-1].paths,
                         ["hw/new.c"])
        self.assertEqual((self.root / "hw/new.c").read_text(), "/* new */\n")
        self.assertIn("# two hunks in one file",
                      (self.root / "patches/series").read_text())
        self.tree_is_the_series()

    def test_new_commit_of_a_named_topic(self) -> None:
        self.edit(self.work / "meson.build", "srcs", "sources")
        self.commit(self.work, "-m", "build: rename\n\nSo.")
        self.fork("refresh", "--topic", "other")
        self.assertEqual(self.names()[-1], "other/rename")
        self.assertIn("topic other\n",
                      (self.root / "patches/series").read_text())
        self.tree_is_the_series()

    def test_removed_commit(self) -> None:
        base = self.git(self.work, "rev-parse", "base").strip()
        first = self.git(self.work, "rev-list", "--reverse",
                         f"{base}..HEAD").split()
        self.git(self.work, "rebase", "-q", "--onto", first[0], first[1])
        self.assertIn("removed holders/registry", self.fork("refresh"))
        self.assertEqual(self.names(), ["build/cxx", "holders/users",
                                        "shutdown/kick"])
        for gone in ("holds.cc", "include", "patches/holders/registry.patch"):
            self.assertFalse((self.root / gone).exists(), gone)
        self.tree_is_the_series()

    def test_all_of_a_topic_removed(self) -> None:
        self.git(self.work, "reset", "-q", "--hard", "HEAD~1")
        self.fork("refresh")
        self.assertEqual(self.names()[-1], "holders/users")
        self.assertFalse((self.root / "patches/shutdown").exists())
        self.tree_is_the_series()

    def test_new_order(self) -> None:
        base = self.git(self.work, "rev-parse", "base").strip()
        commits = self.git(self.work, "rev-list", "--reverse",
                           f"{base}..HEAD").split()
        self.git(self.work, "reset", "-q", "--hard", base)
        self.git(self.work, "cherry-pick", commits[3], *commits[:3])
        self.fork("refresh")
        self.assertEqual(self.names()[0], "shutdown/kick")
        self.tree_is_the_series()

    def test_later_edit_of_a_new_file(self) -> None:
        self.edit(self.work / "holds.cc", "return n;", "return n + 1;")
        self.commit(self.work, "-m", "iothread: edit it\n\nLater.")
        said = self.fork("refresh", code=1)
        self.assertIn('"iothread: edit it" edits holds.cc, which "iothread: '
                      'add a registry" adds', said)
        self.assertEqual(self.changed(), [])

    def test_uncommitted(self) -> None:
        self.edit(self.work / "meson.build", "srcs", "sources")
        self.assertIn("uncommitted changes (meson.build)",
                      self.fork("refresh", code=1))

    def test_patches_changed_too(self) -> None:
        self.edit(self.root / "patches/shutdown/kick.patch", "It sleeps",
                  "It slept")
        self.git(self.work, "commit", "-q", "--amend", "-m",
                 "monitor: kick the waiter\n\nMine.")
        self.assertIn("--force", self.fork("refresh", code=1))
        self.fork("refresh", "--force")
        self.assertIn("Mine.", (self.root / "patches/shutdown/kick.patch"
                                ).read_text())


class Follow(Sandbox):
    """The work tree follows the repository, and keeps what is a person's."""

    def setUp(self) -> None:
        super().setUp()
        self.made = self.builder()
        self.work = self.repo.work

    def test_repository_side(self) -> None:
        self.edit(self.root / "holds.cc", "return n;", "return -n;")
        other = (self.work / "iothread.c").stat().st_mtime_ns
        self.made.work.ready()
        self.assertIn("-n", (self.work / "holds.cc").read_text())
        self.assertEqual((self.work / "iothread.c").stat().st_mtime_ns,
                         other)

    def test_edits_there_stay(self) -> None:
        self.edit(self.work / "meson.build", "srcs", "sources")
        self.made.work.ready()
        self.assertIn("sources", (self.work / "meson.build").read_text())

    def test_both_sides(self) -> None:
        self.edit(self.work / "meson.build", "srcs", "sources")
        self.edit(self.root / "holds.cc", "return n;", "return -n;")
        with self.assertRaisesRegex(Exception, "refresh --force"):
            self.made.work.ready()
        self.assertIn("sources", (self.work / "meson.build").read_text())

    def test_not_recorded(self) -> None:
        """Killed between the work tree and its record."""
        (self.repo.build / "work.json").unlink()
        self.made.work.ready()
        self.edit(self.work / "meson.build", "srcs", "sources")
        (self.repo.build / "work.json").unlink()
        with self.assertRaisesRegex(Exception, "move it away"):
            self.made.work.ready()

    def test_a_new_base(self) -> None:
        """The way of docs/rebase.md."""
        put(self.qemu, {"VERSION": "11.0.0\n"})
        self.edit(self.qemu / "meson.build", "['iothread.c']",
                  "['iothread.c', 'more.c']")
        self.edit(self.qemu / "iothread.c", "return 17;", "return 71;")
        self.commit(self.qemu, "-m", "QEMU 11")
        self.edit(self.root / "base.toml", "10.2.2", "11.0.0")
        with self.assertRaisesRegex(Exception, "rebase --onto base"):
            self.builder()
        old = self.git(self.work, "rev-parse", "base-10.2.2").strip()
        self.git(self.work, "rebase", "--onto", "base", old, check=False)
        self.edit(self.work / "iothread.c", "<<<<<<< HEAD\n    return 71;\n"
                  "=======\n    return hold(17);\n", "    return hold(71);\n")
        text = (self.work / "iothread.c").read_text()
        (self.work / "iothread.c").write_text("".join(
            line for line in text.splitlines(True) if ">>>>" not in line))
        self.git(self.work, "add", "-A")
        self.git(self.work, "-c", "core.editor=true", "rebase",
                 "--continue")
        self.fork("refresh")
        self.assertIn("hold(71)", (
            self.root / "patches/holders/users.patch").read_text())
        self.fork("apply", self.qemu)
        self.assertEqual(self.tree(self.qemu), self.tree(self.work))


if __name__ == "__main__":
    unittest.main()
