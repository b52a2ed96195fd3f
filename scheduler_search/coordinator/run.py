"""Drives a study from its definition to its decisions: stage after stage, from wherever the database says it stopped.

Knows: the algorithm's stages, the database and an executor. Does not know: Ray, terminals, or how a schedule is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from scheduler_search.coordinator.baselines import record_front
from scheduler_search.coordinator.evaluations import Evaluations
from scheduler_search.coordinator.events import Listener, StageDecided, ignore
from scheduler_search.coordinator.stage import StageRunner, explored
from scheduler_search.errors import SchedulerSearchError
from scheduler_search.schedule.values import Reduction
from scheduler_search.search import Algorithm, Explored, algorithm_for
from scheduler_search.search.frontier import Frontier
from scheduler_search.storage import StudyDatabase, optuna_storage
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import Decision, StudyRecord, StudyState
from scheduler_search.study.values import Executor


def make_algorithm(definition: StudyDefinition, executor: Executor) -> Algorithm:
    """The algorithm of a study over the model and the search split that the executor holds."""
    shape = executor.model().shape
    return algorithm_for(definition, shape.decoder.layers, shape, executor.split("search"))


def run_study(
    database: StudyDatabase,
    study: StudyRecord,
    executor: Executor,
    listener: Listener = ignore,
    *,
    algorithm: Algorithm | None = None,
) -> Reduction:
    """Run a study to its end, or on from where it stopped, and return the searched reduction.

    Args:
        algorithm: the study's, where the caller has made it already: it remembers the candidates it has laid out.

    Raises:
        SchedulerSearchError: the study is marked failed with the message; it can be resumed.
        KeyboardInterrupt: the study is marked interrupted; it can be resumed.
    """
    algorithm = algorithm or make_algorithm(study.definition, executor)
    with _recorded_state(database, study), _quiet_optuna():
        decisions = _run_stages(database, study, executor, algorithm, listener)
    return Reduction(algorithm.final(decisions), study.definition.resolved_rule)


def _run_stages(
    database: StudyDatabase, study: StudyRecord, executor: Executor, algorithm: Algorithm, listener: Listener
) -> list[Decision]:
    evaluations = Evaluations(database, executor)
    storage = optuna_storage(database)
    decisions: list[Decision] = []
    earlier: list[Explored] = []
    while (stage := algorithm.next_stage(decisions)) is not None:
        record = database.stage(study, stage.index, stage.name, stage.domain_digest)
        if record.decision is not None:
            listener(StageDecided(record.decision))
            decisions.append(record.decision)
            earlier.append(explored(stage, database.trials(record)))
            continue
        runner = StageRunner(study.definition, stage, record, earlier, database, evaluations, storage, listener)
        decisions.append(runner.run())
        earlier.append(runner.explored())
    if isinstance(algorithm, Frontier):
        record_front(database, study, algorithm, earlier[0], evaluations, listener)
    return decisions


@contextmanager
def _recorded_state(database: StudyDatabase, study: StudyRecord) -> Iterator[None]:
    database.set_state(study, StudyState.RUNNING)
    try:
        yield
    except KeyboardInterrupt:
        database.set_state(study, StudyState.INTERRUPTED)
        raise
    except SchedulerSearchError as error:
        database.set_state(study, StudyState.FAILED, error=str(error))
        raise
    database.set_state(study, StudyState.FINISHED)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Our progress is shown by our listener; of Optuna only warnings are wanted."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
