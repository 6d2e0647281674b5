# SPDX-License-Identifier: GPL-2.0-or-later
"""What ./fork bench makes of samples: figures, verdicts, table and chart."""
import contextlib
import itertools
import json
import random
import statistics
import unittest
from pathlib import Path
from typing import Any, Iterator
from unittest import mock
from xml.etree import ElementTree

from sandbox import Sandbox

from bench import __main__ as command
from bench import chart, measure, programs, report, rows, stats
from bench.measure import Result
from bench.qemu import Missing
from bench.rows import Row, Setup
from bench.stats import BROKEN, FEW, HOLDS, NOISY, Bound, Samples
from fork import cli

PATHS = {side: Path(side) for side in rows.PAIRED}
SLIGHT, SAME, MORE = (Bound("ratio", 1.02), Bound("same"),
                      Bound("difference", 1, "MiB"))


def nothing(build: Path) -> Any:
    return contextlib.nullcontext(build)


def a_row(bound: Bound | None = None, name: str = "area: row",
          **more: Any) -> Row:
    return Row(name, "what <it> means & is", "ms", Setup(nothing),
               more.pop("sample", lambda target: 1.0), bound)


def samples(ratio: float, spread: float = 0.001, rounds: int = 20,
            level: float = 100) -> dict[str, list[float]]:
    chance = random.Random(1)

    def some(around: float) -> list[float]:
        return [chance.uniform(1 - spread, 1 + spread) * around
                for _ in range(rounds)]
    return {"stock": some(level), "again": some(level),
            "patched": some(level * ratio)}


def verdict(bound: Bound | None, ratio: float, spread: float = 0.001,
            rounds: int = 20) -> str:
    return stats.summarize(
        Samples(**samples(ratio, spread, rounds)), bound).verdict


class Statistics(unittest.TestCase):
    def test_interval(self) -> None:
        # The ranks are those of the tables for 99 %.
        for count, low in ((1, 1), (7, 1), (8, 1), (11, 1), (12, 2),
                           (20, 4), (30, 8), (50, 16)):
            with self.subTest(count):
                self.assertEqual(stats.interval(range(1, count + 1)),
                                 (low, count + 1 - low))

    def test_interval_has_the_median(self) -> None:
        chance, misses = random.Random(2), 0
        for _ in range(2000):
            low, high = stats.interval(
                [chance.expovariate(1) for _ in range(20)])
            misses += not low <= 0.6931 <= high
        self.assertLess(misses, 2000 * 0.015)

    def test_middle_half(self) -> None:
        self.assertEqual(stats.middle_half(range(20)), (5, 14))
        self.assertEqual(stats.middle_half([3.0]), (3, 3))

    def test_summary(self) -> None:
        found = stats.summarize(Samples([10, 20, 30], [10, 20, 30],
                                        [11, 22, 30]), None)
        self.assertEqual((found.stock, found.patched, found.difference),
                         (20, 22, 1))
        self.assertAlmostEqual(found.ratio or 0, 1.1)
        self.assertEqual(found.verdict, "")

    def test_both_stocks_count(self) -> None:
        found = stats.summarize(Samples([9], [11], [10]), None)
        self.assertAlmostEqual(found.ratio or 0, 1)
        self.assertAlmostEqual(found.noise or 0, 11 / 9 - 1)

    def test_without_stock(self) -> None:
        found = stats.summarize(Samples(patched=[1, 2, 3]), None)
        self.assertEqual((found.patched, found.stock, found.ratio),
                         (2, None, None))

    def test_exact(self) -> None:
        found = stats.summarize(Samples([2], [], [3]), None)
        self.assertEqual((found.ratio, found.noise), (1.5, None))


class Verdicts(unittest.TestCase):
    def test_ratio(self) -> None:
        for ratio, spread, what in (
                (1.00, 0.001, HOLDS), (1.015, 0.001, HOLDS),
                (1.03, 0.001, BROKEN), (1.00, 0.1, NOISY),
                (1.04, 0.1, NOISY), (0.5, 0.1, HOLDS), (2, 0.1, BROKEN)):
            with self.subTest(ratio=ratio, spread=spread):
                self.assertEqual(verdict(SLIGHT, ratio, spread), what)

    def test_same(self) -> None:
        for ratio, spread, what in (
                (1.00, 0.002, HOLDS), (0.95, 0.002, HOLDS),
                (1.01, 0.002, BROKEN), (1.00, 0.1, NOISY),
                (1.003, 0.01, HOLDS), (1.5, 0.1, BROKEN)):
            with self.subTest(ratio=ratio, spread=spread):
                self.assertEqual(verdict(SAME, ratio, spread), what)

    def test_difference(self) -> None:
        for ratio, spread, what in ((1.005, 0.001, HOLDS),
                                    (1.02, 0.001, BROKEN),
                                    (1.01, 0.01, NOISY)):
            with self.subTest(ratio=ratio, spread=spread):
                self.assertEqual(verdict(MORE, ratio, spread), what)

    def test_value(self) -> None:
        for value, what in ((1.5, HOLDS), (3, BROKEN)):
            found = stats.summarize(Samples(patched=[value] * 20),
                                    Bound("value", 2))
            self.assertEqual(found.verdict, what)

    def test_stock_differs_from_itself(self) -> None:
        """Then neither is a difference of the patched one a result."""
        taken = samples(1.05)
        taken["again"] = [each * 1.10 for each in taken["again"]]
        self.assertEqual(stats.summarize(
            Samples(**taken), SLIGHT).verdict, NOISY)

    def test_few_rounds(self) -> None:
        self.assertEqual(verdict(SLIGHT, 2, rounds=7), FEW)
        self.assertEqual(verdict(SLIGHT, 2, rounds=8), BROKEN)

    def test_no_bound(self) -> None:
        self.assertEqual(verdict(None, 2), "")


