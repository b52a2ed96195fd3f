from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.errors import SearchError
from scheduler_search.rule import Place
from scheduler_search.schedule.counts import keep_count
from scheduler_search.search import Effort, GSearch, Observation, Stage, decide
from scheduler_search.search.g_search import TERA
from scheduler_search.search.refined import RefinedGSearch
from scheduler_search.search.sites import TowerLayers
from tests.search.simulated import g_search, run_algorithm, scored


def _decide(algorithm: GSearch, *counts: int) -> list:
    decisions = []
    for count in counts:
        stage = algorithm.next_stage(decisions)
        assert stage is not None
        decisions.append(decide(stage, [scored(count, 0.5, 0.5)]))
    return decisions


def test_stages_go_from_shallow_to_deep_in_steps_of_stride() -> None:
    algorithm = g_search(layers=12, max_vision_tokens=64)
    assert algorithm.stages == 4
    names = [algorithm.next_stage(_decide(algorithm, *[64] * index)).name for index in range(4)]  # type: ignore[union-attr]
    assert names == ["layer-03", "layer-06", "layer-09", "layer-12"]
    assert algorithm.next_stage(_decide(algorithm, 64, 64, 64, 64)) is None


def test_the_first_stage_offers_every_count_and_starts_at_all_tokens() -> None:
    stage = g_search(layers=12, max_vision_tokens=64).next_stage([])
    assert stage is not None
    assert [keep_count(one.value, 64) for one in stage.candidates] == list(range(65))
    assert stage.candidates[stage.anchor].keep_rates == (1.0,) * 12
    assert stage.trials == 31
    assert [one.features[0] for one in stage.candidates[:: stage.anchor]] == [0.0, 1.0]
    assert stage.candidates[32].penalty == 0.005


def test_later_layers_hold_the_candidate_and_earlier_ones_their_decision() -> None:
    algorithm = g_search(layers=8, max_vision_tokens=4, first_layer=3, stride=2)
    stage = algorithm.next_stage(_decide(algorithm, 3))
    assert stage is not None
    assert len(stage.candidates) == 4
    assert stage.candidates[2].keep_rates == (1.0, 1.0, 0.75, 0.75, 0.5, 0.5, 0.5, 0.5)
    assert stage.candidates[stage.anchor].keep_rates == algorithm.final(_decide(algorithm, 3))


def test_no_tokens_left_ends_the_search() -> None:
    algorithm = g_search(layers=12, max_vision_tokens=64)
    decisions = _decide(algorithm, 10, 0)
    assert algorithm.next_stage(decisions) is None
    assert algorithm.final(decisions) == (1.0, 1.0, *[10 / 64] * 3, *[0.0] * 7)


def test_without_decisions_every_token_is_kept() -> None:
    assert g_search(layers=5, max_vision_tokens=2).final([]) == (1.0,) * 5


@given(st.integers(1, 5000), st.data())
def test_a_rate_keeps_its_count_for_the_largest_sample(vision_tokens: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, vision_tokens))
    assert keep_count(count / vision_tokens, vision_tokens) == count
    assert round(count / vision_tokens * vision_tokens) == count


