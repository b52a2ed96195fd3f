"""What every search algorithm is: a pure function from the decisions so far to the next stage.

Knows: the protocol, and how the settings of a study become an algorithm. Does not know: trials, scores, samplers,
databases or clocks; two calls with equal decisions give equal stages, which is what makes a study resumable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from scheduler_search.rule import shrinks_images
from scheduler_search.schedule.cost import ModelShape, SplitCost, mean_prefill_flops
from scheduler_search.schedule.families import step, uniform
from scheduler_search.search.frontier import Frontier, FrontierDomain
from scheduler_search.search.g_search import GSearch
from scheduler_search.search.p_sigmoid import MeanKeepRate, PrefillFlops, PSigmoid
from scheduler_search.search.refined import RefinedGSearch
from scheduler_search.search.sites import TowerLayers
from scheduler_search.search.stage import Effort, Stage
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.search_section import FlopsBudget, ScheduleBudget, SearchSection
from scheduler_search.study.states import Decision
from scheduler_search.study.values import SplitDescription


class Algorithm(Protocol):
    """A search as a sequence of stages. Only the ``value`` and the ``keep_rates`` of a decision are read."""

    @property
    def stages(self) -> int:
        """Number of stages at most; a search can end earlier."""

    def next_stage(self, decisions: Sequence[Decision]) -> Stage | None:
        """The stage that follows ``decisions`` (one per finished stage, in order); None where the search is over."""

    def final(self, decisions: Sequence[Decision]) -> tuple[float, ...]:
        """Keep rates of all layers under ``decisions``; layers not decided yet hold the last decided rate.

        Those of the decoder, and in front of them those of the tower where the study reduces in it.
        """


def algorithm_for(definition: StudyDefinition, layers: int, shape: ModelShape, split: SplitDescription) -> Algorithm:
    """The algorithm that a study asks for.

    Args:
        layers: L, decoder layers of the model.
        shape: of the model, for budgets in FLOPs.
        split: the search split.

    Raises:
        SearchError: the settings do not fit the model or the split.
        ScheduleError: the budget cannot be reached.
    """
    search = definition.search
    if search.algorithm == "g-search":
        greedy = _greedy(definition, layers, shape, split)
        return RefinedGSearch(greedy) if search.refine else greedy
    if search.algorithm == "frontier":
        return _frontier(search, layers, shape, split)
    return PSigmoid(
        layers=layers,
        first_layer=search.first_layer,
        budget=_budget(search, layers, shape, split),
        shape=shape,
        vision_tokens=split.vision_tokens,
        text_tokens=split.text_tokens,
        effort=_effort(search),
    )


def _greedy(definition: StudyDefinition, layers: int, shape: ModelShape, split: SplitDescription) -> GSearch:
    search, places, most = definition.search, definition.places, max(split.vision_tokens)
    tower = TowerLayers.of(shape.vision, search, most) if "vision" in places else None
    in_front = 0 if tower is None else tower.layers
    cost = SplitCost(shape, split.vision_tokens, split.text_tokens)
    shrinks = "entry" in places and shrinks_images(definition.rule_at("entry"))
    return GSearch(
        layers=layers,
        max_vision_tokens=most,
        first_layer=search.first_layer,
        stride=search.stride,
        cost=lambda rates: cost(rates[in_front:], rates[:in_front], rates[in_front] if shrinks else 1.0),
        penalty=search.penalty_value,
        penalty_unit=search.penalty_unit,
        effort=_effort(search),
        places=places,
        tower=tower,
    )


def _frontier(search: SearchSection, layers: int, shape: ModelShape, split: SplitDescription) -> Frontier:
    domain = FrontierDomain(layers, search.first_layer, shape, split.vision_tokens, split.text_tokens)
    # A candidate that loses to a dearer one is still wanted, so that nothing is raced.
    return Frontier(domain, replace(_effort(search), race_delta=0.0))


def _effort(search: SearchSection) -> Effort:
    return Effort(
        initial=search.initial,
        iterations=search.iterations,
        tolerance=search.tolerance,
        batch=search.batch,
        race_delta=search.race_delta,
        race_margin=search.race_margin,
        faithful=search.faithful,
    )


def _budget(
    search: SearchSection, layers: int, shape: ModelShape, split: SplitDescription
) -> MeanKeepRate | PrefillFlops:
    budget = search.budget
    if isinstance(budget, FlopsBudget):
        return PrefillFlops(budget.tflops * 1e12)
    if isinstance(budget, ScheduleBudget):
        rates = _other_schedule(budget, layers, search.first_layer)
        return PrefillFlops(mean_prefill_flops(shape, rates, split.vision_tokens, split.text_tokens))
    assert budget is not None  # the section requires one of p-sigmoid
    return MeanKeepRate(budget)


def _other_schedule(budget: ScheduleBudget, layers: int, first_layer: int) -> tuple[float, ...]:
    if budget.family == "uniform":
        return uniform(layers, budget.keep, first_layer)
    assert budget.layer is not None  # the section requires one of a step
    return step(layers, budget.layer, budget.keep)
