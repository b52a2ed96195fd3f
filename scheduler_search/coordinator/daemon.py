"""A daemon that takes studies from the queue and runs them, beside any number of others on the same database.

Knows: which study comes next, and what becomes of one that fails here. Does not know: signals, terminals, or how an
executor is made.

A study that failed is tried again while it has attempts left: by whoever is idle, on this machine only after all others
that wait. So it never stands in their way, and another machine may have the data that this one lacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from scheduler_search.coordinator.evaluations import Stopped
from scheduler_search.coordinator.events import Listener
from scheduler_search.coordinator.ownership import owned, owner_text
from scheduler_search.coordinator.run import run_study
from scheduler_search.errors import LeaseLostError, SchedulerSearchError
from scheduler_search.search import Algorithm
from scheduler_search.storage import StudyDatabase
from scheduler_search.storage.queue import ATTEMPTS
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import Lease, StudyRecord, StudyState
from scheduler_search.study.values import Executor

Prepare = Callable[[StudyDefinition], tuple[Executor, Algorithm]]
Watch = Callable[[StudyRecord, Algorithm], AbstractContextManager[Listener]]
Say = Callable[[str], None]

IDLE_SECONDS = 2.0
_SLICE_SECONDS = 0.1


class Daemon:
    """Runs studies of the queue, one after the other.

    Args:
        prepare: loads model and data of a study; what it raises is a failure of the study on this machine.
        watch: makes the listener of a study, for the time of its run.
        stop: whether to stop: after the chunk in flight, with the study back in the queue.
        say: gets a line for whoever watches the daemon.
    """

    def __init__(
        self, database: StudyDatabase, prepare: Prepare, watch: Watch, stop: Callable[[], bool], say: Say
    ) -> None:
        self._database = database
        self._prepare = prepare
        self._watch = watch
        self._stop = stop
        self._say = say
        self._failed_here: set[str] = set()

    def run(self, *, once: bool = False, idle_seconds: float = IDLE_SECONDS) -> None:
        """Run studies until ``stop``, or ``once`` until none waits.

        Raises:
            DatabaseError: the database cannot be used; the study that was running can be claimed by others.
        """
        while not self._stop():
            found = self._database.claim_next(owner_text(), leave=self._failed_here)
            if found is not None:
                self._run(*found)
            elif self._failed_here:
                self._failed_here.clear()
                self._pause(0.0 if once else idle_seconds)
            elif once:
                return
            else:
                self._pause(idle_seconds)

    def _run(self, study: StudyRecord, lease: Lease) -> None:
        last = study.attempts >= ATTEMPTS
        self._say(f"study {study.name}: taken up, attempt {study.attempts} of {ATTEMPTS}")
        failed = StudyState.FAILED if last else StudyState.QUEUED
        with (
            _Failure(self._failure, study, last),
            owned(self._database, study, lease=lease, stopped=StudyState.QUEUED, failed=failed) as ownership,
            self._loaded(study) as (executor, algorithm),
            self._watch(study, algorithm) as listener,
        ):
            run_study(
                self._database,
                study,
                executor,
                listener,
                algorithm=algorithm,
                ownership=ownership,
                stop=self._stop,
            )
            self._say(f"study {study.name}: finished")

    @contextmanager
    def _loaded(self, study: StudyRecord) -> Iterator[tuple[Executor, Algorithm]]:
        executor, algorithm = self._prepare(study.definition)
        try:
            yield executor, algorithm
        finally:
            executor.close()

    def _failure(self, study: StudyRecord, error: Exception, last: bool) -> None:
        if isinstance(error, Stopped):
            self._say(f"study {study.name}: stopped, back in the queue")
            return
        if isinstance(error, LeaseLostError):
            self._say(f"study {study.name}: {error}")
            return
        text = str(error) if isinstance(error, SchedulerSearchError) else f"{type(error).__name__}: {error}"
        self._failed_here.add(study.name)
        self._say(f"study {study.name}: {'given up' if last else 'failed'}: {text}")

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stop() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_SECONDS))


class _Failure:
    """Reports whatever ended a study, of which nothing may end the daemon: others wait."""

    def __init__(self, report: Callable[[StudyRecord, Exception, bool], None], study: StudyRecord, last: bool) -> None:
        self._report = report
        self._study = study
        self._last = last

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._report(self._study, error, self._last)
        return True
