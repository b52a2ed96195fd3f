"""A coordinator to be killed: it runs a small simulated study to its end and exports it, from wherever that stopped.

Knows: how a process of ours claims a study, runs it, exports it, and which exit code it ends with. Does not know: who
kills it. Leases fall silent after half a second here, so that tests need not wait for 15.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from scheduler_search.coordinator import Evaluations, owned, owner_text, run_study
from scheduler_search.errors import (
    DatabaseError,
    LeaseHeldError,
    LeaseLostError,
    SchedulerSearchError,
    StudyConflictError,
)
from scheduler_search.export import freeze, measure, publish, recorded_document, searched_reduction
from scheduler_search.schedule.document import ScheduleDocument
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.study.states import Lease, StudyRecord, StudyState
from scheduler_search.study.values import ChunkResult, ChunkTask
from tests.coordinator.simulated import SimulatedExecutor

NAME = "chaos"
SILENT_SECONDS = 0.5
BEAT_SECONDS = 0.1


def definition(seed: int = 0) -> StudyDefinition:
    """Stages of a whole G-Search, with races, batches and a Gaussian process of curves."""
    return StudyDefinition.model_validate(
        {
            "name": NAME,
            "seed": seed,
            "model": {"id": "testbed:tiny-llava"},
            "data": {"source": "testbed", "search": {"samples": 40}, "validation": {"samples": 40}},
            "search": {"stride": 3, "initial": 3, "iterations": 4, "batch": 2},
        }
    )


class SlowExecutor(SimulatedExecutor):
    """Takes its time for every chunk, and notes in a file that it began: lines survive any kill.

    Args:
        pause: seconds per chunk.
        journal: where a line is added per chunk that is computed.
    """

    def __init__(self, pause: float, journal: Path) -> None:
        super().__init__()
        self._pause = pause
        self._journal = journal

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        for result in super().run(tasks):
            task = result.task
            with self._journal.open("a") as journal:
                journal.write(f"{task.split} {task.chunk} {task.reduction.counts(16)}\n")
            time.sleep(self._pause)
            yield result


def coordinate(url: str, folder: Path, pause: float, seed: int = 0, largest_file: int | None = None) -> None:
    """Run the study to its end and export it to ``folder``; exits as the command line does, with 0 or 2.

    Args:
        pause: seconds per chunk.
        seed: of the study.
        largest_file: in bytes; writing beyond fails, as on a disk that is full.
    """
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    try:
        with StudyDatabase.open(url) as database:
            study = database.add_study(definition(seed))
            executor = SlowExecutor(pause, folder / "executed.txt")
            _finish(database, study, executor)
            export(database, study, executor, folder)
    except SchedulerSearchError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        kind = "lost" if isinstance(error, LeaseLostError) else "error"
        with (folder / "errors.txt").open("a") as errors:
            errors.write(f"{kind} {os.getpid()} {error}\n")
        sys.exit(error.exit_code)


def _finish(database: StudyDatabase, study: StudyRecord, executor: SlowExecutor) -> None:
    """Run the study as soon as its lease is free; nothing where another process finished it meanwhile."""
    while database.study(NAME).state is not StudyState.FINISHED:
        try:
            lease = database.claim(study, owner_text(), silent_seconds=SILENT_SECONDS)
        except LeaseHeldError:
            time.sleep(0.1)
            continue
        _run(database, study, executor, lease)


def _run(database: StudyDatabase, study: StudyRecord, executor: SlowExecutor, lease: Lease) -> None:
    try:
        with owned(database, study, lease=lease, beat_seconds=BEAT_SECONDS) as ownership:
            run_study(database, study, executor, ownership=ownership)
    except StudyConflictError:
        # Finished by another process between our look at it and our claim.
        if database.study(NAME).state is not StudyState.FINISHED:
            raise


def export(database: StudyDatabase, study: StudyRecord, executor: SimulatedExecutor, folder: Path) -> None:
    """Validate the study's schedule and write it to ``folder``, as the command does."""
    study = database.study(study.name)
    document = recorded_document(database, study) or _measured(database, study, executor)
    try:
        publish(database, study, document, folder, max_drop=None, replace=False)
    except DatabaseError:
        # Another process recorded its own meanwhile, which differs in the time at which it was made.
        if (recorded := recorded_document(database, study)) is None:
            raise
        publish(database, study, recorded, folder, max_drop=None, replace=False)


def _measured(database: StudyDatabase, study: StudyRecord, executor: SimulatedExecutor) -> ScheduleDocument:
    reduction = searched_reduction(database, study)
    measured = measure(
        reduction,
        metric="exact-match",
        first_layer=study.definition.search.first_layer,
        seed=study.definition.seed,
        executor=executor,
        scores=Evaluations(database, executor).scores,
    )
    return freeze(study, reduction, measured, executor, {})
