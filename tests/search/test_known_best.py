"""Simulated searches whose best answer is known."""

from __future__ import annotations

import statistics

import pytest

from tests.search.simulated import (
    Scores,
    expected_improvement,
    g_search,
    observe_candidate,
    run_algorithm,
    run_stage,
    stage_of,
    threshold_scores,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def _remembered(scores: Scores) -> Scores:
    known: dict[tuple[float, ...], list[float]] = {}

    def remember(rates: tuple[float, ...]) -> list[float]:
        if rates not in known:
            known[rates] = list(scores(rates))
        return known[rates]

    return remember


def _regret(seed: int) -> float:
    """What one stage of 577 candidates and 200 samples leaves of the best objective of all candidates."""
    stage = stage_of([index / 576 for index in range(577)], faithful=True)
    scores = _remembered(threshold_scores(200, needed=0.4, spread=0.1, seed=seed))
    best = max(observe_candidate(stage, index, scores).objective for index in range(577))
    return best - run_stage(stage, scores, expected_improvement(seed))[0].objective


def test_a_stage_comes_close_to_the_best_of_all_candidates() -> None:
    """Mean regret of 6 searches below 0.0004.

    Over 60 other seeds the regret was 0.00016 on average and 0.0008 at most (random search: 0.00030), its standard
    deviation about 0.00014: the bound is 4 standard errors of the mean of 6 away. False alarm, for a change that only
    reshuffles the random numbers: below 1e-3. With fixed seeds and no change there is none.
    """
    assert statistics.fmean(_regret(seed) for seed in range(100, 106)) < 4e-4


def test_g_search_finds_what_each_layer_needs() -> None:
    """Every sample needs 20 tokens up to layer 5, 9 up to layer 8 and 2 up to layer 11, of 24: found exactly."""
    needed = [0, 0, 20, 20, 20, 9, 9, 9, 2, 2, 2, 0]

    def scores(rates: tuple[float, ...]) -> list[float]:
        enough = all(rate * 24 >= count - 1e-9 for rate, count in zip(rates, needed, strict=True))
        return [float(enough)] * 4

    algorithm = g_search(layers=12, max_vision_tokens=24)
    decisions = run_algorithm(algorithm, scores, expected_improvement(0))
    assert [round(one.value * 24) for one in decisions] == [20, 9, 2, 0]
    assert [round(rate * 24) for rate in algorithm.final(decisions)] == [24, 24, *needed[2:]]
