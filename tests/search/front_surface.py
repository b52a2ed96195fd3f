"""Scores that are known functions of budget and steepness, for tests of the frontier without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from scheduler_search.search import Explored, Observation, Stage, next_batch
from scheduler_search.search.frontier import Frontier, FrontierDomain
from scheduler_search.search.observation import observe
from scheduler_search.search.stage import Candidate, Effort
from tests.search.shapes import TINY

SAMPLES = 256
EFFORT = Effort(initial=8, iterations=12, tolerance=0.001)


def frontier(effort: Effort = EFFORT) -> Frontier:
    return Frontier(FrontierDomain(12, 3, TINY, (64, 49) * 4, (10, 12) * 4), effort)


class Population:
    """Samples with a difficulty and a taste for steepness; right where the schedule is good enough for them.

    Without reduction k has no influence, about 98 % are right, and all scores follow from the features of a candidate.
    """

    def __init__(self, surface: int, sample: int, size: int) -> None:
        shape = numpy.random.default_rng(surface)
        self._best, self._bend = shape.uniform(0.2, 0.9), shape.uniform(0.3, 2.0)
        self._low = shape.uniform(-1.5, 0.5)
        draw = numpy.random.default_rng([surface, sample])
        self._difficulty, self._taste = draw.normal(size=size), draw.normal(scale=0.5, size=size)

    def scores(self, features: Sequence[float]) -> list[float]:
        cost, k = features
        bend = (1.0 - cost) * (self._taste * (k - 0.5) - self._bend * (k - self._best) ** 2)
        reach = self._low + (2.0 - self._low) * cost**0.7
        return (self._difficulty < reach + bend).astype(float).tolist()  # type: ignore[no-any-return]

    def observe(self, stage: Stage, candidate: int) -> Observation:
        anchor = self.scores(stage.candidates[stage.anchor].features)
        return observe(stage, candidate, self.scores(stage.candidates[candidate].features), anchor)

    def mean(self, candidate: Candidate) -> float:
        scores = self.scores(candidate.features)
        return math.fsum(scores) / len(scores)


def explore(stage: Stage, population: Population, seed: int = 0) -> Explored:
    """Run a stage to its end."""
    observations: list[Observation] = []
    while len(observations) < stage.trials and (batch := next_batch(stage, observations, seed)):
        observations += [population.observe(stage, candidate) for candidate in batch]
    return Explored(stage, tuple(observations))
