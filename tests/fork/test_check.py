# SPDX-License-Identifier: GPL-2.0-or-later
"""./fork check: every rule catches what it is there for."""
import unittest
from unittest import mock

from sandbox import CHANGES, Sandbox, Series, put

from fork import check
from fork.base import Base
from fork.common import Fail
from fork.origin import HEAD, RULE, refresh_column


class Check(Sandbox):
    def setUp(self) -> None:
        super().setUp()
        Base(self.repo).ready(str(self.qemu))

    def static(self) -> dict[str, list[str]]:
        """What the rules for files find, by rule; after `git add` of all."""
        self.git(self.root, "add", "-A")
        items = check.static(self.repo, Series.load(self.repo))
        return {item.name: item.errors for item in items if item.errors}

    def on_base(self) -> dict[str, list[str]]:
        """What the rules for the series on its base find."""
        base = Base(self.repo)
        commit = base.ready(str(self.qemu))
        items, _ = check.on_base(base.git(), commit, Series.load(self.repo))
        return {item.name: item.errors for item in items if item.errors}

    def found(self, rule: str, what: str) -> None:
        based = rule in ("applies", "no offsets", "round trip", "topics")
        errors = self.on_base() if based else self.static()
        self.assertIn(rule, errors)
        self.assertRegex("\n".join(errors[rule]), what)

    def test_each_change_says_where_it_is(self) -> None:
        patch = self.root / "patches/shutdown/kick.patch"
        for old, new, what in (
                ("Partly-Upstream: 11.0.0\n", "", "come together"),
                ("Partly-Upstream: 11.0.0\nBeyond-Upstream: the waiter is "
                 "kicked\n", "Reviewed-by: A\n", "says where it is"),
                ("Beyond", "Forwarded: no\nBeyond", "not several"),
                ("11.0.0", "11.0.0, 0123456789", "is `RELEASE` or"),
                ("Beyond", "Probe: iothread.c\nBeyond", "FILE: TEXT")):
            before = patch.read_text()
            self.edit(patch, old, new)
            errors = self.static()["upstream"]
            self.assertTrue(any("shutdown/kick: " in e and what in e
                                for e in errors), errors)
            patch.write_text(before)
        self.assertEqual(self.static(), {})

    def test_the_table_of_changes_agrees(self) -> None:
        rows = {name: f"| `{name}` | what | why | works |"
                for name, _, _ in CHANGES}
        table = [HEAD, RULE, *rows.values(), ""]
        put(self.root, {"docs/changes.md": "\n".join(table)})
        series = Series.load(self.repo)
        messages = {c.name: c.message for c in series.changes}
        self.assertEqual(len(self.static()["upstream"]), 6)
        self.assertTrue(refresh_column(self.root, messages))
        self.assertEqual(self.static(), {})
        self.assertFalse(refresh_column(self.root, messages))
        text = (self.root / "docs/changes.md").read_text()
        for words in ("kick` | what | why | works | weaker, 11.0.0: the "
                      "waiter is kicked |", "cxx` | what | why | works | "
                      "not for it |", "registry` | what | why | works | no |",
                      "users` | what | why | works | 11.1.0 (`0123456789`) "
                      "|"):
            self.assertIn(words, text)
        self.edit(self.root / "docs/changes.md", "works | no |",
                  "works | 11.0.0 |")
        self.assertIn("docs/changes.md:4", self.static()["upstream"][0])
        put(self.root, {"docs/changes.md": text.replace(
            rows["build/cxx"] + " not for it |\n", "")})
        self.assertEqual(self.static()["upstream"], [
            "docs/changes.md has not one row for build/cxx"])

    def test_a_probe_finds_neither_base_nor_series(self) -> None:
        patch = self.root / "patches/holders/users.patch"
        for what, where in (("return 5;", "the base has"),
                            ("hold(17)", "the series has")):
            before = patch.read_text()
            self.edit(patch, "upstream_hold", what)
            self.assertIn(where, "".join(self.on_base()["probes"]))
            patch.write_text(before)
        self.assertEqual(self.on_base(), {})

    def test_all_is_well(self) -> None:
        self.assertEqual(self.static() | self.on_base(), {})

    def test_unlisted_patch(self) -> None:
        put(self.root, {"patches/build/other.patch": "x: y\n\nz\n---\n"})
        self.found("series", "patches/build/other.patch is not in")

    def test_cover_text(self) -> None:
        put(self.root, {"patches/build/cover.txt": "x" * 72 + "\n"})
        self.assertEqual(self.static(), {})
        put(self.root, {"patches/build/cover.txt": "x" * 73 + "\n"})
        self.found("series", "cover.txt has a line of more than 72")

    def test_unlisted_file(self) -> None:
        put(self.root, {"hw/virtio/new.c": "/* new */\n"})
        self.found("series", "hw/virtio/new.c is not named")

    def test_listed_twice(self) -> None:
        self.edit(self.root / "patches/series", "change holders/users\n",
                  "change holders/users\n    holds.cc\n")
        self.found("series", "holds.cc is added by holders/registry and by")

    def test_missing_file(self) -> None:
        (self.root / "holds.cc").unlink()
        with self.assertRaisesRegex(Fail, "adds holds.cc, which is not"):
            self.static()

    def test_missing_patch(self) -> None:
        (self.root / "patches/build/cxx.patch").unlink()
        with self.assertRaisesRegex(Fail, "no patches/build/cxx.patch"):
            self.static()

    def test_series_is_not_readable(self) -> None:
        for line, why in (("chnage build/x", "neither topic nor change"),
                          ("change x", "topic/name"),
                          ("change build/cxx", "twice"),
                          ("change other/x", "no `topic` line"),
                          ("topic x after y", "not a topic")):
            text = (self.root / "patches/series").read_text()
            with self.subTest(line), self.assertRaisesRegex(Fail, why):
                (self.root / "patches/series").write_text(text + line + "\n")
                try:
                    Series.load(self.repo)
                finally:
                    (self.root / "patches/series").write_text(text)

    def test_tampered_hunk(self) -> None:
        self.edit(self.root / "patches/shutdown/kick.patch",
                  "-    return 1;", "-    return 2;")
        self.found("applies", "shutdown/kick does not fit: monitor/monitor.c"
                   " hunk 1")

    def test_tampered_header(self) -> None:
        self.edit(self.root / "patches/shutdown/kick.patch",
                  "@@ -2,3 +2,3 @@", "@@ -3,3 +3,3 @@")
        errors = self.on_base()
        self.assertIn("offset", " ".join(errors["no offsets"]))
        self.assertIn("not as git writes it", " ".join(errors["round trip"]))

    def test_tampered_index(self) -> None:
        path = self.root / "patches/shutdown/kick.patch"
        line = next(x for x in path.read_text().split("\n")
                    if x.startswith("index"))
        for at, rule, what in (
                (20, "applies", "monitor/monitor.c is another"),
                (60, "round trip", "kick.patch is not as git writes it")):
            other = line[:at] + ("0" if line[at] != "0" else "1") \
                + line[at + 1:]
            self.edit(path, line, other)
            self.found(rule, what)
            self.edit(path, other, line)

    def test_wider_context(self) -> None:
        """Hunks have one line of context: that is what keeps a rebase
        cheap, and each patch has one form."""
        self.edit(self.root / "patches/shutdown/kick.patch",
                  "@@ -2,3 +2,3 @@ int dispatch(void)\n {",
                  "@@ -1,4 +1,4 @@\n int dispatch(void)\n {")
        self.found("round trip", "kick.patch is not as git writes it")

    def test_untidy_series_file(self) -> None:
        self.edit(self.root / "patches/series", "    holds.cc", "  holds.cc")
        self.found("round trip", "patches/series is not as")

    def test_topic_that_needs_another(self) -> None:
        self.edit(self.root / "patches/series", "topic shutdown\n"
                  "change shutdown/kick\n", "change shutdown/kick\n\n"
                  "topic shutdown\ntopic late\nchange late/more\n")
        text = (self.root / "patches/shutdown/kick.patch").read_text()
        swapped = text.replace("1;", "0;").replace("kick();", "2;").replace(
            "0;", "kick();").replace("kick the", "kick again the")
        put(self.root, {"patches/late/more.patch": swapped})
        self.found("topics", "late alone: late/more does not fit")

    def test_bad_messages(self) -> None:
        path = self.root / "patches/shutdown/kick.patch"
        good = path.read_text()
        head = "monitor: kick the waiter\n\nIt sleeps else.\n"
        for message, why in (
                ("no area here\n\nBody.\n", "area: summary"),
                ("monitor: full stop.\n\nBody.\n", "area: summary"),
                ("monitor: kick\nIt sleeps.\n", "no blank line"),
                ("monitor: kick\n", "no blank line"),
                (f"monitor: kick\n\n{'x' * 77}\n", "line 3 is longer"),
                (head + "\nSigned-off-by: A <a@b>\n", "Signed-off-by"),
                ("build: take C++\n\nAgain.\n", "same subject")):
            with self.subTest(message):
                path.write_text(good.replace(head, message))
                self.found("messages", why)

    def test_cxx_words(self) -> None:
        for code in ("throw 1;", "try {", "typeid(n)"):
            with self.subTest(code):
                put(self.root, {"holds.cc": self.text() + code + "\n"})
                self.found("c++", code.split("(")[0].split()[0])

    def text(self) -> str:
        return self.git(self.root, "show", "HEAD:holds.cc")

    def test_cxx_words_in_comments_are_fine(self) -> None:
        put(self.root, {"holds.cc": self.text() + "/* try\n * throw */\n"
                        "// catch\nconst char *s = \"typeid\";\n"})
        self.assertNotIn("c++", self.static())

    def test_cxx_includes(self) -> None:
        put(self.root, {"holds.cc":
                        "#include \"qom/object.h\"\n" + self.text()})
        self.found("c++", "includes qom/object.h outside of")
        put(self.root, {"holds.cc": self.text().replace(
            "#include \"qemu/cxx-begin.h\"\n", "")})
        self.found("c++", "does not include qemu/cxx-begin.h")

    def test_share(self) -> None:
        put(self.root, {"holds.cc": "\n" * 3,
                        "include/system/holds.h": "\n" * 5})
        self.assertEqual(check.share(self.repo, Series.load(self.repo)),
                         "product, C++: 1 files, 3 lines; "
                         "product, C headers: 1 files, 5 lines; "
                         "product, C: 0 files, 0 lines; "
                         "tests, C++: 0 files, 0 lines; "
                         "tests, C headers: 0 files, 0 lines; "
                         "tests, C: 0 files, 0 lines")

    def test_cxx_headers(self) -> None:
        """They are C++, and are included as such."""
        put(self.root, {"model.hh": "#include \"qemu/cxx-begin.h\"\n"
                        "#include \"qemu/cxx-end.h\"\n",
                        "holds.cc": self.text() + "#include \"model.hh\"\n"})
        self.assertNotIn("c++", self.static())

    def test_style(self) -> None:
        for line, why in (("x" * 81, "longer than 80"),
                          ("\tint x;", "has a tab"),
                          ("int x; ", "blanks at its end")):
            with self.subTest(why):
                put(self.root, {"holds.cc": self.text() + line + "\n"})
                self.found("style", f"holds.cc:10: {why}")

    def test_licence_line(self) -> None:
        put(self.root, {"holds.cc": self.text().split("\n", 1)[1]})
        self.found("style", "holds.cc: no SPDX")

    def test_mirror_name(self) -> None:
        put(self.root, {"README.md": "http://mirror.example.org/debian\n"})
        with mock.patch.object(check.mirror, "hosts", return_value={
                "mirror.example.org"}):
            self.found("mirrors", "README.md names mirror.example.org")

    def test_python(self) -> None:
        put(self.root, {"scripts/x.py": "def f(:\n"})
        self.found("python", "scripts/x.py:1")


if __name__ == "__main__":
    unittest.main()
