"""One stage of a study: ask, evaluate, record, tell, decide.

Our tables are the truth. Every step is written to them first and to Optuna second, so that after a kill at any moment
Optuna's trials are at most one step behind and are brought up from ours. Suggestions depend on the recorded
observations, the seed, the stage and the trial number only; a resumed stage continues exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from optuna.storages import BaseStorage

from scheduler_search.coordinator.evaluations import Evaluations
from scheduler_search.coordinator.events import Listener, StageDecided, StageStarted, TrialFinished
from scheduler_search.coordinator.optuna_stage import OptunaStage
from scheduler_search.errors import DatabaseError
from scheduler_search.schedule.values import Reduction
from scheduler_search.search import Observation, Stage, decide, observe
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import Decision, StageRecord, TrialRecord


class StageRunner:
    """Runs one stage to its decision. One instance per stage and process."""

    def __init__(
        self,
        definition: StudyDefinition,
        stage: Stage,
        record: StageRecord,
        database: StudyDatabase,
        evaluations: Evaluations,
        storage: BaseStorage,
        listener: Listener,
    ) -> None:
        self._definition = definition
        self._stage = stage
        self._record = record
        self._database = database
        self._evaluations = evaluations
        self._listener = listener
        self._optuna = OptunaStage(definition, stage, storage)
        self._observations: list[Observation] = []

    def run(self) -> Decision:
        """Run the trials that are missing and record the decision."""
        trials = {trial.number: trial for trial in self._database.trials(self._record)}
        finished = sum(trial.finished for trial in trials.values())
        self._listener(StageStarted(self._stage.name, self._stage.parameter, self._stage.trials, finished))
        for number in range(self._stage.trials):
            self._observations.append(self._run_trial(number, trials.get(number)))
        decision = decide(self._stage, self._observations)
        self._database.decide(self._record, decision)
        self._listener(StageDecided(decision))
        return decision

    def _run_trial(self, number: int, recorded: TrialRecord | None) -> Observation:
        asked = self._optuna.ask(number)
        candidate = asked.candidate
        if recorded is not None and recorded.candidate != candidate:
            raise DatabaseError(
                "the trials of a stage must be the ones that its recorded history leads to",
                actual=f"candidate {candidate} instead of {recorded.candidate}",
                place=f"stage {self._stage.name!r}, trial {number}",
                remedy="the database was edited, or written by another version of the software",
            )
        if recorded is not None and recorded.finished:
            observation = _recorded_observation(recorded)
        else:
            observation = self._observe(number, candidate)
        self._optuna.tell(asked, observation)
        if recorded is None or not recorded.finished:
            self._report(number, observation)
        return observation

    def _observe(self, number: int, candidate: int) -> Observation:
        reduction = self._reduction(candidate)
        key = self._evaluations.key("search", reduction)
        self._database.begin_trial(self._record, number, candidate, reduction.keep_rates, key)
        scores = self._scores(reduction)
        observation = observe(self._stage, candidate, scores, self._anchor_scores)
        self._database.finish_trial(
            self._record,
            number,
            score=observation.score,
            difference=observation.difference,
            variance=observation.variance,
            objective=observation.objective,
        )
        return observation

    @cached_property
    def _anchor_scores(self) -> Sequence[float]:
        return self._scores(self._reduction(self._stage.anchor))

    def _scores(self, reduction: Reduction) -> tuple[float, ...]:
        return self._evaluations.scores("search", reduction, self._stage.shared_layers)

    def _reduction(self, candidate: int) -> Reduction:
        return Reduction(self._stage.candidates[candidate].keep_rates, self._definition.resolved_rule)

    def _report(self, number: int, observation: Observation) -> None:
        best = decide(self._stage, [*self._observations, observation])
        self._listener(
            TrialFinished(
                stage=self._stage.name,
                number=number,
                value=self._stage.candidates[observation.candidate].value,
                score=observation.score,
                objective=observation.objective,
                best_value=best.value,
                best_score=best.score,
            )
        )


def _recorded_observation(trial: TrialRecord) -> Observation:
    # A finished trial has all four numbers: the store writes them in one statement.
    assert trial.score is not None
    assert trial.difference is not None
    assert trial.variance is not None
    assert trial.objective is not None
    return Observation(trial.candidate, trial.score, trial.difference, trial.variance, trial.objective)
