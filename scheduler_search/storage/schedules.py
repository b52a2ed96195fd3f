"""Exported schedules in the database, with what their gate was asked and found.

Knows: that an export gives way only to one that replaces it. Does not know: files, or what a document says.
"""

from __future__ import annotations

from sqlalchemy import func

from scheduler_search.storage import queries
from scheduler_search.storage.connection import Connection
from scheduler_search.storage.refusals import contradiction
from scheduler_search.storage.tables import ScheduleRow
from scheduler_search.study.states import StudyRecord


class Schedules(Connection):
    """The part of ``StudyDatabase`` that is about schedules."""

    def record_schedule(
        self,
        study: StudyRecord,
        version: int,
        document: str,
        digest: str,
        *,
        max_drop: float | None = None,
        loss_limit: float | None = None,
        replace: bool = False,
    ) -> None:
        """Record an exported schedule document.

        Args:
            version: of the schedule format.
            document: the text of the file.
            max_drop: the loss that the caller allowed; None where the gate was not asked.
            loss_limit: the upper 95 % limit of the paired loss on the validation split; None without one.
            replace: whether a different recorded document gives way.

        Raises:
            DatabaseError: another document is recorded for that study and version.
        """
        with self._write() as session:
            row = session.scalar(queries.schedule(study, version))
            if row is None:
                row = ScheduleRow(study_id=study.id, version=version)
                session.add(row)
            elif row.document == document:
                return
            elif not replace:
                raise contradiction("schedule", row.digest, digest, f"study {study.name!r}, version {version}")
            row.document, row.digest = document, digest
            row.max_drop, row.loss_limit, row.exported = max_drop, loss_limit, func.now()

    def schedule(self, study: StudyRecord, version: int | None = None) -> str | None:
        """The recorded schedule document, the one of the newest version by default; None where there is none."""
        with self._read() as session:
            row = session.scalar(queries.schedule(study, version))
            return None if row is None else row.document
