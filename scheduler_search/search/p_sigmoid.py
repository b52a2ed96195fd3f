"""P-Sigmoid: one steepness k for the keep rates of all layers, at a given budget.

Knows: seed 003, section 3.3 and equation 3, and the fixed grid of k. Does not know: how a candidate is scored, or in
which order candidates are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from scheduler_search.errors import SearchError
from scheduler_search.schedule.budget import sigmoid_rates_for_flops
from scheduler_search.schedule.cost import ModelShape, SplitCost
from scheduler_search.schedule.families import sigmoid
from scheduler_search.search.sharing import with_branches
from scheduler_search.search.stage import Candidate, Effort, Stage
from scheduler_search.search.steepness import SplitCounts, steepest, steepness_coordinate, steepness_grid
from scheduler_search.study.states import Decision

GRID = 257


@dataclass(frozen=True)
class MeanKeepRate:
    """A budget as the mean keep rate over [first, L]: b of seed 003, equation 3."""

    rate: float


@dataclass(frozen=True)
class PrefillFlops:
    """A budget as mean prefill FLOPs over the search split; never exceeded (seed 003, sections 4.3 and 9.1)."""

    flops: float


@dataclass(frozen=True)
class PSigmoid:
    """The one-parameter search of seed 003 (section 3.3), on a finite grid.

    k runs over ``GRID`` values from 0 up to where the keep counts stop changing, uniform in log(1 + k). Values with
    equal keep counts for every sample are one candidate, the smallest k standing for it. Candidates are ordered by
    mean prefill FLOPs, then by k. The anchor is k = 0, the uniform schedule; it is one of the ``initial`` trials.

    Args:
        layers: L, decoder layers.
        first_layer: first reduced layer, 1-based.
        shape: of the model, for FLOPs.
        vision_tokens: N of every sample of the search split.
        text_tokens: prompt tokens that are not vision tokens, of every sample.
        effort: of the stage; the anchor counts as one of ``effort.initial``.
    """

    layers: int
    first_layer: int
    budget: MeanKeepRate | PrefillFlops
    shape: ModelShape
    vision_tokens: tuple[int, ...]
    text_tokens: tuple[int, ...]
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        """Refuse a split without vision tokens: every k would be the same schedule."""
        if not any(self.vision_tokens):
            raise SearchError("the search split must have vision tokens", place="p-sigmoid")

    @property
    def stages(self) -> int:
        """Number of stages at most."""
        return 1

    def next_stage(self, decisions: Sequence[Decision]) -> Stage | None:
        """The only stage; None once it is decided."""
        return None if decisions else self._stage

    def final(self, decisions: Sequence[Decision]) -> tuple[float, ...]:
        """Keep rates of all layers at the decided k; those of k = 0 before the decision."""
        value = decisions[0].value if decisions else 0.0
        for candidate in self._stage.candidates:
            if candidate.value == value:
                return candidate.keep_rates
        raise SearchError("the decided k must be one of the stage's candidates", actual=value, place=self._stage.name)

    @cached_property
    def _stage(self) -> Stage:
        candidates = self._candidates()
        return Stage(
            index=0,
            name="sigmoid-k",
            parameter="k",
            candidates=candidates,
            anchor=next(index for index, candidate in enumerate(candidates) if candidate.value == 0.0),
            effort=replace(self.effort, initial=max(self.effort.initial - 1, 0)),
        )

    def _candidates(self) -> tuple[Candidate, ...]:
        counts = SplitCounts(self.vision_tokens)
        end = steepest(lambda k: counts(self._rates(k)))
        cost = SplitCost(self.shape, self.vision_tokens, self.text_tokens)
        distinct: dict[bytes, Candidate] = {}
        for k in steepness_grid(end, GRID):
            rates = self._rates(k)
            key = counts(rates)
            if key not in distinct:
                distinct[key] = Candidate(k, rates, 0.0, (steepness_coordinate(k, end),), cost(rates))
        ordered = sorted(distinct.values(), key=lambda candidate: (candidate.flops, candidate.value))
        return tuple(with_branches(ordered, counts, sum(self.text_tokens)))

    def _rates(self, k: float) -> tuple[float, ...]:
        if isinstance(self.budget, MeanKeepRate):
            return sigmoid(self.layers, self.budget.rate, k, self.first_layer)
        return sigmoid_rates_for_flops(
            self.shape, k, self.budget.flops, self.vision_tokens, self.text_tokens, self.first_layer
        )
