from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.errors import SearchError
from scheduler_search.schedule.counts import keep_counts
from scheduler_search.schedule.families import mean_keep_rate, uniform
from scheduler_search.search import Effort, algorithm_for, decide
from scheduler_search.search.frontier import BUDGETS, CHEAPEST, STEEPNESSES, Frontier, FrontierDomain
from scheduler_search.search.steepness import SplitCounts, SteepnessAxis, steepest
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import SplitDescription
from tests.search.front_surface import frontier
from tests.search.shapes import LLAVA_7B, TINY
from tests.search.simulated import scored

STAGE = frontier().stage
DOMAIN = frontier().domain


def test_a_study_becomes_a_frontier_without_races() -> None:
    section = {"algorithm": "frontier", "first_layer": 4, "initial": 5, "iterations": 6, "race_delta": 0.3, "batch": 2}
    definition = StudyDefinition.model_validate(
        {
            "name": "one",
            "model": {"id": "testbed:tiny-llava"},
            "data": {"source": "testbed", "search": {"samples": 2}},
            "search": section,
        }
    )
    split = SplitDescription("search", "sha256:0", "sha256:1", 16, (64, 40), (10, 12))
    algorithm = algorithm_for(definition, 12, TINY, split)
    effort = Effort(5, 6, tolerance=0.001, batch=2)
    assert algorithm == Frontier(FrontierDomain(12, 4, TINY, (64, 40), (10, 12)), effort)
    assert algorithm.stages == 1


def test_candidates_are_in_order_of_cost_and_no_two_are_the_same_schedule() -> None:
    costs = [candidate.flops for candidate in STAGE.candidates]
    assert costs == sorted(costs)
    counts = {tuple(keep_counts(one.keep_rates, n) for n in (64, 49)) for one in STAGE.candidates}
    assert len(counts) == len(STAGE.candidates) <= BUDGETS * STEEPNESSES
    for one in STAGE.candidates:
        assert one.flops == DOMAIN.cost(one.keep_rates)
        assert mean_keep_rate(one.keep_rates, 3) == pytest.approx(one.value, abs=1e-9)
        assert one.penalty == 0.0
        assert all(0.0 <= coordinate <= 1.0 for coordinate in one.features)


def test_the_anchor_is_the_unreduced_model_and_the_dearest() -> None:
    anchor = STAGE.candidates[STAGE.anchor]
    assert anchor.keep_rates == (1.0,) * 12
    assert anchor.features == (1.0, 0.0)
    assert STAGE.anchor == len(STAGE.candidates) - 1


def test_the_first_coordinate_is_the_cost() -> None:
    for first, second in itertools.pairwise(STAGE.candidates):
        assert first.features[0] <= second.features[0]
    # Uniform schedules lie where their keep rate is on the logarithmic axis, up to the rounding of counts.
    for rate in (1.0, 0.5, 0.25, 0.125, CHEAPEST):
        cost = DOMAIN.cost(uniform(12, rate, 3))
        octaves = 5.0 * (1.0 - DOMAIN.cost_coordinate(cost))
        assert 2.0**-octaves == pytest.approx(rate, abs=0.01)


def test_equal_steps_of_the_second_coordinate_are_equal_changes_of_the_schedule() -> None:
    axis = DOMAIN.axis
    grid = axis.grid(STEEPNESSES)
    assert grid[0] == 0.0
    assert [axis.coordinate(k) for k in grid] == pytest.approx([i / 16 for i in range(17)], abs=1e-9)
    changes = [
        sum(abs(a - b) for a, b in zip(DOMAIN.rates(0.3, k), DOMAIN.rates(0.3, next_k), strict=True))
        for k, next_k in itertools.pairwise(grid)
    ]
    assert max(changes) < 3.0 * min(changes)
    # In log(1 + k), as P-Sigmoid has it, the first step of 16 changes more than all of the last 8 together.
    end = math.log1p(axis.k(1.0))
    assert axis.coordinate(math.expm1(end / 16)) > 1.0 - axis.coordinate(math.expm1(end / 2))
    assert axis.coordinate(axis.k(0.37)) == pytest.approx(0.37, abs=1e-9)


def test_the_axis_ends_where_counts_stop_changing() -> None:
    end = DOMAIN.axis.k(1.0)
    for budget in DOMAIN.budgets:
        assert DOMAIN.counts(DOMAIN.rates(budget, end)) == DOMAIN.counts(DOMAIN.rates(budget, 100.0 * end))
    assert any(
        DOMAIN.counts(DOMAIN.rates(budget, 0.99 * end)) != DOMAIN.counts(DOMAIN.rates(budget, end))
        for budget in DOMAIN.budgets
    )


def test_schedules_of_one_layer_have_no_steepness() -> None:
    domain = FrontierDomain(12, 12, TINY, (64,), (10,))
    stage = Frontier(domain).stage
    assert {candidate.features[1] for candidate in stage.candidates} == {0.0}
    assert SteepnessAxis(domain.rates, (0.5,), 0.0).k(0.7) == 0.0


def test_the_domain_of_a_large_model() -> None:
    stage = Frontier(FrontierDomain(32, 3, LLAVA_7B, (576,) * 8, (60,) * 8)).stage
    assert 450 <= len(stage.candidates) <= BUDGETS * STEEPNESSES
    # Half of the values of k lie where a schedule of 30 layers changes.
    ks = sorted({round(domain_k, 6) for domain_k in FrontierDomain(32, 3, LLAVA_7B, (576,), (60,)).axis.grid(17)})
    assert ks[8] < 0.2


def test_a_split_without_vision_tokens_is_refused() -> None:
    with pytest.raises(SearchError, match="must have vision tokens"):
        FrontierDomain(12, 3, TINY, (0, 0), (10, 10))


def test_the_decision_is_the_best_score_and_the_cheapest_of_equal_ones() -> None:
    last = STAGE.anchor
    observations = [scored(last, 0.9, 0.9), scored(40, 0.9, 0.9), scored(3, 0.4, 0.4)]
    decision = decide(STAGE, observations)
    assert decision.candidate == 40
    assert frontier().final([decision]) == STAGE.candidates[40].keep_rates
    assert frontier().final([]) == (1.0,) * 12
    assert frontier().next_stage([decision]) is None


@settings(max_examples=50)
@given(st.lists(st.integers(0, 600), min_size=1, max_size=5), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_counts_of_a_split_are_those_of_the_one_rounding_rule(tokens: list[int], rates: list[float]) -> None:
    other = [0.5, 0.25, 0.1]
    counts = SplitCounts(tokens)
    same = all(keep_counts(rates, n) == keep_counts(other, n) for n in tokens)
    assert (counts(rates) == counts(other)) == same


def test_the_steepest_k_is_where_the_last_change_is() -> None:
    assert steepest(lambda k: k >= 3.7) == pytest.approx(3.7, abs=1e-6)
    assert steepest(lambda _: 0) == 0.0
