# SPDX-License-Identifier: GPL-2.0-or-later
"""The real series on QEMU's own source, where that is set up here."""
import tempfile
import unittest
from pathlib import Path

from sandbox import TOP, Git, Series

from fork.base import Base
from fork.common import Repo
from fork.graft import MISFIT, THERE, Graft, tip


class Real(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        base = Base(Repo(TOP))
        if not base.recorded():
            raise unittest.SkipTest("./fork build --stock has not been run")
        holder = tempfile.TemporaryDirectory(prefix="fork-real-")
        cls.addClassCleanup(holder.cleanup)
        # A clone without files: nothing is written into build/.
        base.git()("clone", "-q", "--shared", "--no-checkout", ".",
                   holder.name)
        cls.git = Git(Path(holder.name))
        cls.base = base.commit()
        cls.series = Series.load(Repo(TOP))
        cls.graft = Graft(cls.git, cls.series)
        cls.outcomes = cls.graft.commits(cls.base, cls.series.changes)
        cls.end = tip(cls.outcomes, cls.base)

    def test_twice(self) -> None:
        known = self.graft.known(self.end)
        self.assertEqual([c.name for c in self.series.changes
                          if c.name not in known], [])

    def test_topics_after_each_other(self) -> None:
        """With each, those before are there, and nothing goes in twice."""
        head, done = self.base, set()
        for topic in ("hardening", "load", "virtio-gpu", "holders", "qmp",
                      None):
            with self.subTest(topic):
                changes = self.series.select(topic)
                known = self.graft.known(head)
                self.assertEqual(set(known), done)
                outcomes = self.graft.commits(head, changes, known=known)
                self.assertEqual([o for o in outcomes
                                  if o.status == MISFIT], [])
                self.assertEqual({o.change.name for o in outcomes if
                                  o.status == THERE},
                                 done & {c.name for c in changes})
                head = tip(outcomes, head, leave_out=True)
                done |= {c.name for c in changes}
        self.assertEqual(self.git("diff", "--stat", self.end, head), "")

    def test_a_topic_is_what_a_cherry_pick_gives(self) -> None:
        """physmem.c has many functions alike, and another topic's lines."""
        path = "system/physmem.c"
        alone = tip(self.graft.commits(
            self.base, self.series.select("hardening")), self.base)
        picks = [o.commit for o in self.outcomes
                 if o.change.topic == "hardening"
                 and path in o.change.touched()]
        self.assertGreater(len(picks), 1)
        git = self.git.with_env({
            "GIT_COMMITTER_NAME": "T", "GIT_COMMITTER_EMAIL": "t@x"})
        git("sparse-checkout", "set", "--no-cone", f"/{path}")
        git("checkout", "-q", "--detach", self.base)
        git("cherry-pick", *picks)
        self.assertEqual(git("diff", alone, "HEAD", "--", path), "")


if __name__ == "__main__":
    unittest.main()
