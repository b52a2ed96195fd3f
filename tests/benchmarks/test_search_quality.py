"""The quality benchmark: its intervals, its rivals' FLOPs, its refining stages, and one small run."""

import math
from statistics import fmean, stdev

import numpy
import pytest

from benchmarks import search_quality
from benchmarks.quality.bench import FIRST_LAYER, Bench, Found
from benchmarks.quality.pooled import pooled_difference
from benchmarks.quality.rivals import random_schedules, steps
from scheduler_search.export.paired import paired_difference
from scheduler_search.rule import make_rule
from scheduler_search.schedule.families import sigmoid
from scheduler_search.schedule.values import Reduction
from scheduler_search.search import GSearch
from scheduler_search.search.refined import RefinedGSearch
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import Decision


def test_one_seed_gets_the_interval_of_its_pairs():
    first, second = [1.0] * 30 + [0.0] * 10, [1.0] * 20 + [0.0] * 20
    pooled, paired = pooled_difference([(first, second)]), paired_difference(first, second)
    assert (pooled.mean, pooled.low, pooled.high) == (paired.mean, paired.low, paired.high)


def test_seeds_that_differ_widen_the_interval():
    pairs = [([1.0] * 40 + [0.0] * (20 - extra) + [1.0] * extra, [1.0] * 40 + [0.0] * 20) for extra in (0, 10, 20)]
    means = [extra / 60 for extra in (0, 10, 20)]
    half = 4.302652729911275 * stdev(means) / math.sqrt(3)  # the 97.5 % quantile of t with 2 degrees of freedom
    pooled = pooled_difference(pairs)
    assert pooled.mean == pytest.approx(fmean(means))
    assert pooled.high - pooled.mean == pytest.approx(half)
    assert pooled.mean - pooled.low == pytest.approx(half)


def test_seeds_that_agree_do_not_narrow_it():
    pair = ([1.0] * 30 + [0.0] * 10, [1.0] * 20 + [0.0] * 20)
    one, three = pooled_difference([pair]), pooled_difference([pair] * 3)
    assert 0.0 < three.high - three.low < one.high - one.low


def test_the_interval_covers_what_it_should():
    # 300 repetitions of 5 seeds with 100 samples, whose differences vary between seeds: 95 % are 285. Fewer than
    # 270 happen with probability below 3e-4 if the coverage is 95 %; the wider of two covers more.
    generator = numpy.random.default_rng(0)
    covered = 0
    for _ in range(300):
        pairs = []
        for shift in generator.normal(0.05, 0.05, size=5):
            second = generator.uniform(size=100) < 0.5
            turned = generator.uniform(size=100) < min(max(2 * shift, -1.0), 1.0) if shift > 0 else second & False
            pairs.append(((second | turned).astype(float).tolist(), second.astype(float).tolist()))
        pooled = pooled_difference(pairs)
        # The mean of a normal (.05, .05) cut off at 0: .05 Phi(1) + .05 phi(1).
        covered += pooled.low <= 0.05 * 0.8413447 + 0.05 * 0.2419707 <= pooled.high
    assert covered >= 270


class _Score:
    """A score that wants ``wanted`` tokens in each layer."""

    def __init__(self, wanted):
        self.wanted = wanted

    def __call__(self, keep_rates):
        misses = (max(0.0, want - 8 * rate) for want, rate in zip(self.wanted, keep_rates, strict=True))
        return 1.0 - 0.05 * math.fsum(misses)


def _run(algorithm, score):
    """All stages, each decided on its best candidate; the decisions and the objectives of anchor and decision."""
    decisions, objectives = [], []
    while (stage := algorithm.next_stage(decisions)) is not None:
        values = [score(candidate.keep_rates) - candidate.penalty for candidate in stage.candidates]
        best = int(numpy.argmax(values))
        chosen = stage.candidates[best]
        objectives.append((values[stage.anchor], values[best]))
        decisions.append(
            Decision(stage.index, stage.name, best, stage.parameter, chosen.value, chosen.keep_rates, 0.0, 0.0)
        )
    return decisions, objectives


def test_refining_finds_what_greedy_stages_were_too_impatient_for():
    score = _Score((8, 8, 4, 4, 4, 1))
    greedy = GSearch(6, 8, lambda rates: 1e12 * math.fsum(rates), stride=2, penalty=0.35, penalty_unit="tflop")
    by_greed, _ = _run(greedy, score)
    decisions, objectives = _run(RefinedGSearch(greedy), score)
    assert decisions[: len(by_greed)] == by_greed
    assert RefinedGSearch(greedy).final(decisions) == decisions[-1].keep_rates
    assert [round(8 * rate) for rate in greedy.final(by_greed)] != [8, 8, 4, 4, 4, 1]
    assert [round(8 * rate) for rate in decisions[-1].keep_rates] == [8, 8, 4, 4, 4, 1]
    assert all(best >= anchor for anchor, best in objectives)
    assert all(rates[i] >= rates[i + 1] for rates in [decisions[-1].keep_rates] for i in range(5))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with (
        StudyDatabase.open(f"sqlite:///{tmp_path_factory.mktemp('quality')}/quality.db") as database,
        Bench(database, "testbed", search_quality.TESTBED, 0, 8, 8) as bench,
    ):
        yield bench


@pytest.mark.slow
def test_random_schedules_and_steps_cost_what_the_searched_one_costs(bench):
    searched = Found(Reduction(sigmoid(12, 0.25, 1.0), make_rule("attention-rank")), 0.4, 20, 0)
    cost = bench.cost("search")
    target = cost(searched.reduction.keep_rates)
    drawn = random_schedules(bench, searched, 0.25)
    assert len(drawn) == 20
    assert len({reduction.keep_rates for reduction in drawn}) == 20
    for reduction in [*drawn, *steps(bench, searched.reduction).values()]:
        assert reduction.keep_rates[: FIRST_LAYER - 1] == (1.0, 1.0)
        # Ten layers at most lose one token each to rounding.
        assert 0.95 * target < cost(reduction.keep_rates) <= target * (1 + 1e-12)


@pytest.mark.slow
def test_a_small_run_prints_every_rival_and_again_from_its_database(tmp_path, capsys):
    settings = ["--seeds", "2", "--budgets", ".25", "--samples", "16", "--test", "16", "--oracle"]
    settings += ["--database", str(tmp_path / "quality.db"), "--searches", "P-Sigmoid"]
    assert search_quality.main(settings) == 0
    first = capsys.readouterr().out
    assert search_quality.main(settings) == 0
    assert capsys.readouterr().out == first
    names = [line.strip("| ").split(" | ")[0] for line in first.splitlines() if line.startswith("| minus")]
    rivals = ["uniform", "fastv", "random", "random-uniform", "pooling", "pyramid-drop", "withdraw"]
    more = ["its rates, fastv's ranking", "random search", "the best step on test"]
    assert names == [f"minus {name}" for name in ["unreduced", *rivals, *more]]
