"""Search splits whose scores are known functions, for tests that need no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy

from scheduler_search.search import Algorithm, Observation, Stage, decide, observe, suggest
from scheduler_search.search.stage import Candidate
from scheduler_search.study.states import Decision

Scores = Callable[[tuple[float, ...]], Sequence[float]]
Choose = Callable[[Stage, Sequence[Observation], int], int]


def stage_of(rates: Sequence[float], *, penalty: float = 0.01, initial: int = 10, iterations: int = 20) -> Stage:
    """A one-layer stage over ``rates`` in increasing order, the last one being the anchor."""
    candidates = tuple(Candidate(rate, (rate,), penalty * rate, rate) for rate in rates)
    return Stage(0, "layer-01", "keep_rate", candidates, len(candidates) - 1, initial, iterations)


def observe_candidate(stage: Stage, candidate: int, scores: Scores) -> Observation:
    anchor = scores(stage.candidates[stage.anchor].keep_rates)
    return observe(stage, candidate, scores(stage.candidates[candidate].keep_rates), anchor)


def run_stage(stage: Stage, scores: Scores, choose: Choose) -> tuple[Decision, list[Observation]]:
    observations: list[Observation] = []
    for number in range(stage.trials):
        candidate = choose(stage, observations, number)
        observations.append(observe_candidate(stage, candidate, scores))
    return decide(stage, observations), observations


def run_algorithm(algorithm: Algorithm, scores: Scores, choose: Choose) -> list[Decision]:
    decisions: list[Decision] = []
    while (stage := algorithm.next_stage(decisions)) is not None:
        decisions.append(run_stage(stage, scores, choose)[0])
    return decisions


def expected_improvement(seed: int) -> Choose:
    return lambda stage, observations, number: suggest(stage, observations, seed, number)


def threshold_scores(samples: int, needed: float, spread: float, seed: int) -> Scores:
    """0/1 scores of samples that are answered while the mean keep rate is at least a threshold around ``needed``."""
    thresholds = numpy.random.default_rng(seed).normal(needed, spread, samples)
    return lambda rates: [float(sum(rates) / len(rates) >= threshold) for threshold in thresholds]
