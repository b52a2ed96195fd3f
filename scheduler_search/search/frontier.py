"""The frontier: sigmoid schedules of every budget and steepness in one stage, for an export at any budget later.

Knows: the domain, a grid of mean keep rates times a grid of k, and its two coordinates. Does not know: how a candidate
is scored, in which order candidates are tried, or what is predicted between them (``front``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from scheduler_search.errors import SearchError
from scheduler_search.schedule.cost import ModelShape, SplitCost
from scheduler_search.schedule.families import sigmoid, uniform
from scheduler_search.search.stage import Candidate, Effort, Stage
from scheduler_search.search.steepness import SplitCounts, SteepnessAxis, steepest
from scheduler_search.study.states import Decision

# Mean keep rates of the grid, from the cheapest to 1, uniform in the logarithm, six to an octave: the fewer tokens
# there are, the more each of them matters.
CHEAPEST = 1.0 / 32.0
BUDGETS = 31
STEEPNESSES = 17


@dataclass(frozen=True)
class FrontierDomain:
    """Every sigmoid schedule with a mean keep rate in [``CHEAPEST``, 1], as a point of the unit square.

    The first coordinate is the prefill cost, as the logarithm of the keep rate of the uniform schedule that costs as
    much: 0 at ``CHEAPEST``, 1 without reduction. The second is k as a ``SteepnessAxis`` takes it, 1 where the keep
    counts have stopped changing at every budget.

    Args:
        layers: L, decoder layers.
        first_layer: first reduced layer, 1-based.
        shape: of the model, for FLOPs.
        vision_tokens: N of every sample of the search split.
        text_tokens: prompt tokens that are not vision tokens, of every sample.
    """

    layers: int
    first_layer: int
    shape: ModelShape
    vision_tokens: tuple[int, ...]
    text_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse a split without vision tokens: every candidate would be the same schedule."""
        if not any(self.vision_tokens):
            raise SearchError("the search split must have vision tokens", place="frontier")

    @cached_property
    def cost(self) -> SplitCost:
        """Mean prefill FLOPs over the search split, of keep rates."""
        return SplitCost(self.shape, self.vision_tokens, self.text_tokens)

    @cached_property
    def counts(self) -> SplitCounts:
        """Keep counts of the search split; schedules with equal ones are the same."""
        return SplitCounts(self.vision_tokens)

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """The grid of mean keep rates, increasing; the last is 1.0."""
        return budget_grid(BUDGETS)

    @cached_property
    def axis(self) -> SteepnessAxis:
        """Of k, up to where no budget of the grid changes its keep counts."""
        return SteepnessAxis(self.rates, self.budgets[:-1], max(self._steepest(budget) for budget in self.budgets))

    def rates(self, budget: float, k: float) -> tuple[float, ...]:
        """Keep rates of all layers with mean ``budget`` over [first_layer, L]."""
        return sigmoid(self.layers, budget, k, self.first_layer)

    def candidate(self, budget: float, k: float, rates: tuple[float, ...] | None = None) -> Candidate:
        """A point of the domain; ``rates`` where they are known already."""
        rates = rates or self.rates(budget, k)
        flops = self.cost(rates)
        features = (self.cost_coordinate(flops), self.axis.coordinate(k))
        return Candidate(budget, rates, 0.0, features, flops)

    def steepness(self, candidate: Candidate) -> float:
        """k of a point of the domain."""
        return self.axis.k(candidate.features[1])

    def cost_coordinate(self, flops: float) -> float:
        """First coordinate of a cost; strictly increasing between the costs of ``CHEAPEST`` and of no reduction."""
        constant, linear, quadratic = self._uniform_cost
        share = (flops - constant) / (linear + quadratic)
        if quadratic:
            half = linear / (2.0 * quadratic)
            share = math.sqrt(half * half + max(flops - constant, 0.0) / quadratic) - half
        return min(max(1.0 - math.log(max(share, CHEAPEST)) / math.log(CHEAPEST), 0.0), 1.0)

    def _steepest(self, budget: float) -> float:
        return steepest(lambda k: self.counts(self.rates(budget, k)))

    @cached_property
    def _uniform_cost(self) -> tuple[float, float, float]:
        """Constant, linear and quadratic part of the cost of a uniform keep rate: a parabola, but for the rounding."""
        none, half, full = (self.cost(uniform(self.layers, rate, self.first_layer)) for rate in (0.0, 0.5, 1.0))
        quadratic = max(2.0 * (full - 2.0 * half + none), 0.0)
        return none, full - none - quadratic, quadratic


@dataclass(frozen=True)
class Frontier:
    """One stage over (budget, k) that has no best candidate: what it learns is the score at every cost.

    Candidates with equal keep counts for every sample are one, the smallest k standing for it. They are ordered by
    mean prefill FLOPs, then by k. The anchor is the unreduced model, so that paired differences are losses against it.
    The decision is the candidate with the best score, the cheapest of equal ones: what a reader of the study sees
    first, and not what is exported.

    Args:
        effort: of the stage; the anchor counts as one of ``effort.initial``. Races make no sense here, where a
            candidate that is worse than another one can be cheaper: ``race_delta`` is to be 0.
    """

    domain: FrontierDomain
    effort: Effort = field(default_factory=Effort)

    @property
    def stages(self) -> int:
        """Number of stages."""
        return 1

    def next_stage(self, decisions: Sequence[Decision]) -> Stage | None:
        """The only stage; None once it is decided."""
        return None if decisions else self.stage

    def final(self, decisions: Sequence[Decision]) -> tuple[float, ...]:
        """Keep rates of the decision; of the unreduced model before it."""
        return decisions[0].keep_rates if decisions else (1.0,) * self.domain.layers

    @cached_property
    def stage(self) -> Stage:
        """The stage with all its candidates."""
        candidates = self._candidates()
        return Stage(0, "frontier", "budget", candidates, len(candidates) - 1, self.effort)

    def _candidates(self) -> tuple[Candidate, ...]:
        distinct: dict[bytes, Candidate] = {}
        for k in self.domain.axis.grid(STEEPNESSES):
            for budget in reversed(self.domain.budgets):
                rates = self.domain.rates(budget, k)
                key = self.domain.counts(rates)
                if key not in distinct:
                    distinct[key] = self.domain.candidate(budget, k, rates)
        return tuple(sorted(distinct.values(), key=lambda one: (one.flops, one.features[1])))


def budget_grid(size: int) -> tuple[float, ...]:
    """``size`` mean keep rates from ``CHEAPEST`` to 1.0, uniform in the logarithm."""
    return tuple(CHEAPEST ** (1.0 - index / (size - 1)) for index in range(size))
