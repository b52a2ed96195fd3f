"""The queue in the database: studies that wait for a coordinator, and those that lost theirs.

Knows: which study comes next, how often it was tried, and what a user may ask of it. Does not know: who runs it, or
how.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import or_, select

from scheduler_search.errors import StudyConflictError
from scheduler_search.storage import queries, rows
from scheduler_search.storage.leases import SILENT_SECONDS, Leases, grant, is_free
from scheduler_search.storage.logs import log_row
from scheduler_search.storage.retries import retried
from scheduler_search.storage.studies import Studies, change, recorded
from scheduler_search.storage.tables import StudyRow
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import Lease, StudyRecord, StudyState

ATTEMPTS = 3


class Queue(Leases, Studies):
    """The part of ``StudyDatabase`` that is about the queue."""

    @retried
    def submit(self, definition: StudyDefinition, priority: int = 0) -> StudyRecord:
        """Record a study as queued; where it is recorded already, only its priority changes.

        Raises:
            StudyConflictError: a study of that name has another definition.
        """
        with self._write() as session:
            row = recorded(session, definition)
            row.priority = priority
            session.flush()
            return rows.study_record(row)

    @retried
    def claim_next(
        self,
        owner: str,
        *,
        leave: Collection[str] = (),
        silent_seconds: float = SILENT_SECONDS,
        attempts: int = ATTEMPTS,
    ) -> tuple[StudyRecord, Lease] | None:
        """Claim the next study that is queued, or running with a silent owner; None where there is none.

        The highest priority comes first, then what was added first. A study that was claimed ``attempts`` times and
        ended none of them is failed in passing.

        Args:
            leave: names of studies that are left to others.
        """
        with self._write() as session:
            now = self._now(session)
            waiting = or_(StudyRow.state == StudyState.QUEUED.value, StudyRow.state == StudyState.RUNNING.value)
            query = select(StudyRow).where(waiting, is_free(owner, silent_seconds, now), StudyRow.name.not_in(leave))
            for row in session.scalars(query.order_by(StudyRow.priority.desc(), StudyRow.id)).all():
                # Owned already where the connection was lost just after the claim.
                if row.owner == owner or row.attempts < attempts:
                    row.attempts += row.owner != owner
                    lease = grant(row, owner, now)
                    session.flush()
                    return rows.study_record(row), lease
                reason = row.error or f"{row.attempts} coordinators took it up, and each ended without a reason"
                row.epoch, row.owner, row.heartbeat = row.epoch + 1, None, None
                change(row, StudyState.FAILED, reason, row.traceback)
                session.add(log_row(row.id, "error", f"given up: {reason}"))
            return None

    @retried
    def cancel(self, study: StudyRecord) -> None:
        """Cancel a study: a coordinator that runs it is refused its next write. Again: nothing.

        Raises:
            StudyConflictError: it is finished.
        """
        with self._write() as session:
            row = queries.get(session, StudyRow, study.id, f"study {study.name!r}")
            if row.state == StudyState.CANCELLED.value:
                return
            change(row, StudyState.CANCELLED)
            row.epoch, row.owner, row.heartbeat = row.epoch + 1, None, None
            session.add(log_row(row.id, "warning", "cancelled"))

    @retried
    def retry(self, study: StudyRecord) -> None:
        """Queue a study again that failed, was cancelled or interrupted, with all attempts before it. Again: nothing.

        Raises:
            StudyConflictError: it is running or finished.
        """
        with self._write() as session:
            row = queries.get(session, StudyRow, study.id, f"study {study.name!r}")
            state = StudyState(row.state)
            if state is StudyState.QUEUED:
                return
            if state in (StudyState.RUNNING, StudyState.FINISHED):
                raise StudyConflictError(
                    "only a study that failed, was cancelled or interrupted is tried again",
                    actual=f"a {state.value} one",
                    place=f"study {study.name!r}",
                )
            change(row, StudyState.QUEUED)
            row.attempts = 0
            session.add(log_row(row.id, "info", "queued again"))

    @retried
    def put_back(self, study: StudyRecord) -> None:
        """Queue a running study whose coordinator stops on request: that was no attempt of it. Again: nothing."""
        with self._write() as session:
            row = queries.get(session, StudyRow, study.id, f"study {study.name!r}")
            if row.state == StudyState.RUNNING.value:
                change(row, StudyState.QUEUED)
                row.attempts = max(0, row.attempts - 1)
