"""Searched schedules against baselines at matched FLOPs, on a test split that no search saw, over several seeds.

    OMP_NUM_THREADS=1 python -m benchmarks.search_quality --control DIRECTORY --database quality.db

Prints one Markdown table for the testbed model, and one for its control where ``--control`` names the checkpoint.
Everything is scored once in the life of the database: an interrupted run goes on, and a finished one prints its tables.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.quality.bench import Bench
from benchmarks.quality.pooled import Scores, pooled_difference
from benchmarks.quality.rivals import rivals, steps
from benchmarks.quality.searches import GreedySearch, Search, p_sigmoid
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import StudyDatabase

TESTBED = "testbed:tiny-llava"
SEARCHES: Mapping[str, Callable[[], Search]] = {
    "P-Sigmoid": lambda: p_sigmoid,
    "G-Search": lambda: GreedySearch(3, refine=True),
    "greedy G-Search": lambda: GreedySearch(3, refine=False),
}
DEFAULT = ("P-Sigmoid", "G-Search")


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    seeds: int
    budgets: tuple[float, ...]
    samples: int
    test: int
    searches: tuple[str, ...]
    oracle: bool


@dataclass
class Cell:
    """One search at one budget, over seeds: its scores, and by rival the pairs of scores and the FLOPs ratios."""

    scores: list[Scores]
    trials: list[int]
    samples: list[int]
    shares: list[float]
    drops: list[tuple[Scores, Scores]]
    pairs: dict[str, list[tuple[Scores, Scores]]]
    ratios: dict[str, list[float]]
    steps: dict[int, list[tuple[Scores, Scores]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parsed = _parse(arguments)
    options = Options(
        parsed.seeds, tuple(parsed.budgets), parsed.samples, parsed.test, tuple(parsed.searches), parsed.oracle
    )
    models = {} if parsed.control_only else {"testbed": TESTBED}
    models |= {"control": str(parsed.control)} if parsed.control else {}
    with _database(parsed.database) as database:
        for label, model in models.items():
            cells = _compare(database, label, model, options)
            print(f"\n{label}: {options.seeds} seeds, {options.samples} search and {options.test} test samples each\n")
            print(*_table(cells), sep="\n", flush=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="searched schedules against baselines at matched FLOPs")
    parser.add_argument("--control", type=Path, help="checkpoint of the testbed trained without the attention penalty")
    parser.add_argument("--control-only", action="store_true", help="not the testbed model: its table is known")
    parser.add_argument("--seeds", type=int, default=5, help="searches per budget (default: 5)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25, 0.125], help="mean keep rates")
    parser.add_argument("--samples", type=int, default=256, help="of the search split (default: 256)")
    parser.add_argument("--test", type=int, default=1000, help="samples of the test split (default: 1000)")
    parser.add_argument("--searches", nargs="+", choices=list(SEARCHES), default=DEFAULT)
    parser.add_argument("--oracle", action="store_true", help="also the step (K, q) that is best on the test splits")
    parser.add_argument("--database", type=Path, help="file to keep studies and scores in (default: none is kept)")
    return parser.parse_args(arguments)


@contextmanager
def _database(path: Path | None) -> Iterator[StudyDatabase]:
    with tempfile.TemporaryDirectory() as folder:
        file = path or Path(folder) / "quality.db"
        with StudyDatabase.open(f"sqlite:///{file}") as database:
            yield database


def _compare(database: StudyDatabase, label: str, model: str, options: Options) -> dict[tuple[float, str], Cell]:
    cells: dict[tuple[float, str], Cell] = {}
    searches = {name: SEARCHES[name]() for name in options.searches}
    for seed in range(options.seeds):
        with Bench(database, label, model, seed, options.samples, options.test) as bench:
            for budget in options.budgets:
                for name, search in searches.items():
                    cell = cells.setdefault((budget, name), Cell([], [], [], [], [], {}, {}, {}))
                    _add(cell, bench, search, budget, oracle=options.oracle)
                    print(f"{label}, seed {seed}, budget {budget:g}, {name}: done", file=sys.stderr, flush=True)
    return cells


def _add(cell: Cell, bench: Bench, search: Search, budget: float, *, oracle: bool) -> None:
    """One seed's search, its rivals, and the scores of all on the test split."""
    searched = search(bench, budget)
    own = bench.scores("test", searched.reduction)
    full = bench.scores("test", Reduction((1.0,) * bench.layers, make_rule("attention-rank")))
    cell.scores.append(own)
    cell.trials.append(searched.trials)
    cell.samples.append(searched.samples)
    cell.shares.append(searched.share)
    cell.drops.append((own, full))
    for name, (reduction, ratio) in rivals(bench, searched, budget).items():
        cell.pairs.setdefault(name, []).append((own, bench.scores("test", reduction)))
        cell.ratios.setdefault(name, []).append(ratio)
    for last, reduction in steps(bench, searched.reduction).items() if oracle else ():
        cell.steps.setdefault(last, []).append((own, bench.scores("test", reduction)))


def _table(cells: Mapping[tuple[float, str], Cell]) -> Iterator[str]:
    """The lines of a Markdown table: a column for each search at each budget, a row for each rival."""
    yield _line(["", *(f"{name}, {budget:g}" for budget, name in cells)])
    yield _line(["---"] * (len(cells) + 1))
    columns = list(cells.values())
    yield _line(["FLOPs, share of the unreduced", *(f"{fmean(cell.shares):.3f}" for cell in columns)])
    yield _line(["trials", *(f"{fmean(cell.trials):.0f}" for cell in columns)])
    yield _line(["samples read", *(f"{fmean(cell.samples):.0f}" for cell in columns)])
    yield _line(["score", *(f"{fmean(fmean(scores) for scores in cell.scores):.3f}" for cell in columns)])
    yield _line(["minus unreduced", *(str(pooled_difference(cell.drops)) for cell in columns)])
    for rival in dict.fromkeys(name for cell in columns for name in cell.pairs):
        yield _line([f"minus {rival}", *(_difference(cell, rival) for cell in columns)])
    if any(cell.steps for cell in columns):
        yield _line(["minus the best step on test", *(_oracle(cell) for cell in columns)])


def _difference(cell: Cell, rival: str) -> str:
    pairs = cell.pairs.get(rival, [])
    if len(pairs) < len(cell.scores):
        return ""
    ratio = fmean(cell.ratios[rival])
    note = "" if abs(ratio - 1) < 0.02 else f", at {ratio:.2f} x the FLOPs"
    return f"{pooled_difference(pairs)}{note}"


def _oracle(cell: Cell) -> str:
    """Against the step that is best on the test splits of all seeds: nobody could have chosen it."""
    whole = {last: pairs for last, pairs in cell.steps.items() if len(pairs) == len(cell.scores)}
    if not whole:
        return ""
    last = max(whole, key=lambda one: fmean(fmean(second) for _, second in whole[one]))
    return f"{pooled_difference(whole[last])} (K = {last})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
