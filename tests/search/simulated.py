"""Search splits whose scores are known functions, for tests that need no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from scheduler_search.search import Algorithm, GSearch, Observation, Stage, decide, next_batch, observe
from scheduler_search.search.stage import Candidate, Effort
from scheduler_search.study.states import Decision

Scores = Callable[[tuple[float, ...]], Sequence[float]]
Choose = Callable[[Stage, Sequence[Observation]], Sequence[int]]


def stage_of(
    rates: Sequence[float], *, penalty: float = 0.01, initial: int = 10, iterations: int = 20, **effort: Any
) -> Stage:
    """A one-layer stage over ``rates`` in increasing order, the last one being the anchor."""
    candidates = tuple(Candidate(rate, (rate,), penalty * rate, (rate, 0.5), rate) for rate in rates)
    return Stage(0, "layer-01", "keep_rate", candidates, len(candidates) - 1, Effort(initial, iterations, **effort))


def g_search(layers: int, max_vision_tokens: int, **settings: Any) -> GSearch:
    """A G-Search whose FLOPs are the sum of the keep rates."""
    return GSearch(layers, max_vision_tokens, math.fsum, **settings)


def scored(candidate: int, score: float, objective: float, difference: float = 0.0) -> Observation:
    """An observation of a split of one sample."""
    return Observation(candidate, score, difference, 0.0, objective, samples=1, total=1)


def observe_candidate(stage: Stage, candidate: int, scores: Scores) -> Observation:
    anchor = scores(stage.candidates[stage.anchor].keep_rates)
    return observe(stage, candidate, scores(stage.candidates[candidate].keep_rates), anchor)


def run_stage(stage: Stage, scores: Scores, choose: Choose) -> tuple[Decision, list[Observation]]:
    observations: list[Observation] = []
    while batch := choose(stage, observations):
        observations += [observe_candidate(stage, candidate, scores) for candidate in batch]
    return decide(stage, observations), observations


def run_algorithm(algorithm: Algorithm, scores: Scores, choose: Choose) -> list[Decision]:
    decisions: list[Decision] = []
    while (stage := algorithm.next_stage(decisions)) is not None:
        decisions.append(run_stage(stage, scores, choose)[0])
    return decisions


def expected_improvement(seed: int) -> Choose:
    return lambda stage, observations: next_batch(stage, observations, seed)


def threshold_scores(samples: int, needed: float, spread: float, seed: int) -> Scores:
    """0/1 scores of samples that are answered while the mean keep rate is at least a threshold around ``needed``."""
    thresholds = numpy.random.default_rng(seed).normal(needed, spread, samples)
    return lambda rates: [float(sum(rates) / len(rates) >= threshold) for threshold in thresholds]
