"""Drives a study from its definition to its decisions: stage after stage, from wherever the database says it stopped.

Knows: the algorithm's stages, the database and an executor. Does not know: Ray, terminals, or how a schedule is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.storages import RDBStorage

from scheduler_search.coordinator.baselines import record_front
from scheduler_search.coordinator.descriptions import record_descriptions
from scheduler_search.coordinator.evaluations import Evaluations, Stopped, never
from scheduler_search.coordinator.events import Listener, StageDecided, ignore
from scheduler_search.coordinator.ownership import Ownership, owned
from scheduler_search.coordinator.stage import StageRunner, explored
from scheduler_search.coordinator.study_log import logged
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
    ownership: Ownership | None = None,
    take_over: bool = False,
    stop: Callable[[], bool] = never,
) -> Reduction:
    """Run a study to its end, or on from where it stopped, and return the searched reduction.

    Args:
        algorithm: the study's, where the caller has made it already: it remembers the candidates it has laid out.
        ownership: of the study, where the caller has it already; otherwise it is owned here, for the time of the run.
        take_over: own it even where another coordinator is at work.
        stop: asked before each chunk is handed out.

    Raises:
        SchedulerSearchError: the study is marked failed with the message; it can be resumed.
        KeyboardInterrupt: the study is marked interrupted; it can be resumed.
        Stopped: ``stop`` was true; the chunks in flight are recorded, and the study is marked interrupted.
        LeaseHeldError: another coordinator owns the study.
        LeaseLostError: the study was taken over or cancelled; nothing is recorded any more.
    """
    algorithm = algorithm or make_algorithm(study.definition, executor)
    if ownership is None:
        with owned(database, study, take_over=take_over) as ownership:
            return _run_owned(database, study, executor, listener, algorithm, ownership, stop)
    return _run_owned(database, study, executor, listener, algorithm, ownership, stop)


def _run_owned(
    database: StudyDatabase,
    study: StudyRecord,
    executor: Executor,
    listener: Listener,
    algorithm: Algorithm,
    ownership: Ownership,
    stop: Callable[[], bool],
) -> Reduction:
    record_descriptions(database, study, executor)
    evaluations = Evaluations(database, executor, lambda: stop() or ownership.lost)
    try:
        with _quiet_optuna():
            decisions = _run_stages(database, study, evaluations, algorithm, logged(database, study, listener))
    except Stopped:
        ownership.check()
        raise
    database.set_state(study, StudyState.FINISHED)
    database.add_log(study, "info", "finished")
    definition = study.definition
    return definition.reduction(algorithm.final(decisions), definition.tower_layers(executor.model().shape))


def _run_stages(
    database: StudyDatabase, study: StudyRecord, evaluations: Evaluations, algorithm: Algorithm, listener: Listener
) -> list[Decision]:
    decisions: list[Decision] = []
    earlier: list[Explored] = []
    with _guarded_storage(database) as storage:
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
def _guarded_storage(database: StudyDatabase) -> Iterator[RDBStorage]:
    """Optuna's storage, which commits only under the lease; its connections are closed with the run."""
    storage = optuna_storage(database)
    database.guard(storage)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Our progress is shown by our listener; of Optuna only warnings are wanted."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
