# SPDX-License-Identifier: GPL-2.0-or-later
"""What ./fork build sets up; the compiler itself is not run here."""
import contextlib
import unittest
from typing import Any
from unittest import mock

from sandbox import CHANGES, Sandbox

from fork.base import SUBPROJECTS
from fork.build import Builder, Tree
from fork.common import Fail


class Trees(unittest.TestCase):
    def test_names(self) -> None:
        def names(**options: Any) -> list[str]:
            return [tree.name for tree in Tree.pick(**options)]
        self.assertEqual(names(), ["patched"])
        self.assertEqual(names(stock=True), ["stock"])
        self.assertEqual(names(asan=True, tsan=True), ["asan", "tsan"])
        self.assertEqual(names(stock=True, configurations=("tools", "clang")),
                         ["stock-tools", "stock-clang"])

    def test_sanitizers_are_asked_for(self) -> None:
        (tree,) = Tree.pick(asan=True)
        self.assertIn("--enable-asan", tree.options)
        self.assertFalse(tree.stock)


class Folders(Sandbox):
    def test_side_by_side(self) -> None:
        """Under the same relative path, or the compiler cache misses."""
        builder = Builder(self.repo)
        self.assertEqual(
            [str(builder.folder(tree).relative_to(self.repo.build))
             for stock in (False, True)
             for tree in Tree.pick(stock, configurations=("tools",))
             + Tree.pick(stock)],
            ["patched/tools", "patched/build", "stock/tools", "stock/build"])


class Each(Sandbox):
    SUBJECTS = [message.split("\n")[0] for _, message, _ in CHANGES]

    def each(self, *names: str, broken: str = "", fail_at: str = "",
             why: str = "") -> list[str]:
        """The subjects of what is built, one after the other."""
        builder = Builder(self.repo, str(self.qemu))
        built: list[str] = []

        def make(name, source, folder, options, targets) -> None:
            subject = self.git(source, "log", "-1", "--format=%s").strip()
            if subject == broken:
                raise Fail("it does not compile")
            built.append(subject)

        def unit_tests(*_: object, **_more: object) -> None:
            if built[-1] == fail_at:
                raise Fail("a test fails")

        with mock.patch.object(builder, "environment"), \
                mock.patch("fork.build.need_space"), \
                mock.patch.object(builder, "make", make), \
                mock.patch.object(builder.env, "step",
                                  side_effect=unit_tests) as step, \
                self.assertRaisesRegex(Fail, why) if why \
                else contextlib.nullcontext():
            builder.each(Tree("patched"), list(names))
        self.assertEqual(step.call_count, len(built))
        return built

    def test_every_change_in_order(self) -> None:
        self.assertEqual(self.each(), self.SUBJECTS)

    def test_stops_at_the_first_that_does_not_build(self) -> None:
        self.assertEqual(
            self.each(broken="iothread: record users",
                      why="does not compile"),
            ["build: take C++", "iothread: add a registry"])

    def test_goes_on_where_it_failed(self) -> None:
        self.assertEqual(
            self.each(fail_at=self.SUBJECTS[2], why="a test fails"),
            self.SUBJECTS[:3])
        self.assertEqual(self.each(), self.SUBJECTS[2:])
        self.assertEqual(self.each(), [])

    def test_other_files_are_built_again(self) -> None:
        self.each()
        with open(self.repo.root / "holds.cc", "a") as file:
            file.write("/* more */\n")
        self.assertEqual(self.each(), self.SUBJECTS[1:])

    def test_names(self) -> None:
        self.assertEqual(self.each(CHANGES[1][0]), [self.SUBJECTS[1]])
        self.assertEqual(self.each("build"), [self.SUBJECTS[0]])
        self.assertEqual(self.each("nothing", why="no topic or change "
                                   "nothing"), [])


class Configure(Sandbox):
    """A build folder is configured when its command line changes."""

    def runs(self, builder: Builder, *options: str) -> bool:
        with mock.patch.object(builder.env, "step") as step:
            builder._configure("x", self.repo.stock, self.repo.build / "x",
                               options)
        return step.called

    def test_source_without_subprojects(self) -> None:
        with self.assertRaisesRegex(Fail, "meson subprojects download "
                                    "keycodemapdb.* libvfio-user"):
            self.runs(Builder(self.repo))

    def test_only_what_is_missing(self) -> None:
        for name in SUBPROJECTS:
            (self.repo.stock / "subprojects" / name).mkdir(parents=True)
        builder = Builder(self.repo)
        self.assertTrue(self.runs(builder, "--disable-xen"))
        self.assertFalse(self.runs(builder, "--disable-xen"))
        self.assertTrue(self.runs(builder, "--enable-xen"))
        (self.repo.build / "x" / "fork-configure.json").unlink()
        self.assertTrue(self.runs(builder, "--enable-xen"))


if __name__ == "__main__":
    unittest.main()
