"""A daemon that takes studies from the queue and runs them, beside any number of others on the same database.

Knows: which study comes next, and what becomes of one that fails here. Does not know: signals, terminals, or how an
executor is made.

A study that failed is tried again while it has attempts left: by whoever is idle, on this machine only after all others
that wait. So it never stands in their way, and another machine may have the data that this one lacks.

That a cluster cannot be used is no failure of the study: it goes back into the queue with all its attempts, and is left
to others for a while, for longer each time.
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
from scheduler_search.errors import ClusterError, LeaseLostError, SchedulerSearchError, WorkerError
from scheduler_search.search import Algorithm
from scheduler_search.storage import StudyDatabase
from scheduler_search.storage.queue import ATTEMPTS
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import Lease, StudyRecord, StudyState
from scheduler_search.study.values import Executor

Prepare = Callable[[StudyDefinition], tuple[Executor, Algorithm]]
Watch = Callable[[StudyRecord, Algorithm], AbstractContextManager[Listener]]
Say = Callable[[str], None]

Check = Callable[[], None]

IDLE_SECONDS = 2.0
CLUSTER_SECONDS = 15.0
_LONGEST_CLUSTER_SECONDS = 600.0
_SLICE_SECONDS = 0.1


class ClusterMissing(Stopped):
    """A study was stopped since the cluster that it is to run on cannot be used."""


def always_there() -> None:
    """No study needs what may be away."""


class Daemon:
    """Runs studies of the queue, one after the other.

    Args:
        prepare: loads model and data of a study; what it raises is a failure of the study on this machine.
        watch: makes the listener of a study, for the time of its run.
        stop: whether to stop: after the chunk in flight, with the study back in the queue.
        say: gets a line for whoever watches the daemon.
        check: raises ClusterError where the cluster of every study cannot be used; no study is taken up then.
    """

    def __init__(
        self,
        database: StudyDatabase,
        prepare: Prepare,
        watch: Watch,
        stop: Callable[[], bool],
        say: Say,
        check: Check = always_there,
    ) -> None:
        self._database = database
        self._prepare = prepare
        self._watch = watch
        self._stop = stop
        self._say = say
        self._check = check
        self._failed_here: set[str] = set()
        self._clusterless = _Clusterless()
        self._obstacle = ""

    def run(self, *, once: bool = False, idle_seconds: float = IDLE_SECONDS) -> None:
        """Run studies until ``stop``, or ``once`` until none waits.

        Raises:
            DatabaseError: the database cannot be used; the study that was running can be claimed by others.
            ClusterError: ``once``, and a cluster cannot be used; studies that need it are left in the queue.
        """
        while not self._stop():
            if not self._cluster_is_there(once, idle_seconds):
                continue
            left = self._failed_here | self._clusterless.names(forever=once)
            found = self._database.claim_next(owner_text(), leave=left)
            if found is not None:
                self._run(*found)
            elif self._failed_here:
                self._failed_here.clear()
                self._pause(0.0 if once else idle_seconds)
            elif once:
                self._clusterless.check()
                return
            else:
                self._pause(idle_seconds)

    def _cluster_is_there(self, once: bool, idle_seconds: float) -> bool:
        """Whether studies can be taken up; after a while where not, and what is missing is said once."""
        try:
            self._check()
        except ClusterError as error:
            if once:
                raise
            if self._obstacle != str(error):
                self._say(f"no study is taken up: {error}")
            self._obstacle = str(error)
            self._pause(max(idle_seconds, CLUSTER_SECONDS))
            return False
        self._obstacle = ""
        return True

    def _run(self, study: StudyRecord, lease: Lease) -> None:
        last = study.attempts >= ATTEMPTS
        self._say(f"study {study.name}: taken up, attempt {study.attempts} of {ATTEMPTS}")
        failed = StudyState.FAILED if last else StudyState.QUEUED
        with (
            _Failure(self._failure, study, last),
            owned(self._database, study, lease=lease, stopped=StudyState.QUEUED, failed=failed) as ownership,
            _blaming_the_cluster(),
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
        if isinstance(error, ClusterMissing):
            self._clusterless.add(study.name, error)
            self._say(f"study {study.name}: back in the queue: {error}")
            return
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


@contextmanager
def _blaming_the_cluster() -> Iterator[None]:
    """Only what a chunk ended with, on worker after worker, may be the study's own fault."""
    try:
        yield
    except WorkerError:
        raise
    except ClusterError as error:
        raise ClusterMissing(str(error)) from error


class _Clusterless:
    """The studies whose cluster could not be used, and for how long they are left to others."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._error: BaseException | None = None

    def add(self, name: str, error: ClusterMissing) -> None:
        """Leave a study for twice as long as the last time."""
        last = self._seconds.get(name, CLUSTER_SECONDS / 2)
        self._seconds[name] = min(2 * last, _LONGEST_CLUSTER_SECONDS)
        self._until[name] = time.monotonic() + self._seconds[name]
        self._error = error.__cause__

    def names(self, *, forever: bool) -> set[str]:
        """Those that are left now, or were ever."""
        now = time.monotonic()
        return {name for name, until in self._until.items() if forever or until > now}

    def check(self) -> None:
        """Raise what the last of them met, if any did."""
        if self._error is not None:
            raise self._error


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
