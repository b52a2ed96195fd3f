"""One stage of a study: ask, evaluate, record, tell, decide.

Our tables are the truth. Every step is written to them first and to Optuna second, so that after a kill at any moment
Optuna's trials are at most one step behind and are brought up from ours. Suggestions depend on the recorded
observations, the seed and the stage only; a resumed stage continues exactly. What a trial costs does not grow with the
number of trials before it, but for what the search itself makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from optuna.storages import BaseStorage

from scheduler_search.coordinator.evaluations import Evaluations, Request
from scheduler_search.coordinator.events import Listener, StageDecided, StageStarted, TrialFinished
from scheduler_search.coordinator.optuna_stage import OptunaStage
from scheduler_search.errors import DatabaseError
from scheduler_search.schedule.values import Reduction
from scheduler_search.search import Explored, Observation, Stage, decide, incumbent, next_batch, observe, race_for
from scheduler_search.search.observation import TIE
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import Decision, StageRecord, TrialRecord


@dataclass(frozen=True)
class _Trial:
    """A trial that was asked for, and the observation of it where it is recorded."""

    number: int
    candidate: int
    recorded: Observation | None


class StageRunner:
    """Runs one stage to its decision. One instance per stage and process.

    Args:
        earlier: the decided stages before it, for what their curves say about this one's.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        stage: Stage,
        record: StageRecord,
        earlier: Sequence[Explored],
        database: StudyDatabase,
        evaluations: Evaluations,
        storage: BaseStorage,
        listener: Listener,
    ) -> None:
        self._definition = definition
        self._stage = stage
        self._record = record
        self._earlier = tuple(earlier)
        self._database = database
        self._evaluations = evaluations
        self._listener = listener
        self._storage = storage
        self._observations: list[Observation] = []
        self._leading: list[Observation] = []
        self._scores: dict[int, tuple[float, ...]] = {}

    def run(self) -> Decision:
        """Run the trials that are missing and record the decision."""
        recorded = self._database.trials(self._record)
        trials = {trial.number: trial for trial in recorded}
        finished = sum(trial.figures is not None for trial in recorded)
        optuna = OptunaStage(self._definition, self._stage, self._database, self._storage, recorded)
        self._listener(StageStarted(self._stage.name, self._stage.parameter, self._stage.trials, finished))
        while batch := self._next_batch():
            self._run_batch(batch, trials, optuna)
        optuna.synchronise()
        decision = decide(self._stage, self._leading)
        self._database.decide(self._record, decision)
        self._listener(StageDecided(decision))
        return decision

    def explored(self) -> Explored:
        """The stage with what was observed in it."""
        return Explored(self._stage, tuple(self._observations))

    def _next_batch(self) -> tuple[int, ...]:
        if len(self._observations) == self._stage.trials:
            return ()
        search = self._definition.search
        with _one_thread():
            return next_batch(
                self._stage, self._observations, self._definition.seed, name=search.sampler, earlier=self._earlier
            )

    def _run_batch(self, batch: Sequence[int], recorded: dict[int, TrialRecord], optuna: OptunaStage) -> None:
        first = len(self._observations)
        trials = [
            self._begin(number, candidate, recorded.get(number)) for number, candidate in enumerate(batch, start=first)
        ]
        for trial in trials:
            optuna.begin(trial.number, trial.candidate)
        observations = self._observe([trial.candidate for trial in trials if trial.recorded is None])
        for trial in trials:
            observation = trial.recorded or observations[trial.candidate]
            if trial.recorded is None:
                self._database.finish_trial(self._record, trial.number, observation.figures)
            optuna.finish(trial.number, observation)
            self._observations.append(observation)
            self._lead(observation)
            if trial.recorded is None:
                self._report(trial.number, observation)

    def _lead(self, observation: Observation) -> None:
        """Keep what can be decided on, and not the whole history, for the questions that every trial asks."""
        if observation.complete:
            top = max(one.objective for one in (observation, *self._leading))
            self._leading = [one for one in (*self._leading, observation) if one.objective >= top - TIE]

    def _begin(self, number: int, candidate: int, recorded: TrialRecord | None) -> _Trial:
        if recorded is None:
            key = self._evaluations.key("search", self._reduction(candidate))
            rates = self._stage.candidates[candidate].keep_rates
            self._database.begin_trial(self._record, number, candidate, rates, key)
        elif recorded.candidate != candidate:
            raise DatabaseError(
                "the trials of a stage must be the ones that its recorded history leads to",
                actual=f"candidate {candidate} instead of {recorded.candidate}",
                place=f"stage {self._stage.name!r}, trial {number}",
                remedy="the database was edited, or written by another version of the software",
            )
        figures = None if recorded is None else recorded.figures
        observation = None if figures is None else Observation.of(candidate, figures)
        return _Trial(number, candidate, observation)

    def _observe(self, candidates: Sequence[int]) -> dict[int, Observation]:
        """Score candidates that race against the best of the trials before them, not against each other."""
        requests = [self._request(candidate) for candidate in candidates]
        scores = self._evaluations.read("search", requests) if requests else ()
        found = dict(zip(candidates, scores, strict=True))
        self._scores.update(found)
        anchor = self._whole_scores(self._stage.anchor) if found else ()
        return {candidate: observe(self._stage, candidate, read, anchor) for candidate, read in found.items()}

    def _request(self, candidate: int) -> Request:
        if not self._observations:
            return self._whole(candidate)
        best = incumbent(self._stage, self._leading)
        best_scores, anchor_scores = self._whole_scores(best.candidate), self._whole_scores(self._stage.anchor)
        race = race_for(self._stage, candidate, best, best_scores, anchor_scores)
        return replace(self._whole(candidate), race=race)

    def _whole(self, candidate: int) -> Request:
        branch = self._stage.candidates[candidate].branch_layers
        return Request(self._reduction(candidate), None, self._stage.shared_layers, branch)

    def _whole_scores(self, candidate: int) -> tuple[float, ...]:
        """Scores of a candidate whose trial is complete, from the database where another process ran it."""
        if candidate not in self._scores:
            self._scores[candidate] = self._evaluations.read("search", [self._whole(candidate)])[0]
        return self._scores[candidate]

    def _reduction(self, candidate: int) -> Reduction:
        return self._definition.reduction(self._stage.candidates[candidate].keep_rates, self._stage.tower_layers)

    def _report(self, number: int, observation: Observation) -> None:
        best = decide(self._stage, self._leading)
        self._listener(
            TrialFinished(
                stage=self._stage.name,
                number=number,
                value=self._stage.candidates[observation.candidate].value,
                score=observation.score,
                objective=observation.objective,
                stopped=not observation.complete,
                best_value=best.value,
                best_score=best.score,
            )
        )


def explored(stage: Stage, trials: Sequence[TrialRecord]) -> Explored:
    """A stage that is decided, from what is recorded of it."""
    return Explored(stage, tuple(Observation.of(one.candidate, one.figures) for one in trials if one.figures))


@contextmanager
def _one_thread() -> Iterator[None]:
    """A Gaussian process is fitted on one thread: beside other work, two threads take fifty times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
