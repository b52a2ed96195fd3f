"""Owning a study while it runs: the lease, the heartbeat that renews it, and what is recorded at the end.

Knows: how a run can end. Does not know: what is run.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

from scheduler_search.coordinator.evaluations import Stopped
from scheduler_search.errors import DatabaseError, LeaseLostError, SchedulerSearchError
from scheduler_search.storage import StudyDatabase
from scheduler_search.storage.server import ConnectionLostError
from scheduler_search.study.states import Lease, StudyRecord, StudyState

BEAT_SECONDS = 4.0
_FAREWELL_SECONDS = 5.0


def owner_text() -> str:
    """This process as the owner of a lease: different at every call."""
    return f"{socket.gethostname()[:150]} pid {os.getpid()} {secrets.token_hex(4)}"


class Heartbeat:
    """Renews a lease from a thread of its own, on a connection of its own, until it is left or the lease is lost."""

    def __init__(self, database: StudyDatabase, lease: Lease, seconds: float) -> None:
        self._database = database
        self._lease = lease
        self._seconds = seconds
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of {lease.name}", daemon=True)
        self.error: LeaseLostError | None = None

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        # It may be waiting for a server that went away: the process does not wait with it.
        self._thread.join(_FAREWELL_SECONDS)

    def join(self, seconds: float) -> None:
        """Wait until it has found the lease lost."""
        self._thread.join(seconds)

    def _beat(self) -> None:
        while not self._left.wait(self._seconds):
            try:
                self._database.renew(self._lease)
            except LeaseLostError as error:
                self.error = error
                return
            except DatabaseError:
                # Whatever it is, the study's own next write meets it too, and can say so.
                continue


@dataclass(frozen=True)
class Ownership:
    """That this process owns a study."""

    lease: Lease
    heartbeat: Heartbeat

    @property
    def lost(self) -> bool:
        """Whether the heartbeat found the lease lost; a write finds it at once."""
        return self.heartbeat.error is not None

    def check(self) -> None:
        """Raise LeaseLostError where ``lost``."""
        if self.heartbeat.error is not None:
            raise self.heartbeat.error


@contextmanager
def owned(
    database: StudyDatabase,
    study: StudyRecord,
    *,
    lease: Lease | None = None,
    take_over: bool = False,
    stopped: StudyState = StudyState.INTERRUPTED,
    failed: StudyState = StudyState.FAILED,
    beat_seconds: float = BEAT_SECONDS,
) -> Iterator[Ownership]:
    """Own a study, which is running meanwhile; what ended it is recorded, unless the lease was lost.

    Args:
        lease: claimed already; otherwise the study is claimed here.
        take_over: claim it from an owner that is still there.
        stopped: its state where a stop was asked for; ``QUEUED`` leaves it to another coordinator.
        failed: its state where an error ended it; ``QUEUED`` lets it be tried again.

    Raises:
        LeaseHeldError: another coordinator owns it.
        StudyConflictError: it is finished.
    """
    lease = lease or database.claim(study, owner_text(), take_over=take_over)
    try:
        with database.holding(lease), Heartbeat(database, lease, beat_seconds) as heartbeat:
            database.set_state(study, StudyState.RUNNING)
            database.add_log(study, "info", f"taken up by {lease.owner}")
            with _Ending(database, study, stopped, failed):
                yield Ownership(lease, heartbeat)
    finally:
        # A lease that cannot be released falls silent by itself.
        with suppress(DatabaseError):
            database.release(lease)


class _Ending:
    """Records why a run ended early."""

    def __init__(self, database: StudyDatabase, study: StudyRecord, stopped: StudyState, failed: StudyState) -> None:
        self._database = database
        self._study = study
        self._stopped = stopped
        self._failed = failed

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With what is being raised, nothing more can be said about a database that cannot be written.
        with suppress(DatabaseError):
            if isinstance(error, KeyboardInterrupt):
                self._put(StudyState.INTERRUPTED, "interrupted")
            elif isinstance(error, Stopped):
                self._put(self._stopped, str(error) or "stopped on request")
            elif isinstance(error, Exception) and not _is_of_the_database(error):
                self._fail(error)

    def _put(self, state: StudyState, text: str) -> None:
        if state is StudyState.QUEUED:
            self._database.put_back(self._study)
        else:
            self._database.set_state(self._study, state)
        self._database.add_log(self._study, "warning", text)

    def _fail(self, error: Exception) -> None:
        text = str(error) if isinstance(error, SchedulerSearchError) else f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        self._database.set_state(self._study, self._failed, text, trace)
        self._database.add_log(self._study, "error", text)


def _is_of_the_database(error: Exception) -> bool:
    """Whether the study is not to blame: its lease was lost, or the server did not come back."""
    return isinstance(error, LeaseLostError) or isinstance(error.__cause__, ConnectionLostError)
