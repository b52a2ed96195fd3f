"""Optuna's side of a stage: one Optuna study whose trials follow ours, for dashboards and Optuna's own tools.

Knows: how our trials read in Optuna, and how Optuna's are brought up to ours. Does not know: our tables, scores, or why
a candidate is suggested. Nothing is ever read from Optuna but what it still lacks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from scheduler_search.search import CANDIDATE, Observation, Stage
from scheduler_search.storage import StudyDatabase, optuna_errors
from scheduler_search.storage.server import ConnectionLostError
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import TrialRecord

_logger = logging.getLogger("scheduler_search.optuna")


@dataclass(frozen=True)
class _Trial:
    """One of our trials, and its observation once there is one."""

    candidate: int
    observation: Observation | None


class OptunaStage:
    """The Optuna study of one stage, named ``<study>/<position>-<stage>`` so that a dashboard lists stages in order.

    Our tables are written first. Optuna's trials are brought up to ours when a stage begins and when it ends, and
    after a connection was lost; where they contradict ours, they are written anew.

    Args:
        recorded: our trials of the stage, by number.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        stage: Stage,
        database: StudyDatabase,
        storage: BaseStorage,
        recorded: Sequence[TrialRecord],
    ) -> None:
        self._name = f"{definition.name}/{stage.index + 1:02d}-{stage.name}"
        self._stage = stage
        self._distributions: dict[str, BaseDistribution] = {CANDIDATE: IntDistribution(0, len(stage.candidates) - 1)}
        self._database = database
        self._storage = storage
        self._trials = [_Trial(trial.candidate, _observation(trial)) for trial in recorded]
        self._study = -1
        self._ids: list[int] = []
        self.synchronise()

    def begin(self, number: int, candidate: int) -> None:
        """Show a trial as running, unless it is there."""
        if number == len(self._trials):
            trial = _Trial(candidate, None)
            self._trials.append(trial)
            self._write(partial(self._create, trial))

    def finish(self, number: int, observation: Observation) -> None:
        """Show the observation of a trial, unless it is there; one that a race stopped is pruned."""
        if self._trials[number].observation is None:
            self._trials[number] = trial = _Trial(observation.candidate, observation)
            self._write(lambda: self._finish(self._ids[number], trial))

    def synchronise(self) -> None:
        """Bring Optuna's trials up to ours."""
        self._database.retrying(self._synchronise)

    def _write(self, write: Callable[[], None]) -> None:
        try:
            with optuna_errors(self._database):
                write()
        except (ConnectionLostError, KeyError, UpdateFinishedTrialError):
            # The last two: somebody deleted the study, or ended the trial, in a dashboard.
            self.synchronise()

    def _synchronise(self) -> None:
        with optuna_errors(self._database):
            self._study = self._find_or_make()
            present = self._storage.get_all_trials(self._study, deepcopy=False)
            if len(present) > len(self._trials) or not all(map(self._follows, present, self._trials)):
                _logger.warning("Optuna's trials of %s are not those of the study: written anew", self._name)
                self._storage.delete_study(self._study)
                self._study = self._find_or_make()
                present = []
            self._ids = [trial._trial_id for trial in present]
            for found, trial in zip(present, self._trials, strict=False):
                if trial.observation is not None and not found.state.is_finished():
                    self._finish(found._trial_id, trial)
            for trial in self._trials[len(present) :]:
                self._create(trial)

    def _find_or_make(self) -> int:
        try:
            return self._storage.create_new_study([StudyDirection.MAXIMIZE], self._name)
        except DuplicatedStudyError:
            return self._storage.get_study_id_from_name(self._name)

    def _follows(self, found: FrozenTrial, trial: _Trial) -> bool:
        if found.params.get(CANDIDATE) != trial.candidate:
            return False
        if found.state is TrialState.RUNNING:
            return True
        return trial.observation is not None and (found.state, found.values) == _outcome(trial.observation)

    def _create(self, trial: _Trial) -> None:
        shown: dict[str, float] = {self._stage.parameter: self._stage.candidates[trial.candidate].value}
        state, values = TrialState.RUNNING, None
        if trial.observation is not None:
            state, values = _outcome(trial.observation)
            shown |= _figures(trial.observation)
        template = create_trial(
            state=state,
            values=values,
            params={CANDIDATE: trial.candidate},
            distributions=self._distributions,
            user_attrs=shown,
        )
        self._ids.append(self._storage.create_new_trial(self._study, template))

    def _finish(self, identity: int, trial: _Trial) -> None:
        assert trial.observation is not None
        for name, figure in _figures(trial.observation).items():
            self._storage.set_trial_user_attr(identity, name, figure)
        self._storage.set_trial_state_values(identity, *_outcome(trial.observation))


def _observation(trial: TrialRecord) -> Observation | None:
    return None if trial.figures is None else Observation.of(trial.candidate, trial.figures)


def _outcome(observation: Observation) -> tuple[TrialState, list[float] | None]:
    if observation.complete:
        return TrialState.COMPLETE, [observation.objective]
    return TrialState.PRUNED, None


def _figures(observation: Observation) -> dict[str, float]:
    """What a dashboard shows beside the objective; each costs a transaction."""
    if observation.complete:
        return {"score": observation.score}
    return {"score": observation.score, "samples": observation.figures.samples}