class Measuring(unittest.TestCase):
    def setUp(self) -> None:
        self.alive: list[Path] = []
        self.starts = 0

    @contextlib.contextmanager
    def target(self, build: Path) -> Iterator[Path]:
        self.alive.append(build)
        self.starts += 1
        try:
            yield build
        finally:
            self.alive.remove(build)

    def run_rows(self, *given: Row, rounds: int = 4) -> list[Result]:
        found = list(measure.measure(given, PATHS, rounds, lambda text: None))
        self.assertEqual(self.alive, [])
        return found

    def test_order(self) -> None:
        seen = [measure.order(rows.PAIRED, n) for n in range(6)]
        self.assertEqual(set(seen), set(itertools.permutations(rows.PAIRED)))

    def test_rounds_and_starts(self) -> None:
        setup = Setup(self.target, rounds=2, most=5)
        result, other = self.run_rows(
            *(Row(name, "", "", setup, lambda build: len(str(build)))
              for name in "ab"), rounds=20)
        self.assertEqual(self.starts, 9)  # three times all sides
        self.assertEqual(result.samples, {
            "stock": [5] * 5, "again": [5] * 5, "patched": [7] * 5})
        self.assertEqual(other.samples, result.samples)

    def test_failure_is_that_of_its_row(self) -> None:
        setup = Setup(self.target)

        def fail(build: Path) -> float:
            raise RuntimeError("QEMU ended")
        bad, good = self.run_rows(Row("a", "", "", setup, fail),
                                  Row("b", "", "", setup, lambda build: 1))
        self.assertEqual(bad.failed, "QEMU ended")
        self.assertEqual(report.state(bad), "failed")
        self.assertEqual(len(good.samples["patched"]), 3)

    def test_missing(self) -> None:
        def absent(build: Path) -> float:
            return programs.holds(Path("/nonexistent"), 10)
        result, other = self.run_rows(a_row(sample=absent), a_row())
        self.assertIn("benchmark-iothread-holds is not built",
                      result.missing)
        self.assertEqual(report.state(result), "left out")
        self.assertIsNotNone(other.summary())

    def test_together(self) -> None:
        """Rows that are to be as on stock also come as one."""
        setup = Setup(self.target)

        def fail(build: Path) -> float:
            raise RuntimeError("QEMU ended")

        def figure(factor: float) -> Any:
            return lambda build: factor * len(str(build))
        found = self.run_rows(
            *(Row(f"queue: {name}", "", "µs", setup, sample, SAME)
              for name, sample in (("a", figure(2)), ("b", figure(8)),
                                   ("c", fail))),
            Row("plug: d", "", "ms", setup, figure(1), SLIGHT),
            Row("plug: e", "", "ms", setup, figure(1), SLIGHT),
            Row("guest: f", "", "µs", setup, figure(1), SAME), rounds=2)
        self.assertEqual([each.row.name for each in found], [
            "queue: a", "queue: b", "queue: c", "queue: all together",
            "plug: d", "plug: e", "guest: f"])
        self.assertEqual(
            {side: [round(value, 6) for value in taken]
             for side, taken in found[3].samples.items()},
            {"stock": [20] * 2, "again": [20] * 2, "patched": [28] * 2})
        self.assertEqual((found[3].row.unit, found[3].row.bound),
                         ("µs", SAME))

    def test_interrupted(self) -> None:
        def stop(build: Path) -> float:
            raise KeyboardInterrupt
        with self.assertRaises(KeyboardInterrupt):
            self.run_rows(Row("a", "", "", Setup(self.target), stop))
        self.assertEqual((self.starts, self.alive), (3, []))

    def test_figures_of_programs(self) -> None:
        self.assertEqual(programs.numbers(
            r"(\d+) ns", "# 10 holds: 70 ns for\n# 5: 68 ns\n"), [70, 68])
        with self.assertRaisesRegex(RuntimeError, "no figure in: oops"):
            programs.numbers("x", "oops\n")


