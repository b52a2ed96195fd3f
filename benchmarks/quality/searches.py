"""The searches under test, each brought to a budget in FLOPs.

Knows: P-Sigmoid, which is given its budget, and G-Search, whose penalty is chosen so that its FLOPs come near it. Does
not know: rivals, or the test split.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.quality.bench import FIRST_LAYER, Bench, Found
from scheduler_search.schedule.families import uniform

# Where the search for a penalty begins: penalties for the whole of the unreduced FLOPs, and shares that they lead to.
_KNOWN = ((0.02, 0.8), (0.1, 0.6), (0.4, 0.45), (1.6, 0.3))
_STUDIES = 3
_NEAR = 0.05

Search = Callable[[Bench, float], Found]


def target_share(bench: Bench, budget: float) -> float:
    """The FLOPs that a budget stands for: those of keeping it uniformly from layer 3 on."""
    return bench.share(uniform(bench.layers, budget, FIRST_LAYER))


def p_sigmoid(bench: Bench, budget: float) -> Found:
    """P-Sigmoid at the FLOPs of the uniform schedule, as a user gets it."""
    settings = {"algorithm": "p-sigmoid", "first_layer": FIRST_LAYER, "budget": {"as": "uniform", "keep": budget}}
    return bench.search(f"p-sigmoid.{budget:g}", settings)


class GreedySearch:
    """G-Search at every ``stride``-th layer, with a penalty per TFLOP that brings it near the budget.

    G-Search has no budget. The penalty is interpolated between those of the studies before, of all budgets and seeds,
    until the FLOPs are right to ``_NEAR``, or the nearest of ``_STUDIES`` is taken. The trials of that study count, as
    if its penalty had been known.
    """

    def __init__(self, stride: int, *, refine: bool) -> None:
        self._stride = stride
        self._refine = refine
        self._known: list[tuple[float, float]] = [(math.log(penalty), share) for penalty, share in _KNOWN]

    def __call__(self, bench: Bench, budget: float) -> Found:
        """The study whose FLOPs are nearest to the budget's."""
        target = target_share(bench, budget)
        tried: list[Found] = []
        while len(tried) < _STUDIES and not (tried and abs(tried[-1].share / target - 1) < _NEAR):
            logarithm = self._guess(target)
            tried.append(self._study(bench, math.exp(logarithm)))
            self._known.append((logarithm, tried[-1].share))
        return min(tried, key=lambda found: abs(found.share - target))

    def _guess(self, target: float) -> float:
        """Logarithm of the penalty, on the straight line between the nearest studies on both sides."""
        above = min((one for one in self._known if one[1] >= target), key=lambda one: one[1])
        below = max((one for one in self._known if one[1] < target), key=lambda one: one[1])
        return below[0] + (above[0] - below[0]) * (target - below[1]) / (above[1] - below[1])

    def _study(self, bench: Bench, penalty: float) -> Found:
        """G-Search where all FLOPs of the unreduced model together cost ``penalty``."""
        teraflops = bench.cost("search")((1.0,) * bench.layers) / 1e12
        settings = {
            "algorithm": "g-search",
            "first_layer": FIRST_LAYER,
            "stride": self._stride,
            "refine": self._refine,
            "penalty": {"tflop": penalty / teraflops},
        }
        return bench.search(f"{'g-search' if self._refine else 'greedy'}.{self._stride}.{penalty:.6f}", settings)