@pytest.mark.parametrize("name", ["layers", "max_vision_tokens", "first_layer", "stride"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(SearchError, match=f"{name} must be at least 1"):
        g_search(**({"layers": 4, "max_vision_tokens": 4} | {name: 0}))


def test_a_first_layer_behind_the_last_is_refused() -> None:
    with pytest.raises(SearchError, match="first_layer must be at most 4"):
        g_search(layers=4, max_vision_tokens=4, first_layer=5)


class _Table:
    """Scores that are made up when they are asked for: a trend over the mean keep rate, and noise.

    A trend just above the penalty tempts greed to lose a little at every stage; noise makes scores jump anywhere.
    """

    def __init__(self, samples: int, trend: float, noise: float, seed: int) -> None:
        self._samples, self._trend, self._noise = samples, trend, noise
        self._known: dict[tuple[float, ...], list[float]] = {}
        self.generator = numpy.random.default_rng(seed)

    def __call__(self, rates: tuple[float, ...]) -> Sequence[float]:
        if rates not in self._known:
            drawn = self._trend * sum(rates) / len(rates) + self._noise * self.generator.random(self._samples)
            self._known[rates] = list(drawn.clip(0.0, 1.0))
        return self._known[rates]

    def mean(self, rates: tuple[float, ...]) -> float:
        return math.fsum(self(rates)) / self._samples

    def choose(self, stage: Stage, observations: Sequence[Observation]) -> Sequence[int]:
        """The anchor, then anything."""
        if len(observations) == stage.trials:
            return ()
        return (int(self.generator.integers(len(stage.candidates))) if observations else stage.anchor,)


TABLES = st.builds(
    _Table,
    samples=st.integers(1, 7),
    trend=st.sampled_from([-0.5, 0.0, 0.011, 0.3]),
    noise=st.sampled_from([0.0, 0.002, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
SEARCHES = st.builds(
    g_search,
    layers=st.integers(3, 9),
    max_vision_tokens=st.integers(1, 12),
    first_layer=st.just(2),
    stride=st.integers(1, 3),
    penalty=st.sampled_from([0.0, 0.01, 0.3]),
    effort=st.just(Effort(1, 2)),
)


@settings(max_examples=200)
@given(SEARCHES, TABLES)
def test_the_score_falls_by_at_most_the_penalty_in_total(algorithm: GSearch, scores: _Table) -> None:
    """The losses telescope, for arbitrary scores and arbitrary choices of trials."""
    final = algorithm.final(run_algorithm(algorithm, scores, scores.choose))
    whole = scores.mean((1.0,) * algorithm.layers)
    assert scores.mean(final) >= whole - algorithm.penalty * (1.0 - final[-1]) - 1e-9


@settings(max_examples=200)
@given(SEARCHES, TABLES)
def test_per_teraflop_it_falls_by_at_most_the_price_of_what_is_saved(greedy: GSearch, scores: _Table) -> None:
    """Refined or not: the anchor of a stage is the decision of the one before, at the same price."""
    cost = dataclasses.replace(greedy, cost=lambda rates: TERA * math.fsum(rates), penalty_unit="tflop")
    for algorithm in (cost, RefinedGSearch(cost)):
        final = algorithm.final(run_algorithm(algorithm, scores, scores.choose))
        whole, saved = scores.mean((1.0,) * greedy.layers), greedy.layers - math.fsum(final)
        assert scores.mean(final) >= whole - greedy.penalty * saved - 1e-9
        assert list(final) == sorted(final, reverse=True)


@settings(max_examples=100)
@given(SEARCHES, TABLES)
def test_refining_costs_at_most_another_penalty(greedy: GSearch, scores: _Table) -> None:
    algorithm = RefinedGSearch(greedy)
    decisions = run_algorithm(algorithm, scores, scores.choose)
    assert len(decisions) <= algorithm.stages
    final = algorithm.final(decisions)
    assert scores.mean(final) >= scores.mean((1.0,) * greedy.layers) - 2 * greedy.penalty - 1e-9


ALL: tuple[Place, ...] = ("vision", "entry", "decoder")
PLACES = st.sets(st.sampled_from(ALL), min_size=1).map(lambda found: tuple(one for one in ALL if one in found))


@st.composite
def _wide_searches(draw: st.DrawFn) -> GSearch:
    """Over any places, images with another number of patches than samples have vision tokens among them."""
    tower = TowerLayers(4, draw(st.integers(2, 4)), 2, draw(st.integers(1, 3)), tokens=draw(st.integers(1, 9)))
    greedy, places = draw(SEARCHES), draw(PLACES)
    return dataclasses.replace(greedy, places=places, tower=tower if "vision" in places else None)


@settings(max_examples=50)
@given(_wide_searches(), TABLES)
def test_over_all_places_the_losses_telescope_too(algorithm: GSearch, scores: _Table) -> None:
    decisions = run_algorithm(algorithm, scores, scores.choose)
    final = algorithm.final(decisions)
    assert len(final) == algorithm.sites.total
    assert list(final) == sorted(final, reverse=True)
    assert [one.value for one in decisions] == sorted((one.value for one in decisions), reverse=True)
    whole = scores.mean((1.0,) * len(final))
    assert scores.mean(final) >= whole - algorithm.penalty * (1.0 - final[-1]) - 1e-9


TOWER = TowerLayers(layers=6, used_layers=5, first_layer=2, stride=3, tokens=4)


def test_an_entry_is_one_stage_that_all_layers_hold() -> None:
    algorithm = g_search(layers=5, max_vision_tokens=4, places=("entry",))
    stage = algorithm.next_stage([])
    assert stage is not None
    assert (stage.name, stage.shared_layers, algorithm.stages) == ("entry", 0, 1)
    assert [one.keep_rates for one in stage.candidates] == [(count / 4,) * 5 for count in range(5)]
    assert {one.features[1] for one in stage.candidates} == {1 / 5}
    assert algorithm.final(_decide(algorithm, 1)) == (0.25,) * 5


def test_a_tower_goes_first_and_layers_behind_it_hold_its_last_rate() -> None:
    algorithm = g_search(layers=3, max_vision_tokens=8, stride=1, first_layer=2, places=ALL, tower=TOWER)
    names = ["tower-02", "tower-05", "entry", "layer-02", "layer-03"]
    assert [site.name for site in algorithm.sites.all] == names
    depths = [algorithm.sites.depth(site) for site in algorithm.sites.all]
    assert depths == [2 / 9, 5 / 9, 7 / 9, 8 / 9, 1.0]
    stage = algorithm.next_stage([])
    assert stage is not None
    assert [one.value for one in stage.candidates] == [0.25, 0.5, 0.75, 1.0]
    assert stage.candidates[1].keep_rates == (1.0,) + (0.5,) * 8
    assert stage.shared_layers == 0
    # Of 4 patches 2 and 1 are left, of 8 tokens then 2, and from there on the decoder takes over.
    decisions = _decide(algorithm, 1, 0)
    assert algorithm.final(decisions) == (1.0, *(0.5,) * 3, *(0.25,) * 5)
    stage = algorithm.next_stage(decisions)
    assert stage is not None
    assert [one.value for one in stage.candidates] == [0.0, 0.125, 0.25]
    stage = algorithm.next_stage([*decisions, decide(stage, [scored(2, 0.5, 0.5)])])
    assert stage is not None
    assert (stage.name, stage.tower_layers, stage.shared_layers) == ("layer-02", 6, 1)


def test_the_anchor_is_the_rate_before_even_where_no_count_is_equal_to_it() -> None:
    tower = dataclasses.replace(TOWER, tokens=3)
    algorithm = g_search(layers=3, max_vision_tokens=8, places=("vision", "entry"), tower=tower)
    decisions = _decide(algorithm, 1, 1)
    stage = algorithm.next_stage(decisions)
    assert stage is not None
    assert [one.value for one in stage.candidates] == [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 2 / 3]
    assert stage.candidates[stage.anchor].keep_rates == algorithm.final(decisions)


def test_refining_stages_go_on_from_the_greedy_ones() -> None:
    algorithm = RefinedGSearch(g_search(layers=6, max_vision_tokens=8, first_layer=2, stride=3))
    greedy = _decide(algorithm.greedy, 6, 2)
    stage = algorithm.next_stage(greedy)
    assert stage is not None
    # Rates after the greedy stages: 8 6 6 6 2 2 of 8. Layer 2 may rise to 8, layer 3 to what layer 2 has then.
    assert (stage.name, [round(8 * one.value) for one in stage.candidates]) == ("layer-02-raised", [6, 7, 8])
    assert stage.candidates[stage.anchor].keep_rates == algorithm.final(greedy)
    decided = [*greedy, decide(stage, [scored(1, 0.5, 0.5)])]
    following = algorithm.next_stage(decided)
    assert following is not None
    assert (following.name, [round(8 * one.value) for one in following.candidates]) == ("layer-03-raised", [6, 7])


def test_layers_are_raised_from_shallow_to_deep_and_lowered_on_the_way_back() -> None:
    algorithm = RefinedGSearch(g_search(layers=6, max_vision_tokens=8, first_layer=2, stride=3))
    decisions, stages = [*_decide(algorithm.greedy, 6, 2)], []
    while (stage := algorithm.next_stage(decisions)) is not None:
        stages.append((stage.name, [round(8 * one.value) for one in stage.candidates]))
        decisions.append(decide(stage, [scored(stage.anchor, 0.5, 0.5)]))
    # 8 6 6 6 2 2 as it is: only the layers at a drop can move.
    raised = [("layer-02-raised", [6, 7, 8]), ("layer-05-raised", [2, 3, 4, 5, 6])]
    lowered = [("layer-06-lowered", [0, 1, 2]), ("layer-04-lowered", [2, 3, 4, 5, 6])]
    assert stages == raised + lowered
