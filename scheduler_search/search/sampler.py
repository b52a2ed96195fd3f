"""Optuna's own samplers in the place of ours.

Knows: Optuna. Does not know: how our suggestions come about (``surrogate``), or who evaluates and tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import GPSampler, TPESampler

from scheduler_search.search.observation import Observation, unseen
from scheduler_search.search.stage import CANDIDATE, Stage


def stand_in(name: str, stage: Stage, observations: Sequence[Observation], size: int, seed: int) -> tuple[int, ...]:
    """``size`` different candidates that Optuna's sampler ``tpe`` or ``gp`` suggests; it can repeat observed ones.

    Asked on a fresh copy of the finished trials, not on the study itself: these samplers leave what they are about to
    suggest in the storage and take it for the trial of somebody else when they are asked again after a kill. Where it
    suggests one candidate twice for a batch, the first unseen one that is farthest from those chosen takes its place.
    """
    sampler = TPESampler(n_startup_trials=1, seed=seed) if name == "tpe" else GPSampler(n_startup_trials=1, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions: dict[str, BaseDistribution] = {CANDIDATE: _distribution(stage)}
    for observation in observations:
        study.add_trial(
            optuna.create_trial(
                params={CANDIDATE: observation.candidate},
                distributions=distributions,
                value=observation.difference - stage.candidates[observation.candidate].penalty,
            )
        )
    chosen: list[int] = []
    for _ in range(size):
        candidate = int(study.ask(distributions).params[CANDIDATE])
        if candidate in chosen:
            candidate = _farthest(stage, observations, chosen)
        chosen.append(candidate)
    return tuple(chosen)


def _farthest(stage: Stage, observations: Sequence[Observation], chosen: Sequence[int]) -> int:
    free = [candidate for candidate in unseen(stage, observations) if candidate not in chosen]
    return max(free, key=lambda candidate: _distance(stage, candidate, chosen))


def _distance(stage: Stage, candidate: int, others: Sequence[int]) -> float:
    features = stage.candidates[candidate].features
    return min(math.dist(features, stage.candidates[other].features) for other in others)


def _distribution(stage: Stage) -> IntDistribution:
    return IntDistribution(0, len(stage.candidates) - 1)
