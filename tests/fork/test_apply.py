# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork apply: all of the series or nothing, the same every time."""
import unittest

from sandbox import CHANGES, NEW, SERIES, Sandbox, put, snapshot


class Apply(Sandbox):
    def subjects(self, path) -> list[str]:
        return self.git(path, "log", "--reverse", "--format=%s"
                        ).splitlines()[1:]

    def test_all_changes_in_order(self) -> None:
        self.fork("apply", self.qemu)
        self.assertEqual(self.subjects(self.qemu), [
            message.split("\n")[0] for _, message, _ in CHANGES])
        for name, text in NEW.items():
            self.assertEqual((self.qemu / name).read_text(), text)
        self.assertIn("return hold(17);",
                      (self.qemu / "iothread.c").read_text())
        self.assertEqual(self.git(self.qemu, "status", "--porcelain"), "")
        self.git(self.qemu, "fsck", "--strict")

    def test_same_ids_everywhere(self) -> None:
        other = self.tmp / "other"
        self.git(self.tmp, "clone", "-q", str(self.qemu), str(other))
        self.fork("apply", self.qemu)
        self.fork("apply", other, env={"TZ": "Asia/Tokyo",
                                       "GIT_AUTHOR_NAME": "Somebody"})
        self.assertEqual(self.git(self.qemu, "rev-parse", "HEAD"),
                         self.git(other, "rev-parse", "HEAD"))

    def test_executable_stays_executable(self) -> None:
        (self.root / "holds.cc").chmod(0o755)
        self.fork("apply", self.qemu)
        self.assertIn("100755", self.git(self.qemu, "ls-files", "-s",
                                         "holds.cc"))

    def test_second_time(self) -> None:
        self.fork("apply", self.qemu)
        before = snapshot(self.qemu)
        said = self.fork("apply", self.qemu, code=1)
        self.assertIn("applied already", said)
        self.assertEqual(snapshot(self.qemu), before)

    def test_goes_on_where_some_are_there(self) -> None:
        other = self.checkout("other")
        self.fork("apply", other)
        self.fork("apply", self.qemu, "--topic", "holders")
        said = self.fork("apply", self.qemu)
        self.assertIn("holders/users: is there already", said)
        self.assertIn("shutdown/kick: ok", said)
        self.assertIn("1 changes applied to", said)
        self.assertIn("3 were there already", said)
        self.assertEqual(self.tree(self.qemu), self.tree(other))

    def test_knows_what_a_later_change_edits(self) -> None:
        scratch = self.checkout("again")
        self.fork("apply", scratch)
        self.edit(scratch / "iothread.c", "hold(17)", "hold(18)")
        hunks = self.git(scratch, "diff", "--full-index", "-U1")
        put(self.root, {
            "patches/holders/again.patch": "iothread: hold more\n\nOne.\n\n"
            f"Forwarded: no\n---\n{hunks}",
            "patches/series": SERIES.replace(
                "change holders/users\n",
                "change holders/users\nchange holders/again\n")})
        self.fork("apply", self.qemu, "--topic", "holders")
        said = self.fork("apply", self.qemu)
        self.assertIn("holders/users: is there already", said)
        self.assertIn("holders/again: is there already", said)
        self.assertIn("4 were there already", said)

    def test_knows_the_form_that_qemu_has(self) -> None:
        self.edit(self.qemu / "iothread.c", "return 17;",
                  "return upstream_hold(17);")
        self.commit(self.qemu, "-m", "upstream")
        said = self.fork("apply", self.qemu)
        self.assertIn("holders/users: is there already\n    in QEMU's own "
                      "form, upstream since 11.1.0 (0123456789)\n", said)
        self.assertIn("3 changes applied to", said)
        self.assertIn("return 3;", (self.qemu / "iothread.c").read_text())

    def test_tells_that_qemu_may_have_it(self) -> None:
        put(self.qemu, {"VERSION": "11.0.1\n"})
        self.edit(self.qemu / "monitor/monitor.c", "return 1;", "return 2;")
        self.commit(self.qemu, "-m", "a later QEMU")
        said = self.fork("apply", self.qemu, code=1)
        self.assertIn("shutdown/kick: does not fit\n    monitor/monitor.c "
                      "hunk 1 (line 2)\n    perhaps this tree has QEMU's "
                      "own, weaker form, upstream since 11.0.0\n", said)
        self.assertIn("1 of 4 changes do not fit and 0 are there", said)

    def test_a_file_that_is_there_is_another(self) -> None:
        put(self.qemu, NEW | {"holds.cc": "theirs\n"})
        self.commit(self.qemu, "-m", "theirs")
        self.assertIn("holders/registry: does not fit\n",
                      self.fork("apply", self.qemu, code=1))

    def test_dirty(self) -> None:
        self.edit(self.qemu / "meson.build", "srcs", "sources")
        before = snapshot(self.qemu)
        said = self.fork("apply", self.qemu, code=1)
        self.assertIn("uncommitted changes (meson.build)", said)
        self.assertEqual(snapshot(self.qemu), before)

    def test_in_the_middle_of_a_merge(self) -> None:
        head = self.git(self.qemu, "rev-parse", "HEAD")
        (self.qemu / ".git" / "MERGE_HEAD").write_text(head)
        self.assertIn("in the middle of a merge",
                      self.fork("apply", self.qemu, code=1))

    def test_not_a_checkout(self) -> None:
        (self.tmp / "empty").mkdir()
        for place in ("empty", "absent"):
            self.assertIn("not a git checkout", self.fork(
                "apply", self.tmp / place, code=1,
                env={"GIT_CEILING_DIRECTORIES": str(self.tmp)}))

    def test_detached(self) -> None:
        self.git(self.qemu, "checkout", "-q", "--detach")
        self.fork("apply", self.qemu)
        self.assertEqual(len(self.subjects(self.qemu)), len(CHANGES))

    def test_names_what_does_not_fit(self) -> None:
        self.edit(self.qemu / "iothread.c", "return 17;", "return 71;")
        self.commit(self.qemu, "-m", "theirs")
        before = snapshot(self.qemu)
        said = self.fork("apply", self.qemu, code=1)
        self.assertEqual(snapshot(self.qemu), before)
        self.assertIn("build/cxx: ok", said)
        self.assertIn("holders/users: does not fit", said)
        self.assertIn("iothread.c hunk 2 (line 82)", said)
        self.assertNotIn("hunk 1", said)
        self.assertIn("shutdown/kick: would fit", said)

    def test_file_is_gone(self) -> None:
        self.git(self.qemu, "rm", "-q", "monitor/monitor.c")
        self.git(self.qemu, "commit", "-q", "-m", "gone")
        said = self.fork("apply", self.qemu, code=1)
        self.assertIn("monitor/monitor.c does not exist there", said)

    def test_new_file_is_there(self) -> None:
        put(self.qemu, {"holds.cc": "theirs\n"})
        self.commit(self.qemu, "-m", "theirs")
        before = snapshot(self.qemu)
        said = self.fork("apply", self.qemu, code=1)
        self.assertIn("holds.cc exists", said)
        self.assertEqual(snapshot(self.qemu), before)

    def test_untracked_file_in_the_way(self) -> None:
        put(self.qemu, {"holds.cc": "precious\n"})
        head = self.git(self.qemu, "rev-parse", "HEAD")
        self.assertIn("holds.cc", self.fork("apply", self.qemu, code=1))
        self.assertEqual((self.qemu / "holds.cc").read_text(), "precious\n")
        self.assertEqual(self.git(self.qemu, "rev-parse", "HEAD"), head)
        self.assertFalse((self.qemu / "include").exists())

    def test_tells_offsets(self) -> None:
        text = (self.qemu / "iothread.c").read_text()
        (self.qemu / "iothread.c").write_text("/* moved */\n" * 3 + text)
        self.commit(self.qemu, "-m", "moved")
        self.assertIn("iothread.c hunk 2 fits with an offset of 3 lines",
                      self.fork("apply", self.qemu))

    def test_merges_three_ways_with_the_base_at_hand(self) -> None:
        """Half of a change is in their QEMU already."""
        theirs = self.checkout("theirs")
        self.edit(theirs / "iothread.c", "return 17;", "return hold(17);")
        self.commit(theirs, "-m", "a part of it")
        self.assertIn("holders/users: does not fit",
                      self.fork("apply", theirs, code=1))
        self.builder()
        self.assertIn("fits by a three-way merge",
                      self.fork("apply", theirs))
        self.assertIn("return hold(3);", (theirs / "iothread.c").read_text())
        self.git(theirs, "fsck", "--strict")

    def test_a_conflict_does_not_fit(self) -> None:
        theirs = self.checkout("theirs")
        self.edit(theirs / "iothread.c", "return 17;", "return 71;")
        self.commit(theirs, "-m", "theirs")
        self.builder()
        before = snapshot(theirs)
        self.assertIn("holders/users: does not fit",
                      self.fork("apply", theirs, code=1))
        self.assertEqual(snapshot(theirs), before)

    def test_signoff(self) -> None:
        self.fork("apply", self.qemu, "--signoff")
        for sha in self.git(self.qemu, "rev-list", "HEAD~4..").split():
            body = self.git(self.qemu, "log", "-1", "--format=%B", sha)
            self.assertTrue(body.rstrip().endswith(
                "\nSigned-off-by: A U Thor <author@example.com>"), body)
            self.assertNotIn("\n\nSigned-off-by", body)

    def test_signoff_without_a_name(self) -> None:
        self.git(self.qemu, "config", "user.email", "")
        before = snapshot(self.qemu)
        said = self.fork("apply", self.qemu, "--signoff", code=1)
        self.assertIn("user.email", said)
        self.assertEqual(snapshot(self.qemu), before)

    def test_no_signoff_unasked(self) -> None:
        self.fork("apply", self.qemu)
        self.assertNotIn("Signed-off-by", self.git(self.qemu, "log"))

    def test_topic_takes_what_it_needs(self) -> None:
        self.fork("apply", self.qemu, "--topic", "holders")
        self.assertEqual(self.subjects(self.qemu), [
            "build: take C++", "iothread: add a registry",
            "iothread: record users"])

    def test_topic_alone(self) -> None:
        self.fork("apply", self.qemu, "--topic", "shutdown")
        self.assertEqual(self.subjects(self.qemu),
                         ["monitor: kick the waiter"])

    def test_no_such_topic(self) -> None:
        self.assertIn("the topics are: build, holders, shutdown",
                      self.fork("apply", self.qemu, "--topic", "x", code=1))

    def test_leaves_nothing_in_build(self) -> None:
        self.fork("apply", self.qemu)
        self.assertFalse((self.root / "build").exists())


if __name__ == "__main__":
    unittest.main()
