from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.errors import ScheduleError
from scheduler_search.schedule.budget import sigmoid_rates_for_flops, solve_rate, uniform_rates_for_flops
from scheduler_search.schedule.cost import DecoderShape, ModelShape, VisionShape, mean_prefill_flops
from scheduler_search.schedule.families import mean_keep_rate, step, uniform

LAYERS = 32
SHAPE = ModelShape(
    DecoderShape(LAYERS, 4096, 32, 32, 128, 11008),
    VisionShape(24, 1024, 16, 4096, patches=576, patch_values=588, tokens_per_image=576),
    (1024, 4096, 4096),
    32064,
)
GRID = 2.0**-24


@given(st.integers(1, 50), st.floats(0.0, 1.0))
def test_solution_is_the_last_affordable_point_of_the_grid(tokens: int, share: float) -> None:
    def cost(rate: float) -> float:
        return float(math.floor(rate * tokens + 0.5))

    target = share * tokens
    rate = solve_rate(cost, target)
    assert cost(rate) <= target * (1 + 1e-12)
    assert rate == 1.0 or cost(rate + GRID) > target
    assert rate == round(rate / GRID) * GRID


def test_bounds_themselves_are_within_reach() -> None:
    assert solve_rate(lambda rate: rate, 0.0) == 0.0
    assert solve_rate(lambda rate: rate, 1.0) == 1.0
    assert solve_rate(lambda rate: rate, 0.25, low=0.2, high=0.7) == pytest.approx(0.25, abs=GRID)


def test_a_target_that_misses_a_step_by_rounding_gets_the_step() -> None:
    assert solve_rate(lambda rate: 0.1 + 0.2 if rate >= 0.5 else 0.0, 0.3) == 1.0


@pytest.mark.parametrize("target", [0.5, 3.5, -1.0])
def test_target_out_of_reach_names_what_can_be_reached(target: float) -> None:
    with pytest.raises(ScheduleError, match=r"between 1 and 3 FLOPs, which the rates can reach, but got"):
        solve_rate(lambda rate: 1.0 + 2.0 * rate, target)


def test_target_that_is_no_number_is_refused() -> None:
    with pytest.raises(ScheduleError, match="target must be finite"):
        solve_rate(lambda rate: rate, math.nan)


@settings(max_examples=30)
@given(st.floats(0.05, 0.95), st.floats(0.0, 30.0))
def test_sigmoid_meets_the_flops_of_a_step(keep: float, k: float) -> None:
    vision, text = [576, 576, 1152], [40, 41, 75]
    target = mean_prefill_flops(SHAPE, step(LAYERS, 2, keep), vision, text)
    rates = sigmoid_rates_for_flops(SHAPE, k, target, vision, text)
    flops = mean_prefill_flops(SHAPE, rates, vision, text)
    # One token more in one layer of one sample costs about 2e-5 of the prefill; at most all layers step at once.
    assert target * (1 - 4e-3) < flops <= target * (1 + 1e-9)


def test_curved_schedules_get_a_smaller_budget_at_equal_flops() -> None:
    """Seed 003, section 9.1: the sum of n_i^2 is least for equal n_i."""
    vision, text = [576], [75]
    target = mean_prefill_flops(SHAPE, step(LAYERS, 2, 0.125), vision, text)
    budgets = [mean_keep_rate(sigmoid_rates_for_flops(SHAPE, k, target, vision, text)) for k in (0.0, 0.2, 1.0)]
    assert budgets[0] == pytest.approx(0.125, abs=1.0 / 576)
    assert budgets[2] < budgets[1] < budgets[0]


def test_uniform_finds_its_own_rate_back() -> None:
    vision, text = [576, 300], [75, 20]
    rates = uniform(LAYERS, 0.3)
    target = mean_prefill_flops(SHAPE, rates, vision, text)
    found = uniform_rates_for_flops(SHAPE, target, vision, text)
    assert mean_prefill_flops(SHAPE, found, vision, text) == target
    assert found[-1] >= 0.3


@pytest.mark.slow
def test_a_grid_of_steepnesses_is_solved_in_seconds() -> None:
    """257 values of k over 1000 samples with 30 distinct prompts: 1.0 s on an idle core; six times that is allowed."""
    generator = random.Random(0)
    prompts = [(generator.choice([256, 576, 1152]), 30 + index) for index in range(30)]
    vision, text = zip(*(generator.choice(prompts) for _ in range(1000)), strict=True)
    target = mean_prefill_flops(SHAPE, step(LAYERS, 2, 0.125), vision, text)
    start = time.process_time()
    for index in range(257):
        sigmoid_rates_for_flops(SHAPE, 0.02 * index, target, vision, text)
    assert time.process_time() - start < 6.0
