"""Budgets given as FLOPs: the rate whose schedule costs what was asked for.

Knows: how to invert a cost that grows with a rate. Does not know: what a rate does to accuracy.

Keep counts are whole tokens, so that cost is a step function of the rate, and an exact solution rarely exists. The
convention: rates on a grid of 2^24 equal steps from ``low`` to ``high``; the answer is the largest of them whose cost
does not exceed the target. It is at most 2^-24 below the end of its step, and the same on every machine that computes
the same costs. A target below the cost at ``low`` is out of reach; so is one above the cost at ``high``: a budget that
nobody could spend is a mistake in the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scheduler_search.errors import ScheduleError
from scheduler_search.schedule.checks import check_number, check_rate
from scheduler_search.schedule.cost import ModelShape, SplitCost
from scheduler_search.schedule.families import sigmoid, uniform

_STEPS = 1 << 24
# Two sums of the same costs in another order differ by roundings; they are the same budget.
_ROUNDING = 1.0 + 1e-12


def solve_rate(cost: Callable[[float], float], target: float, low: float = 0.0, high: float = 1.0) -> float:
    """Largest rate on the grid of [low, high] whose cost is at most ``target``; ``cost`` must not decrease.

    Raises:
        ScheduleError: the target is out of reach, with the range that can be reached.
    """
    check_rate(low, "low")
    check_rate(high, "high")
    check_number(target, "target")
    cheapest, dearest = cost(low), cost(high)
    allowed = target * _ROUNDING
    if not (cheapest <= allowed and target <= dearest * _ROUNDING):
        rule = f"the budget must be between {cheapest:.6g} and {dearest:.6g} FLOPs, which the rates can reach"
        raise ScheduleError(rule, actual=f"{target:.6g}")
    affordable, too_dear = 0, _STEPS + 1
    while too_dear - affordable > 1:
        middle = (affordable + too_dear) // 2
        if cost(_rate(low, high, middle)) <= allowed:
            affordable = middle
        else:
            too_dear = middle
    return _rate(low, high, affordable)


def uniform_rates_for_flops(
    shape: ModelShape,
    target_flops: float,
    vision_tokens: Sequence[int],
    text_tokens: Sequence[int],
    first: int = 3,
) -> tuple[float, ...]:
    """Rates of ``families.uniform`` whose mean prefill FLOPs are the largest that do not exceed ``target_flops``."""
    return family_rates_for_flops(
        lambda rate: uniform(shape.decoder.layers, rate, first), shape, target_flops, vision_tokens, text_tokens
    )


def sigmoid_rates_for_flops(
    shape: ModelShape,
    k: float,
    target_flops: float,
    vision_tokens: Sequence[int],
    text_tokens: Sequence[int],
    first: int = 3,
) -> tuple[float, ...]:
    """Rates of ``families.sigmoid`` at steepness k, with the budget that ``target_flops`` pays for.

    Seed 003 (sections 4.3 and 9.1) lowers the budget by hand, about 7 %, until the FLOPs are those of FastV; here that
    is solved.
    """
    return family_rates_for_flops(
        lambda rate: sigmoid(shape.decoder.layers, rate, k, first), shape, target_flops, vision_tokens, text_tokens
    )


def family_rates_for_flops(
    family: Callable[[float], tuple[float, ...]],
    shape: ModelShape,
    target_flops: float,
    vision_tokens: Sequence[int],
    text_tokens: Sequence[int],
) -> tuple[float, ...]:
    """Rates of a one-parameter family, growing with a parameter in [0, 1], under a target of mean prefill FLOPs."""
    cost = SplitCost(shape, vision_tokens, text_tokens)
    return family(solve_rate(lambda rate: cost(family(rate)), target_flops))


def _rate(low: float, high: float, step: int) -> float:
    # At the last step exactly ``high``, which low + (high - low) might miss by one rounding.
    return high if step == _STEPS else low + (high - low) * (step / _STEPS)
