"""The database at a glance: what it is, and how much is in it.

Knows: how to count. Does not know: what a study is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from scheduler_search.storage.connection import Connection
from scheduler_search.storage.engine import shown
from scheduler_search.storage.retries import retried
from scheduler_search.storage.schema import VERSIONS
from scheduler_search.storage.tables import StudyRow, Table
from scheduler_search.study.states import StudyState


@dataclass(frozen=True)
class DatabaseOverview:
    """What a database is and holds.

    Args:
        url: without a password.
        server: name and version of the database server.
        version: of our schema.
        rows: by table.
        studies: by state.
    """

    url: str
    server: str
    version: str
    rows: Mapping[str, int]
    studies: Mapping[StudyState, int]


class Overviews(Connection):
    """The part of ``StudyDatabase`` that is about the database itself."""

    @retried
    def overview(self) -> DatabaseOverview:
        """What the database is and holds, at one moment; reads every table once."""
        with self._read() as session:
            rows = {name: _count(session, name) for name in sorted(Table.metadata.tables)}
            states = session.execute(select(StudyRow.state, func.count()).group_by(StudyRow.state))
            counts = {StudyState(state): count for state, count in states}
            return DatabaseOverview(
                url=shown(self.url),
                server=self._server.version(session.connection()),
                version=VERSIONS[-1],
                rows=rows,
                studies={state: counts.get(state, 0) for state in StudyState},
            )


def _count(session: Session, table: str) -> int:
    return session.execute(select(func.count()).select_from(Table.metadata.tables[table])).scalar_one()
