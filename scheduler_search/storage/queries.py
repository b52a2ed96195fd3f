"""The questions that are asked of the tables more than once.

Knows: rows. Does not know: transactions, or what follows from an answer.
"""

from __future__ import annotations

from itertools import groupby
from typing import TypeVar

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from scheduler_search.errors import DatabaseError
from scheduler_search.storage import rows
from scheduler_search.storage.tables import ChunkScoreRow, ScheduleRow, StudyRow, Table, TrialLayerRow, TrialRow
from scheduler_search.study.states import StageRecord, StudyRecord, TrialRecord

_Row = TypeVar("_Row", bound=Table)

# Asked for every chunk, so made once.
_SCORE = Table.metadata.tables[ChunkScoreRow.__tablename__].c
_SCORES = (
    select(_SCORE.chunk, _SCORE.score)
    .where(_SCORE.evaluation_id == bindparam("evaluation"))
    .order_by(_SCORE.chunk, _SCORE.sample)
)
_SCORES_OF_CHUNK = _SCORES.where(_SCORE.chunk == bindparam("chunk"))


def get(session: Session, kind: type[_Row], identity: int, place: str) -> _Row:
    """The row with that identity; DatabaseError where somebody deleted it."""
    row = session.get(kind, identity)
    if row is None:
        raise missing(place)
    return row


def missing(place: str) -> DatabaseError:
    """The error of a row that somebody deleted."""
    return DatabaseError("what is recorded must still be in the database", place=place)


def study(name: str) -> Select[StudyRow]:
    """The study of that name."""
    return select(StudyRow).where(StudyRow.name == name)


def trials(session: Session, stage: StageRecord, number: int | None = None) -> list[TrialRecord]:
    """The trials of a stage by number, or the one of that number."""
    chosen = [TrialRow.stage_id == stage.id]
    if number is not None:
        chosen.append(TrialRow.number == number)
    # The layers as plain tuples: a stage has thousands of them, and objects would take most of the time.
    query = select(TrialLayerRow.trial_id, TrialLayerRow.keep_rate).join(TrialRow).where(*chosen)
    ordered = session.execute(query.order_by(TrialLayerRow.trial_id, TrialLayerRow.layer))
    rates = {trial: tuple(rate for _, rate in group) for trial, group in groupby(ordered, lambda row: row[0])}
    return [
        rows.trial_record(row, rates.get(row.id, ()))
        for row in session.scalars(select(TrialRow).where(*chosen).order_by(TrialRow.number))
    ]


def schedule(of: StudyRecord, version: int | None, target: str) -> Select[ScheduleRow]:
    """The schedule of a study for a target in one version, or in the newest."""
    query = select(ScheduleRow).where(ScheduleRow.study_id == of.id, ScheduleRow.target == target)
    if version is not None:
        return query.where(ScheduleRow.version == version)
    return query.order_by(ScheduleRow.version.desc()).limit(1)


def scores(session: Session, evaluation: int, chunk: int | None = None) -> dict[int, tuple[float, ...]]:
    """Scores by chunk of all recorded chunks, or of one."""
    query = _SCORES if chunk is None else _SCORES_OF_CHUNK
    ordered = session.execute(query, {"evaluation": evaluation, "chunk": chunk})
    return {number: tuple(score for _, score in group) for number, group in groupby(ordered, lambda row: row[0])}
