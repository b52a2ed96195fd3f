"""Branches are where a candidate shares most work with others, by the definition."""

from __future__ import annotations

import numpy
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.search.p_sigmoid import MeanKeepRate, PSigmoid
from scheduler_search.search.sharing import branch_layers
from scheduler_search.search.steepness import SplitCounts
from tests.search.shapes import LLAVA_7B

LAYERS = 5
SIZES = (4, 9)
TEXT = 7

rates = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=LAYERS, max_size=LAYERS)


@given(st.lists(rates, min_size=1, max_size=6, unique_by=tuple), st.lists(st.sampled_from(SIZES), min_size=1))
def test_by_the_definition(candidates: list[list[float]], vision_tokens: list[int]) -> None:
    counts = SplitCounts(vision_tokens)
    tables = [counts.array(one) for one in candidates]
    found = branch_layers(tables, counts.samples, TEXT)
    for table, layer in zip(tables, found, strict=True):
        spared = {end: _spared(tables, table, end, counts.samples) for end in range(1, LAYERS)}
        assert spared.get(layer, 0) == max(spared.values())
        assert (layer == 0) == (max(spared.values()) == 0)


def _spared(
    tables: list[numpy.typing.NDArray[numpy.int64]],
    mine: numpy.typing.NDArray[numpy.int64],
    end: int,
    samples: numpy.typing.NDArray[numpy.int64],
) -> int:
    """Tokens that the others with the same counts in the first ``end`` layers need not run, layers of all left out."""
    companions = sum(bool((one[:, :end] == mine[:, :end]).all()) for one in tables) - 1
    tokens = 0
    for layer in range(end):
        if not all((one[:, : layer + 1] == mine[:, : layer + 1]).all() for one in tables):
            tokens += int((mine[:, layer] * samples).sum()) + TEXT
    return companions * tokens


def test_steep_sigmoids_share_the_layers_in_which_they_keep_twice_the_budget() -> None:
    stage = PSigmoid(32, 3, MeanKeepRate(0.125), LLAVA_7B, (576,) * 8, (70,) * 8).next_stage([])
    assert stage is not None
    assert stage.shared_layers == 2
    counts = {one: SplitCounts((576,)).array(one.keep_rates)[0] for one in stage.candidates}
    steepest = max(stage.candidates, key=lambda one: one.value)
    branch = steepest.branch_layers
    assert branch > stage.shared_layers
    assert set(counts[steepest][2:branch]) == {144}
    assert sum(set(one[2:branch]) == {144} for one in counts.values()) > len(counts) // 10
