"""Exported schedules in the database, with what their gate was asked and found.

Knows: that an export gives way only to one that replaces it. Does not know: files, or what a document says.
"""

from __future__ import annotations

from sqlalchemy import func, select

from scheduler_search.storage import queries
from scheduler_search.storage.connection import Connection
from scheduler_search.storage.refusals import contradiction
from scheduler_search.storage.retries import retried
from scheduler_search.storage.tables import ScheduleRow
from scheduler_search.study.states import StudyRecord


class Schedules(Connection):
    """The part of ``StudyDatabase`` that is about schedules."""

    @retried
    def record_schedule(
        self,
        study: StudyRecord,
        version: int,
        document: str,
        digest: str,
        *,
        target: str = "",
        max_drop: float | None = None,
        loss_limit: float | None = None,
        replace: bool = False,
    ) -> None:
        """Record an exported schedule document.

        Args:
            version: of the schedule format.
            document: the text of the file.
            target: what a front was asked for; empty for a study that decides on one schedule.
            max_drop: the loss that the caller allowed; None where the gate was not asked.
            loss_limit: the upper 95 % limit of the paired loss on the validation split; None without one.
            replace: whether a different recorded document gives way.

        Raises:
            DatabaseError: another document is recorded for that study, version and target.
        """
        with self._write() as session:
            row = session.scalar(queries.schedule(study, version, target))
            if row is None:
                row = ScheduleRow(study_id=study.id, version=version, target=target)
                session.add(row)
            elif row.document == document:
                return
            elif not replace:
                place = f"study {study.name!r}, version {version}{target and f', {target}'}"
                raise contradiction("schedule", row.digest, digest, place)
            row.document, row.digest = document, digest
            row.max_drop, row.loss_limit, row.exported = max_drop, loss_limit, func.now()

    @retried
    def schedule(self, study: StudyRecord, version: int | None = None, *, target: str = "") -> str | None:
        """The recorded schedule document, the one of the newest version by default; None where there is none."""
        with self._read() as session:
            row = session.scalar(queries.schedule(study, version, target))
            return None if row is None else row.document

    @retried
    def exported_targets(self, study: StudyRecord) -> list[str]:
        """What was exported of a study, in alphabetical order; ``[""]`` is the one schedule that it decided on."""
        with self._read() as session:
            query = select(ScheduleRow.target).where(ScheduleRow.study_id == study.id)
            return sorted(set(session.scalars(query)))
