"""Rate families: constructors of the keep rates of all L decoder layers.

Knows: the shapes that papers give a schedule (step, withdrawal, staircase, sigmoid, free decisions). Does not know:
which tokens go, what the rates cost, or how a budget in FLOPs becomes a rate (``budget``).

Layers are 1-based in every argument; the returned tuple is 0-based, as all Python sequences of the project. Every
family returns ``layers`` floats in [0, 1] that never increase, and raises ScheduleError where it could not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scheduler_search.errors import ScheduleError
from scheduler_search.schedule.checks import check_index, check_non_increasing, check_number, check_rate

# Above this steepness e^-k and e^-k/2 are 0.0 in double precision, so that all larger k give the same rates.
_STEEPEST = 4096.0


def uniform(layers: int, rate: float, first: int = 3) -> tuple[float, ...]:
    """One rate from layer ``first`` on, 1.0 before it."""
    before, after = _domain(layers, first)
    return (1.0,) * before + (check_rate(rate, "rate"),) * after


def step(layers: int, K: int, q: float) -> tuple[float, ...]:
    """All tokens up to layer K, the share q from layer K + 1 on: the shape of FastV, whose published R is 1 - q."""
    check_index(K, "K", 0, layers)
    return (1.0,) * K + (check_rate(q, "q"),) * (layers - K)


def withdraw(layers: int, K: int) -> tuple[float, ...]:
    """All tokens up to layer K and none after: the shape of VTW."""
    return step(layers, K, 0.0)


def staircase(layers: int, boundaries: Sequence[int], rates: Sequence[float]) -> tuple[float, ...]:
    """All tokens up to layer ``boundaries[0]``, then ``rates[j]`` up to ``boundaries[j + 1]``: PyramidDrop's shape."""
    if len(boundaries) != len(rates):
        actual = f"{len(boundaries)} boundaries and {len(rates)} rates"
        raise ScheduleError("a staircase needs one rate per boundary", actual=actual)
    result = [1.0] * layers
    lowest = 0
    for boundary, rate in zip(boundaries, rates, strict=True):
        check_index(boundary, "boundary", lowest, layers)
        lowest = boundary + 1
        result[boundary:] = [check_rate(rate, "rate")] * (layers - boundary)
    return check_non_increasing(tuple(result), "staircase")


def free(layers: int, decisions: Mapping[int, float]) -> tuple[float, ...]:
    """The decided rates, each held until the next decided layer (G-Search); 1.0 before the first."""
    result = [1.0] * layers
    for layer in sorted(decisions):
        check_index(layer, "layer", 1, layers)
        result[layer - 1 :] = [check_rate(decisions[layer], f"rate of layer {layer}")] * (layers - layer + 1)
    return check_non_increasing(tuple(result), "decisions")


def sigmoid(layers: int, budget: float, k: float, first: int = 3) -> tuple[float, ...]:
    """P-Sigmoid: r(i) = 2b / (1 + e^{k(i - a)}) for i = first..L, a their midpoint (seed 003, eq. 3).

    Where the curve exceeds 1 it is clipped, and the clipped mass is given back to the layers below 1, so that the mean
    over [first, L] is the budget for every k: r(i) = min(1, exp(c - softplus(k(i - a)))) with the one c that does so.
    k = 0 is ``uniform``.

    Raises:
        ScheduleError: budget outside [0, 1], k negative or not finite, or ``first`` outside [1, L].
    """
    before, after = _domain(layers, first)
    budget = check_rate(budget, "budget")
    steepness = min(check_number(k, "k", low=0.0), _STEEPEST)
    middle = (first + layers) / 2
    softplus = [_softplus(steepness * (layer - middle)) for layer in range(first, layers + 1)]
    for clipped in range(after):
        # c is not searched for: once the number of clipped layers is known, the mean is linear in e^c. The smallest
        # number for which the next layer is not above 1 is the solution.
        weights = [math.exp(softplus[clipped] - value) for value in softplus[clipped:]]
        scale = (budget - clipped / after) * (after / math.fsum(weights))
        if scale <= 1.0:
            rates = [1.0] * clipped + [scale * weight for weight in weights]
            return (1.0,) * before + _never_increasing(rates)
    return (1.0,) * layers


def mean_keep_rate(rates: Sequence[float], first: int = 3) -> float:
    """Mean keep rate over [first, L]: what a budget b is a budget of."""
    before, after = _domain(len(rates), first)
    return math.fsum(rates[before:]) / after


def _domain(layers: int, first: int) -> tuple[int, int]:
    """Numbers of layers before ``first`` and from it on."""
    check_index(layers, "layers", 1)
    check_index(first, "first", 1, layers)
    return first - 1, layers - first + 1


def _softplus(value: float) -> float:
    """log(1 + e^value), without overflow."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _never_increasing(rates: Sequence[float]) -> tuple[float, ...]:
    """Running minimum: equal neighbours of an (almost) flat curve may differ by one rounding of exp."""
    result: list[float] = []
    for rate in rates:
        result.append(min(rate, result[-1]) if result else rate)
    return tuple(result)
