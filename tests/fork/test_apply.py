# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork apply: all of the series or nothing, the same every time."""
import unittest
from pathlib import Path

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

    def test_asks_to_look_where_there_is_no_probe(self) -> None:
        self.edit(self.root / "patches/holders/users.patch",
                  "Probe: iothread.c: upstream_hold\n", "")
        asked = "holders/users: ok\n    fits by a three-way merge: " \
            "iothread.c\n    look whether this tree has QEMU's own form, " \
            "upstream since 11.1.0"
        other = self.checkout("other")
        self.assertNotIn("look whether", self.fork("apply", other))
        self.edit(self.qemu / "iothread.c", "return 9;", "return 99;")
        self.commit(self.qemu, "-m", "theirs")
        self.assertIn(asked, self.fork("apply", self.qemu))

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

    def test_verified_merges(self) -> None:
        self.git(self.qemu, "config", "merge.verifySignatures", "true")
        self.assertIn("changes applied", self.fork("apply", self.qemu))

    def test_ignored_file_in_the_way(self) -> None:
        put(self.qemu, {".git/info/exclude": "holds.cc\n"})
        self.test_untracked_file_in_the_way()

    def test_untracked_file_in_the_way(self) -> None:
        put(self.qemu, {"holds.cc": "precious\n"})
        head = self.git(self.qemu, "rev-parse", "HEAD")
        self.assertIn("holds.cc", self.fork("apply", self.qemu, code=1))
        self.assertEqual((self.qemu / "holds.cc").read_text(), "precious\n")
        self.assertEqual(self.git(self.qemu, "rev-parse", "HEAD"), head)
        self.assertFalse((self.qemu / "include").exists())

    def test_tells_merges(self) -> None:
        text = (self.qemu / "iothread.c").read_text()
        (self.qemu / "iothread.c").write_text("/* moved */\n" * 3 + text)
        self.commit(self.qemu, "-m", "moved")
        self.assertIn("fits by a three-way merge: iothread.c",
                      self.fork("apply", self.qemu))

    def half(self) -> Path:
        """A QEMU with half of a change, and without the original file."""
        theirs = self.checkout("theirs")
        self.edit(theirs / "iothread.c", "return 17;", "return hold(17);")
        self.git(theirs, "commit", "-qa", "--amend", "-m", "a part of it")
        self.git(theirs, "reflog", "expire", "--expire=all", "--all")
        self.git(theirs, "gc", "-q", "--prune=now")
        return theirs

    def test_merges_with_the_base_at_hand(self) -> None:
        theirs = self.half()
        said = self.fork("apply", theirs, code=1)
        self.assertIn("only files that are QEMU's own can be changed: QEMU "
                      "10.2.2 cannot be fetched", said)
        self.assertIn("holders/users: does not fit\n    iothread.c is "
                      "another, and the original, for a merge, is not at "
                      "hand", said)
        self.builder()
        self.assertIn("fits by a three-way merge",
                      self.fork("apply", theirs))
        self.assertIn("return hold(3);", (theirs / "iothread.c").read_text())
        self.git(theirs, "fsck", "--strict")

    def test_fetches_the_base_for_a_merge(self) -> None:
        url = self.tarball(self.qemu).as_uri()
        put(self.root, {"base.toml": "[qemu]\nversion = \"10.2.2\"\n"
                        f"[upstream]\nurl = \"{url}\"\n"})
        self.assertIn("fits by a three-way merge: iothread.c",
                      self.fork("apply", self.half()))

    def series(self, *changes: tuple[str, str, str, str]) -> None:
        """A series of its own: topics, each with a change of one file."""
        scratch = self.tmp / "series"
        self.git(self.tmp, "clone", "-q", str(self.qemu), str(scratch))
        lines = ""
        for topic, path, old, new in changes:
            self.edit(scratch / path, old, new)
            hunks = self.git(scratch, "diff", "--full-index", "-U1")
            self.git(scratch, "commit", "-qam", topic)
            name = topic.split()[0]
            put(self.root, {f"patches/{name}/it.patch": f"{name}: it\n\n"
                            f"It is.\n\nForwarded: no\n---\n{hunks}"})
            lines += f"topic {topic}\nchange {name}/it\n"
        put(self.root, {"patches/series": lines})

    def repetitive(self) -> None:
        """A hunk with one context line has four places in this file; with
        the other topic the third is where the patch has its line number."""
        function = "int f{}(void)\n{{\n    int cached;\n\n    go();\n}}\n"
        put(self.qemu, {"cached.c": "".join(map(function.format, range(4)))})
        self.commit(self.qemu, "-m", "a file")
        self.series(
            ("long", "cached.c", "int f0", "/* long */\n" * 12 + "int f0"),
            ("place", "cached.c",
             "int f1(void)\n{\n    int cached;\n",
             "int f1(void)\n{\n    int cached;\n    int result;\n"))

    def test_a_topic_alone_has_its_hunks_at_their_place(self) -> None:
        self.repetitive()
        self.fork("apply", self.qemu, "--topic", "place")
        self.assertIn("int f1(void)\n{\n    int cached;\n    int result;\n",
                      (self.qemu / "cached.c").read_text())

    def test_a_hunk_does_not_go_in_twice(self) -> None:
        self.repetitive()
        for topic in ("place", "long"):
            self.fork("apply", self.qemu, "--topic", topic)
        self.assertIn("applied already",
                      self.fork("apply", self.qemu, code=1))
        self.assertEqual((self.qemu / "cached.c").read_text().count(
            "int result;"), 1)

    def test_knows_a_topic_below_another(self) -> None:
        self.series(
            ("one", "iothread.c", "return 7;", "return one(7);"),
            ("two after one", "iothread.c", "one(7)", "one(two(7))"),
            ("three after one", "monitor/monitor.c", "return 1;",
             "return 3;"))
        for topic in ("one", "two"):
            self.fork("apply", self.qemu, "--topic", topic)
        said = self.fork("apply", self.qemu, "--topic", "three")
        self.assertIn("one/it: is there already", said)

    def test_two_edits_side_by_side(self) -> None:
        """A topic without another that has edited the lines beside."""
        put(self.qemu, {"list": "a\n\nz\n"})
        self.commit(self.qemu, "-m", "a file")
        self.series(("one", "list", "\nz", "\none\n\nz"),
                    ("two", "list", "\nz", "\ntwo\n\nz"))
        self.fork("apply", self.qemu, "--topic", "two")
        self.assertEqual((self.qemu / "list").read_text(),
                         "a\n\ntwo\n\nz\n")
        self.assertIn("applied already", self.fork(
            "apply", self.qemu, "--topic", "two", code=1))

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
