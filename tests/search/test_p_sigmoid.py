from __future__ import annotations

import itertools

import pytest

from scheduler_search.errors import ScheduleError, SearchError
from scheduler_search.schedule.cost import mean_prefill_flops
from scheduler_search.schedule.counts import keep_counts
from scheduler_search.schedule.families import mean_keep_rate, sigmoid, step
from scheduler_search.search import Effort, MeanKeepRate, PrefillFlops, PSigmoid, Stage, decide
from scheduler_search.search.p_sigmoid import GRID
from tests.search.shapes import LLAVA_7B, TINY
from tests.search.simulated import scored

VISION, TEXT = (64, 64, 40), (10, 12, 10)


def _stage(budget: MeanKeepRate | PrefillFlops, **effort: int) -> Stage:
    stage = PSigmoid(12, 3, budget, TINY, VISION, TEXT, Effort(**effort)).next_stage([])
    assert stage is not None
    return stage


def _counts(rates: tuple[float, ...]) -> list[tuple[int, ...]]:
    return [keep_counts(rates, tokens) for tokens in sorted(set(VISION))]


@pytest.mark.parametrize("rate", [0.02, 0.125, 0.5, 0.7, 0.97])
def test_every_candidate_has_the_budget_and_its_own_counts(rate: float) -> None:
    stage = _stage(MeanKeepRate(rate))
    for one in stage.candidates:
        assert mean_keep_rate(one.keep_rates, 3) == pytest.approx(rate, abs=1e-9)
        assert one.penalty == 0.0
        assert 0.0 <= one.features[0] <= 1.0
    counts = [_counts(one.keep_rates) for one in stage.candidates]
    assert all(first != second for first, second in itertools.combinations(counts, 2))
    assert len(stage.candidates) <= GRID


def test_the_grid_ends_where_the_counts_stop_changing() -> None:
    steepest = max(_stage(MeanKeepRate(0.3)).candidates, key=lambda one: one.value)
    for factor in (1.0, 1.5, 10.0, 1000.0):
        assert _counts(sigmoid(12, 0.3, steepest.value * factor, 3)) == _counts(steepest.keep_rates)
    # The largest k of the grid is the smallest with the last counts, or equal to one before it.
    limit = _counts(sigmoid(12, 0.3, 1e6, 3))
    assert _counts(steepest.keep_rates) == limit


def test_candidates_are_in_order_of_cost_and_the_anchor_is_uniform() -> None:
    stage = _stage(MeanKeepRate(0.25))
    costs = [mean_prefill_flops(TINY, one.keep_rates, VISION, TEXT) for one in stage.candidates]
    assert costs == sorted(costs)
    assert stage.candidates[stage.anchor].value == 0.0
    assert stage.candidates[stage.anchor].keep_rates == sigmoid(12, 0.25, 0.0, 3)


def test_the_anchor_is_one_of_the_initial_trials() -> None:
    assert _stage(MeanKeepRate(0.25), initial=10, iterations=20).trials == 30
    assert _stage(MeanKeepRate(0.25), initial=1, iterations=0).trials == 1


def test_equal_counts_are_one_candidate_with_the_smallest_k() -> None:
    stage = PSigmoid(12, 11, MeanKeepRate(0.5), TINY, (3,), (1,)).next_stage([])
    assert stage is not None
    # Two layers share 2b = 1 of 3 tokens: 1.5 and 1.5 at first, rounded up; then one goes down, then the other up.
    counts = {keep_counts(one.keep_rates, 3)[10:]: one.value for one in stage.candidates}
    assert set(counts) == {(2, 2), (2, 1), (3, 0)}
    assert counts[2, 2] == 0.0 < counts[2, 1] < counts[3, 0]
    # r(11) = 1 / (1 + e^{-k/2}) reaches 5/6 at k = 2 ln 5, on the grid's last value.
    assert counts[3, 0] == pytest.approx(3.2189, rel=1e-3)


def test_a_budget_of_everything_has_one_candidate() -> None:
    stage = _stage(MeanKeepRate(1.0))
    assert [one.keep_rates for one in stage.candidates] == [(1.0,) * 12]
    assert stage.trials == 1


def test_a_budget_in_flops_is_never_exceeded_and_nearly_spent() -> None:
    target = mean_prefill_flops(LLAVA_7B, step(32, 2, 0.125), [576], [60])
    stage = PSigmoid(32, 3, PrefillFlops(target), LLAVA_7B, (576,), (60,)).next_stage([])
    assert stage is not None
    costs = [mean_prefill_flops(LLAVA_7B, one.keep_rates, [576], [60]) for one in stage.candidates]
    assert max(costs) <= target
    # One token more in every layer would cost about 0.7 % more: no candidate is further below.
    assert min(costs) > target * 0.99


def test_a_budget_in_flops_out_of_reach_is_refused() -> None:
    with pytest.raises(ScheduleError, match="which the rates can reach"):
        _stage(PrefillFlops(1.0))


def test_the_decision_is_found_again_by_its_value() -> None:
    algorithm = PSigmoid(12, 3, MeanKeepRate(0.25), TINY, VISION, TEXT)
    stage = algorithm.next_stage([])
    assert stage is not None
    decision = decide(stage, [scored(len(stage.candidates) - 1, 1.0, 1.0)])
    assert algorithm.next_stage([decision]) is None
    again = PSigmoid(12, 3, MeanKeepRate(0.25), TINY, VISION, TEXT)
    assert again.final([decision]) == decision.keep_rates
    assert again.final([]) == sigmoid(12, 0.25, 0.0, 3)
    other = PSigmoid(12, 3, MeanKeepRate(0.3), TINY, VISION, TEXT)
    with pytest.raises(SearchError, match="one of the stage's candidates"):
        other.final([decision])


def test_equal_settings_make_equal_stages() -> None:
    assert _stage(MeanKeepRate(0.25)).domain_digest == _stage(MeanKeepRate(0.25)).domain_digest
    assert _stage(MeanKeepRate(0.25)).domain_digest != _stage(MeanKeepRate(0.26)).domain_digest


def test_a_split_without_images_is_refused() -> None:
    with pytest.raises(SearchError, match="vision tokens"):
        PSigmoid(12, 3, MeanKeepRate(0.25), TINY, (0, 0), (5, 5))
