"""Optuna's side of a stage: one Optuna study whose trials follow ours and are repaired from them on resume.

Knows: Optuna's ask and tell, and how a trial that was left running is taken up again. Does not know: our tables,
scores, or why a candidate is suggested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
import torch
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from scheduler_search.errors import DatabaseError
from scheduler_search.search import CANDIDATE, Observation, Stage, sampler_for
from scheduler_search.study.definition import StudyDefinition


@dataclass(frozen=True)
class Asked:
    """A trial that was asked for; ``told`` if Optuna has its value already."""

    trial: optuna.Trial
    candidate: int
    told: bool


class OptunaStage:
    """The Optuna study of one stage, named ``<study>/<position>-<stage>`` so that a dashboard lists stages in order."""

    def __init__(self, definition: StudyDefinition, stage: Stage, storage: BaseStorage) -> None:
        self._definition = definition
        self._stage = stage
        self._study = optuna.create_study(
            storage=storage,
            study_name=f"{definition.name}/{stage.index + 1:02d}-{stage.name}",
            direction="maximize",
            load_if_exists=True,
        )

    def ask(self, number: int) -> Asked:
        """The trial of that number: the recorded one, or a new one; never a second one for the same number.

        A trial that a killed process left running keeps its number, and with it its random stream.

        Raises:
            DatabaseError: another process asks for trials of this stage at the same time.
        """
        self._study.sampler = sampler_for(self._definition.search.sampler, self._stage, self._definition.seed, number)
        with _one_thread():
            recorded = self._study.get_trials(deepcopy=False)
            if number < len(recorded):
                trial = optuna.trial.Trial(self._study, recorded[number]._trial_id)
            else:
                trial = self._study.ask()
            candidate = trial.suggest_int(CANDIDATE, 0, len(self._stage.candidates) - 1)
        if trial.number != number:
            raise DatabaseError(
                "one coordinator at a time runs a study",
                actual=f"Optuna trial {trial.number} where {number} was due",
                place=f"stage {self._stage.name!r}",
                remedy="stop the other process, then `scheduler-search resume` this study",
            )
        told = number < len(recorded) and recorded[number].state is TrialState.COMPLETE
        return Asked(trial, candidate, told)

    def tell(self, asked: Asked, observation: Observation) -> None:
        """Give Optuna the observation of a trial, unless it has it."""
        if asked.told:
            return
        attributes = {
            self._stage.parameter: self._stage.candidates[observation.candidate].value,
            "score": observation.score,
            "difference": observation.difference,
            "variance": observation.variance,
            "objective": observation.objective,
        }
        for name, value in attributes.items():
            asked.trial.set_user_attr(name, value)
        self._study.tell(asked.trial, observation.objective)


@contextmanager
def _one_thread() -> Iterator[None]:
    """A Gaussian process is fitted on one thread: beside other work, two threads take fifty times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
