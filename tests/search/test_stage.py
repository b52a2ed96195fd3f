from __future__ import annotations

import dataclasses

import pytest

from scheduler_search.errors import SearchError
from scheduler_search.study.states import Decision
from tests.search.simulated import g_search, stage_of


def test_a_small_domain_is_enumerated_with_the_anchor_first() -> None:
    stage = stage_of([0.0, 0.25, 0.5, 0.75, 1.0], initial=2, iterations=2)
    assert stage.enumerated
    assert stage.trials == 5
    assert stage.order == (4, 0, 1, 2, 3)


def test_one_candidate_more_is_searched() -> None:
    stage = stage_of([index / 5 for index in range(6)], initial=2, iterations=2)
    assert not stage.enumerated
    assert stage.trials == 5


@pytest.mark.parametrize("field", ["name", "anchor", "candidates"])
def test_the_domain_digest_covers_the_choice(field: str) -> None:
    stage = stage_of([0.0, 0.5, 1.0])
    other = {"name": "layer-02", "anchor": 0, "candidates": stage_of([0.0, 0.5, 1.0], penalty=0.02).candidates}
    assert dataclasses.replace(stage, **{field: other[field]}).domain_digest != stage.domain_digest  # type: ignore[arg-type]


def test_the_domain_digest_leaves_the_number_of_trials_out() -> None:
    assert stage_of([0.0, 1.0], iterations=1).domain_digest == stage_of([0.0, 1.0], iterations=2).domain_digest


@pytest.mark.parametrize("anchor", [-1, 2])
def test_an_anchor_outside_of_the_candidates_is_refused(anchor: int) -> None:
    with pytest.raises(SearchError, match="one of 2 candidates"):
        dataclasses.replace(stage_of([0.0, 1.0]), anchor=anchor)


def test_negative_numbers_of_trials_are_refused() -> None:
    with pytest.raises(SearchError, match="must not be negative"):
        stage_of([0.0, 1.0], initial=-1)


def test_layers_before_the_first_difference_are_shared() -> None:
    search = g_search(layers=8, max_vision_tokens=4, first_layer=3, stride=2)
    first = search.next_stage([])
    assert first is not None
    assert first.shared_layers == 2
    decided = Decision(0, first.name, 2, "keep_rate", 0.5, first.candidates[2].keep_rates, score=1.0, objective=1.0)
    second = search.next_stage([decided])
    assert second is not None
    assert second.shared_layers == 4


def test_one_candidate_shares_all_layers_with_itself() -> None:
    stage = stage_of([0.5])
    assert stage.shared_layers == len(stage.candidates[0].keep_rates)
