"""Studies in the database: their definition and where they stand.

Knows: that a name has one definition, and which state may follow which. Does not know: stages or schedules.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from scheduler_search.errors import StudyConflictError, StudyNotFoundError
from scheduler_search.storage import queries, rows
from scheduler_search.storage.connection import Connection
from scheduler_search.storage.engine import shown
from scheduler_search.storage.refusals import short
from scheduler_search.storage.retries import retried
from scheduler_search.storage.tables import StudyRow
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import StudyRecord, StudyState


class Studies(Connection):
    """The part of ``StudyDatabase`` that is about studies."""

    @retried
    def add_study(self, definition: StudyDefinition) -> StudyRecord:
        """Record a study as queued, or return the one of that name where its definition digest is the same.

        Where only the folder of the study file moved, the recorded paths follow it.

        Raises:
            StudyConflictError: a study of that name has another definition.
        """
        with self._write() as session:
            return rows.study_record(recorded(session, definition))

    @retried
    def check_definition(self, definition: StudyDefinition) -> None:
        """Write nothing; StudyConflictError where ``add_study`` would raise it."""
        with self._read() as session:
            _refuse_other(session.scalar(queries.study(definition.name)), definition)

    @retried
    def study(self, name: str) -> StudyRecord:
        """The study of that name; StudyNotFoundError with the nearest names where there is none."""
        with self._read() as session:
            row = session.scalar(queries.study(name))
            if row is not None:
                return rows.study_record(row)
            names = list(session.scalars(select(StudyRow.name).order_by(StudyRow.name)))
        near = difflib.get_close_matches(name, names, n=3)
        remedy = f"did you mean {', '.join(map(repr, near))}?" if near else _known(names)
        raise StudyNotFoundError(
            "a study must be in the database", actual=repr(name), place=shown(self.url), remedy=remedy
        )

    @retried
    def studies(self) -> list[StudyRecord]:
        """All studies, in the order in which they were added."""
        with self._read() as session:
            return [rows.study_record(row) for row in session.scalars(select(StudyRow).order_by(StudyRow.id))]

    @retried
    def set_state(
        self, study: StudyRecord, state: StudyState, error: str | None = None, traceback: str | None = None
    ) -> None:
        """Record that a study is now in ``state``, with its error, if any; one that is recorded is cleared.

        Raises:
            StudyConflictError: ``state`` may not follow the recorded one (see ``study.states.TRANSITIONS``).
        """
        with self._write() as session:
            change(queries.get(session, StudyRow, study.id, f"study {study.name!r}"), state, error, traceback)


def recorded(session: Session, definition: StudyDefinition) -> StudyRow:
    """The row of a study, added as queued where there is none; StudyConflictError where it has another definition."""
    row = session.scalar(queries.study(definition.name))
    _refuse_other(row, definition)
    if row is None:
        row = StudyRow(name=definition.name, digest=definition.digest, definition=definition.to_json())
        session.add(row)
    row.definition = definition.to_json()
    session.flush()
    return row


def change(row: StudyRow, state: StudyState, error: str | None = None, traceback: str | None = None) -> None:
    """Let a study go over into ``state``; StudyConflictError where it may not."""
    present = StudyState(row.state)
    if not present.may_become(state):
        raise StudyConflictError(
            "a study changes its state by the state table",
            actual=f"{present.value} to {state.value}",
            place=f"study {row.name!r}",
        )
    row.state, row.error, row.traceback, row.changed = state.value, error, traceback, func.now()


def _refuse_other(row: StudyRow | None, definition: StudyDefinition) -> None:
    if row is not None and row.digest != definition.digest:
        raise StudyConflictError(
            "a study keeps its definition",
            actual="another one",
            place=f"study {row.name!r}",
            remedy=f"{_pinned(row, definition)}give the changed study another name",
        )


def _pinned(row: StudyRow, definition: StudyDefinition) -> str:
    """How to have the recorded rule again, for a file that names no version and was written for an older one."""
    recorded_rule = json.loads(row.definition)["rule"]
    version = recorded_rule.get("version", 1)
    if recorded_rule["name"] != definition.rule.name or version == definition.rule.version:
        return ""
    return f"rule {definition.rule.name!r} was recorded in version {version}: write version = {version} in [rule], or "


def _known(names: Sequence[str]) -> str:
    if not names:
        return "the database holds no study yet"
    return short(f"known studies: {', '.join(names)}")
