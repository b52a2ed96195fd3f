"""The log of each study in the database: what its coordinators did, and why they stopped.

Knows: lines in the order in which they were written. Does not know: who writes what.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import select

from scheduler_search.storage import rows
from scheduler_search.storage.connection import Connection
from scheduler_search.storage.retries import retried
from scheduler_search.storage.tables import LogRow
from scheduler_search.study.states import LogLine, StudyRecord

Level = Literal["info", "warning", "error"]


class Logs(Connection):
    """The part of ``StudyDatabase`` that is about logs."""

    @retried
    def add_log(self, study: StudyRecord, level: Level, text: str) -> None:
        """Add a line to the log of a study. After a lost connection it may be there twice."""
        with self._write() as session:
            session.add(log_row(study.id, level, text))

    @retried
    def logs(self, study: StudyRecord, limit: int = 100) -> list[LogLine]:
        """The newest ``limit`` lines, the oldest of them first."""
        with self._read() as session:
            query = select(LogRow).where(LogRow.study_id == study.id).order_by(LogRow.id.desc()).limit(limit)
            return [rows.log_line(row) for row in reversed(session.scalars(query).all())]


def log_row(study: int, level: Level, text: str) -> LogRow:
    """The row of a line."""
    return LogRow(study_id=study, level=level, text=text)
