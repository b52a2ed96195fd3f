from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.errors import GateError, SearchError
from scheduler_search.schedule.families import mean_keep_rate
from scheduler_search.search.front import Front
from scheduler_search.search.frontier import CHEAPEST
from scheduler_search.search.target import SHOWN, Choice, Target, choose, summary
from tests.search.front_surface import SAMPLES, Population, explore, frontier

pytestmark = pytest.mark.slow

FRONTIER = frontier()
DOMAIN = FRONTIER.domain
FULL = DOMAIN.cost((1.0,) * 12) / 1e12
LEAST = min(DOMAIN.cost(DOMAIN.rates(CHEAPEST, k)) for k in DOMAIN.axis.grid(129)) / 1e12


@cache
def front(surface: int = 0) -> Front:
    return Front(FRONTIER.stage, explore(FRONTIER.stage, Population(surface, 0, SAMPLES)).observations)


def chosen(target: Target, surface: int = 0, samples: int = 600) -> Choice:
    return choose(DOMAIN, front(surface), target, samples)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.floats(LEAST * 1.0001, FULL))
def test_never_more_flops_than_asked_for_and_hardly_fewer(tflops: float) -> None:
    candidate = chosen(Target(tflops=tflops)).candidate
    assert candidate.flops <= tflops * 1e12 * (1.0 + 1e-12)
    assert candidate.flops == DOMAIN.cost(candidate.keep_rates)
    # One count more in one layer, of the two kinds of samples, is at most 2 % of the unreduced prefill.
    assert candidate.flops >= tflops * 1e12 - 0.02 * FULL * 1e12
    assert mean_keep_rate(candidate.keep_rates, 3) == pytest.approx(candidate.value, abs=1e-12)


@settings(max_examples=6, deadline=None)
@given(st.floats(CHEAPEST, 1.0))
def test_a_keep_rate_is_met_exactly_at_the_best_predicted_k(rate: float) -> None:
    choice = chosen(Target(keep_rate=rate))
    assert mean_keep_rate(choice.candidate.keep_rates, 3) == pytest.approx(rate, abs=1e-9)
    others = [DOMAIN.candidate(rate, k) for k in (0.0, 0.1, 0.4, 1.0, 3.0)]
    predictions = front().predictions([other.features for other in others])
    # k is chosen from a grid, so that another one can be better by little.
    assert choice.prediction.score >= max(prediction.score for prediction in predictions) - 1e-3


@pytest.mark.slow
def test_a_larger_drop_never_asks_for_a_dearer_schedule() -> None:
    drops = [0.03, 0.05, 0.08, 0.12, 0.2, 0.4, 1.0]
    choices = [chosen(Target(max_drop=drop)) for drop in drops]
    flops = [choice.candidate.flops for choice in choices]
    assert flops == sorted(flops, reverse=True)
    assert len(set(flops)) > 3
    for drop, choice in zip(drops, choices, strict=True):
        assert choice.prediction.loss_limit(600, 1.6449) <= drop + 1e-6


@pytest.mark.slow
def test_fewer_validation_samples_ask_for_a_dearer_schedule() -> None:
    costs = [chosen(Target(max_drop=0.08), samples=samples).candidate.flops for samples in (100, 600, 10_000)]
    assert costs == sorted(costs, reverse=True)


def test_a_drop_that_nothing_promises_closes_the_gate() -> None:
    with pytest.raises(
        GateError, match=r"pass a gate of 0.001, with 95 % probability, but got 0\.\d+ at least"
    ) as caught:
        chosen(Target(max_drop=0.001))
    assert caught.value.exit_code == 3


def test_nothing_is_reduced_at_the_full_cost() -> None:
    for target in (Target(keep_rate=1.0), Target(tflops=FULL)):
        choice = chosen(target)
        assert choice.candidate.keep_rates == (1.0,) * 12
        assert choice.k == 0.0


@pytest.mark.parametrize("tflops", [LEAST / 2, FULL * 1.01])
def test_tflops_out_of_reach_are_refused_with_the_range(tflops: float) -> None:
    with pytest.raises(SearchError, match=r"a frontier study knows .* to .* TFLOPs, what its schedules cost, but got"):
        chosen(Target(tflops=tflops))


def test_keep_rates_that_were_not_searched_are_refused() -> None:
    with pytest.raises(SearchError, match=r"knows mean keep rates from 0.03125 to 1, but got 0.02"):
        chosen(Target(keep_rate=0.02))


def test_a_target_is_one_question() -> None:
    for values in ({}, {"tflops": 1.0, "keep_rate": 0.5}, {"keep_rate": 0.5, "max_drop": 0.1}):
        with pytest.raises(SearchError, match="a target is one of TFLOPs, keep rate and drop"):
            Target(**values)


@settings(max_examples=200)
@given(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3))
def test_labels_are_fit_for_files_and_tell_targets_apart(one: float, other: float) -> None:
    first, second = Target(tflops=one).label, Target(tflops=other).label
    assert (first == second) == (one == other)
    assert set(first) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-+")


def test_labels_are_what_people_wrote() -> None:
    assert Target(tflops=0.35).label == "tflops-0.35"
    assert Target(keep_rate=0.25).label == "keep-0.25"
    assert Target(max_drop=0.02).label == "drop-0.02"
    assert Target(tflops=3.0).label == "tflops-3"


@pytest.mark.slow
def test_choices_repeat() -> None:
    again = Front(FRONTIER.stage, explore(FRONTIER.stage, Population(0, 0, SAMPLES)).observations)
    for target in (Target(keep_rate=0.2), Target(tflops=FULL * 0.5), Target(max_drop=0.1)):
        assert choose(DOMAIN, again, target, 600) == chosen(target)


def test_the_summary_says_which_schedules_were_evaluated() -> None:
    observed = [FRONTIER.stage.candidates[index] for index in sorted(front().observed)]
    rows = summary(DOMAIN, front(), observed)
    assert tuple(choice.candidate.value for choice, _ in rows) == SHOWN
    counts = {DOMAIN.counts(candidate.keep_rates) for candidate in observed}
    assert [evaluated for _, evaluated in rows] == [
        DOMAIN.counts(one.candidate.keep_rates) in counts for one, _ in rows
    ]
    assert rows[0][1]
    scores = [choice.prediction.score for choice, _ in rows]
    assert all(first >= second - 0.02 for first, second in itertools.pairwise(scores))
    assert all(math.isfinite(choice.prediction.score_error) for choice, _ in rows)
