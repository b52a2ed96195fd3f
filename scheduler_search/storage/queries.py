"""The questions that are asked of the tables more than once.

Knows: rows. Does not know: transactions, or what follows from an answer.
"""

from __future__ import annotations

from itertools import groupby
from typing import TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.tables import ChunkScoreRow, ScheduleRow, StudyRow, Table, TrialRow
from scheduler_search.study.states import StageRecord, StudyRecord

_Row = TypeVar("_Row", bound=Table)


def get(session: Session, kind: type[_Row], identity: int, place: str) -> _Row:
    """The row with that identity; DatabaseError where somebody deleted it."""
    row = session.get(kind, identity)
    if row is None:
        raise DatabaseError("what is recorded must still be in the database", place=place)
    return row


def study(name: str) -> Select[StudyRow]:
    """The study of that name."""
    return select(StudyRow).where(StudyRow.name == name)


def trial(stage: StageRecord, number: int) -> Select[TrialRow]:
    """One trial of a stage."""
    return select(TrialRow).where(TrialRow.stage_id == stage.id, TrialRow.number == number)


def schedule(of: StudyRecord, version: int | None) -> Select[ScheduleRow]:
    """The schedule of a study in one version, or in the newest."""
    query = select(ScheduleRow).where(ScheduleRow.study_id == of.id)
    if version is not None:
        return query.where(ScheduleRow.version == version)
    return query.order_by(ScheduleRow.version.desc()).limit(1)


def scores(session: Session, evaluation: int, chunk: int | None = None) -> dict[int, tuple[float, ...]]:
    """Scores by chunk of all recorded chunks, or of one."""
    query = select(ChunkScoreRow.chunk, ChunkScoreRow.score).where(ChunkScoreRow.evaluation_id == evaluation)
    if chunk is not None:
        query = query.where(ChunkScoreRow.chunk == chunk)
    ordered = session.execute(query.order_by(ChunkScoreRow.chunk, ChunkScoreRow.sample))
    return {number: tuple(row.score for row in group) for number, group in groupby(ordered, lambda row: row.chunk)}