class Rows(unittest.TestCase):
    def test_table(self) -> None:
        table = rows.table(Path("patched"))
        names = [row.name for row in table]
        self.assertEqual(len(names), len(set(names)))
        for row in table:
            with self.subTest(row.name):
                self.assertTrue(row.meaning)
                self.assertIn(row.area, rows.AREAS)
                self.assertLessEqual(len(row.name), report.WIDTHS[0])

    def test_pick(self) -> None:
        table = rows.table(Path("patched"))
        self.assertEqual(command.pick(table, []), table)
        self.assertEqual({row.name.partition(":")[0] for row in
                          command.pick(table, ["size:", "blob"])},
                         {"size", "blob"})
        with self.assertRaisesRegex(SystemExit, "(?s)no row has 'x y'.*"
                                    "blob: unmap"):
            command.pick(table, ["x y"])


class Command(Sandbox):
    def test_words(self) -> None:
        builder = mock.Mock(repo=self.repo)
        builder.folder = lambda tree: Path("/build", tree.name)
        builder.env.foreground.return_value = 0
        self.assertEqual(cli.bench(builder, ["plug:"], True), 0)
        words, env = builder.env.foreground.call_args.args
        self.assertEqual([str(word) for word in words], [
            "python3", "-B", "-m", "bench", "--quick", "--out",
            f"{self.root}/build/bench", "/build/stock", "/build/patched",
            "plug:"])
        self.assertEqual(env, {"PYTHONPATH": f"{self.root}/scripts"})
        self.assertEqual(builder.build.call_count, 2)


class Reports(unittest.TestCase):
    def setUp(self) -> None:
        self.results = [
            Result(a_row(SLIGHT, "area: holds"), samples(1)),
            Result(a_row(SAME, "area: broken"), samples(1.05)),
            Result(a_row(MORE, "memory: more"), samples(1.005)),
            Result(a_row(None, "other: <&>"), samples(30)),
            Result(a_row(None, "other: slow"), samples(0.1)),
            Result(a_row(None, "other: exact"),
                   {"stock": [2.0], "patched": [3.0]}),
            Result(a_row(Bound("value", 2), "holds: x"),
                   {"patched": [1.1] * 20}),
            Result(a_row(SAME, "area: absent"), missing="no fish"),
            Result(a_row(SAME, "area: bad"), failed="oh no")]

    def test_terminal(self) -> None:
        lines = list(report.terminal(self.results))
        self.assertEqual(len(lines), 2 + len(self.results))
        for words in (r"^area: holds .* 1\.000 .*<= 1\.02 holds$",
                      r"^area: broken .* 1\.0[45]. .*1\.00 BROKEN$",
                      r"^memory: more .*\+1 MiB holds \(\+0\.[45]. MiB\)$",
                      r"^area: absent .* left out: no fish$",
                      r"^area: bad .* FAILED: oh no$",
                      r"^- what <it> means & is$"):
            self.assertRegex("\n".join(lines), f"(?m){words}")
        self.assertLess(max(map(len, lines)), 140)

    def test_markdown(self) -> None:
        lines = report.markdown(self.results, "Note.").splitlines()
        self.assertEqual(lines[0], "Note.")
        self.assertEqual({line.count("|") for line in lines[2:]}, {10})

    def test_tally(self) -> None:
        said = report.tally(self.results)
        for words in ("3 holds", "1 broken", "3 without a bound",
                      "1 left out", "1 failed"):
            self.assertIn(words, said)

    def test_json(self) -> None:
        made = json.loads(json.dumps(report.as_json(
            self.results, {"rounds": 20})))
        self.assertEqual(made["rounds"], 20)
        first = made["rows"][0]
        self.assertAlmostEqual(first["ratio"], 1, 2)
        self.assertEqual(first["patched"], statistics.median(
            first["samples"]["patched"]))
        self.assertEqual(made["rows"][7]["left out"], "no fish")

    def test_chart(self) -> None:
        made = chart.chart(self.results, "20 rounds & more.")
        root = ElementTree.fromstring(made)
        name = "{http://www.w3.org/2000/svg}"
        words = [each.text or "" for each in root.iter(f"{name}text")]
        for said in ("What the series costs: patched QEMU to stock QEMU",
                     "<&>", "1.00", "holds", "broken", "ratio"):
            self.assertIn(said, words)
        self.assertFalse({"x", "absent", "bad"} & set(words))
        # Within the picture, and beyond the scale as arrows
        for each in root.iter(f"{name}rect"):
            left = float(each.get("x", 0))
            self.assertLessEqual(left + float(each.get("width", 0)),
                                 chart.WIDTH)
        # both rows beyond the scale, one ratio of 1.5, and the legend's
        self.assertEqual(len(list(root.iter(f"{name}path"))), 4)

    def test_chart_of_nothing(self) -> None:
        ElementTree.fromstring(chart.chart([], "None."))


if __name__ == "__main__":
    unittest.main()
