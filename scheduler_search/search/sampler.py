"""The search's suggestions as an Optuna sampler, and Optuna's own samplers in their place.

Knows: how the finished trials of an Optuna study become observations, and which trials need no sampler. Does not
know: who evaluates and tells. A sampler holds no state: made anew for every trial number, it suggests the same after
an interruption.

A stage's Optuna study has one integer parameter, ``candidate``, and each finished trial carries the user attributes
``score``, ``difference``, ``variance`` and ``objective`` of its observation. Trial 0 is the anchor under every
sampler, and domains that fit into the trials are enumerated under every sampler: nothing is enqueued.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from scheduler_search.errors import SearchError
from scheduler_search.search.observation import Observation
from scheduler_search.search.stage import CANDIDATE, Stage
from scheduler_search.search.surrogate import check_number, derived_seed, is_initial, suggest, suggest_uniform

SAMPLERS = ("expected-improvement", "random", "tpe", "gp")


def sampler_for(name: str, stage: Stage, seed: int, number: int) -> BaseSampler:
    """The Optuna sampler of trial ``number`` of a stage.

    Args:
        name: ``expected-improvement``; ``random``, uniform over the candidates not evaluated yet; or ``tpe`` and
            ``gp``, those of Optuna, which can repeat a candidate (it costs a trial, but no evaluation). All start
            with the same uniform trials.
        seed: of the study.

    Raises:
        SearchError: no sampler of that name, or no trial of that number.
    """
    if name not in SAMPLERS:
        allowed = ", ".join(SAMPLERS)
        raise SearchError(f"a sampler must be one of {allowed}", actual=repr(name), place="[search] sampler")
    check_number(stage, number)
    return StageSampler(name, stage, seed)


class StageSampler(BaseSampler):
    """Suggests from (stage, finished trials with smaller numbers, seed, trial number) and nothing else."""

    def __init__(self, name: str, stage: Stage, seed: int) -> None:
        self._name = name
        self._stage = stage
        self._seed = seed

    def infer_relative_search_space(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """The one parameter, also before any trial has it."""
        return {CANDIDATE: _distribution(self._stage)}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """The candidate of the trial."""
        observations = observations_before(study, trial.number)
        return {CANDIDATE: suggest_with(self._name, self._stage, observations, self._seed, trial.number)}

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Refuse: Optuna asks for it only where a parameter is not the one of the stage."""
        raise SearchError(
            f"a trial has the one parameter {CANDIDATE!r}, an integer over all candidates of its stage",
            actual=f"{param_name!r}, {param_distribution}",
            place=f"stage {self._stage.name!r}, trial {trial.number}",
        )


def observations_before(study: optuna.Study, number: int) -> tuple[Observation, ...]:
    """The observations of the finished trials with smaller numbers, in the order of the numbers."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    earlier = sorted((trial for trial in trials if trial.number < number), key=lambda trial: trial.number)
    return tuple(_observation(trial) for trial in earlier)


def suggest_with(name: str, stage: Stage, observations: Sequence[Observation], seed: int, number: int) -> int:
    """The candidate that the sampler ``name`` suggests for trial ``number``; a function of its arguments alone."""
    if name == "expected-improvement":
        return suggest(stage, observations, seed, number)
    if name == "random" or is_initial(stage, number):
        return suggest_uniform(stage, observations, seed, number)
    return _stand_in(name, stage, observations, derived_seed(seed, stage, number))


def _stand_in(name: str, stage: Stage, observations: Sequence[Observation], seed: int) -> int:
    """Ask a sampler of Optuna's on a fresh copy of the finished trials.

    Not on the study itself: these samplers leave what they are about to suggest in the storage and take it for the
    trial of somebody else when they are asked again after a kill.
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
    return int(study.ask(distributions).params[CANDIDATE])


def _distribution(stage: Stage) -> IntDistribution:
    return IntDistribution(0, len(stage.candidates) - 1)


def _observation(trial: FrozenTrial) -> Observation:
    return Observation(
        candidate=trial.params[CANDIDATE],
        score=trial.user_attrs["score"],
        difference=trial.user_attrs["difference"],
        variance=trial.user_attrs["variance"],
        objective=trial.user_attrs["objective"],
    )
