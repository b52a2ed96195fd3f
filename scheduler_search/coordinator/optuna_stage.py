"""Optuna's side of a stage: one Optuna study whose trials follow ours and are repaired from them on resume.

Knows: Optuna's ask and tell, and how a trial that was left running is taken up again. Does not know: our tables,
scores, or why a candidate is suggested.
"""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from scheduler_search.errors import DatabaseError
from scheduler_search.search import CANDIDATE, GivenSampler, Observation, Stage
from scheduler_search.study.definition import StudyDefinition


@dataclass(frozen=True)
class Asked:
    """A trial that was asked for; ``told`` if Optuna has its outcome already."""

    trial: optuna.Trial
    told: bool


_TOLD = (TrialState.COMPLETE, TrialState.PRUNED)


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

    def ask(self, number: int, candidate: int) -> Asked:
        """The trial of that number: the recorded one, or a new one; never a second one for the same number.

        A trial that a killed process left running is taken up again.

        Raises:
            DatabaseError: another process asks for trials of this stage at the same time, or the recorded trial is of
                another candidate.
        """
        self._study.sampler = GivenSampler(self._stage, candidate)
        recorded = self._study.get_trials(deepcopy=False)
        if number < len(recorded):
            trial = optuna.trial.Trial(self._study, recorded[number]._trial_id)
        else:
            trial = self._study.ask()
        found = trial.suggest_int(CANDIDATE, 0, len(self._stage.candidates) - 1)
        if (trial.number, found) != (number, candidate):
            raise DatabaseError(
                "one coordinator at a time runs a study",
                actual=f"Optuna trial {trial.number} of candidate {found} where {number} of {candidate} was due",
                place=f"stage {self._stage.name!r}",
                remedy="stop the other process, then `scheduler-search resume` this study",
            )
        told = number < len(recorded) and recorded[number].state in _TOLD
        return Asked(trial, told)

    def tell(self, asked: Asked, observation: Observation) -> None:
        """Give Optuna the observation of a trial, unless it has it; one that a race stopped is pruned."""
        if asked.told:
            return
        value = self._stage.candidates[observation.candidate].value
        for name, figure in ((self._stage.parameter, value), *vars(observation.figures).items()):
            asked.trial.set_user_attr(name, figure)
        if observation.complete:
            self._study.tell(asked.trial, observation.objective)
        else:
            self._study.tell(asked.trial, state=TrialState.PRUNED)
