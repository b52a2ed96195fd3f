"""Stages in the database, with their trials and decisions.

Knows: that a stage keeps its domain and its decision, and a trial its candidate and its figures. Does not know: how any
of these is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, func, select
from sqlalchemy.orm import Session

from scheduler_search.errors import DatabaseError, StudyConflictError
from scheduler_search.storage import queries, rows
from scheduler_search.storage.connection import Connection
from scheduler_search.storage.refusals import contradiction
from scheduler_search.storage.retries import retried
from scheduler_search.storage.tables import StageRow, Table, TrialLayerRow, TrialRow
from scheduler_search.study.states import Decision, Figures, StageRecord, StudyRecord, TrialRecord

# Made once and without objects, a trial is recorded in half the time.
_TRIALS = Table.metadata.tables[TrialRow.__tablename__]
_LAYERS = Table.metadata.tables[TrialLayerRow.__tablename__]
_NUMBERED = select(_TRIALS).where(_TRIALS.c.stage_id == bindparam("of"), _TRIALS.c.number == bindparam("wanted"))
_INSERT = _TRIALS.insert().returning(_TRIALS.c.id)
# With something to return, PostgreSQL gets all rows in one statement, and not a statement for each.
_INSERT_LAYERS = _LAYERS.insert().returning(_LAYERS.c.layer)


class Stages(Connection):
    """The part of ``StudyDatabase`` that is about stages and trials."""

    @retried
    def stage(self, study: StudyRecord, index: int, name: str, domain_digest: str) -> StageRecord:
        """The stage with that 0-based index, recorded first where it is not there.

        Raises:
            StudyConflictError: the recorded stage has another name or another domain.
        """
        with self._write() as session:
            query = select(StageRow).where(StageRow.study_id == study.id, StageRow.stage == index)
            row = session.scalar(query)
            if row is None:
                row = StageRow(study_id=study.id, stage=index, name=name, domain_digest=domain_digest)
                session.add(row)
                session.flush()
            elif (row.name, row.domain_digest) != (name, domain_digest):
                raise StudyConflictError(
                    f"stage {index} must search the domain that it began with",
                    actual=f"{name!r} with {domain_digest} instead of {row.name!r} with {row.domain_digest}",
                    place=f"study {study.name!r}",
                    remedy="the model, the data or the program changed; launch a study of another name",
                )
            return rows.stage_record(row)

    @retried
    def stages(self, study: StudyRecord) -> list[StageRecord]:
        """The recorded stages of a study in order, with their decisions."""
        with self._read() as session:
            query = select(StageRow).where(StageRow.study_id == study.id).order_by(StageRow.stage)
            return [rows.stage_record(row) for row in session.scalars(query)]

    @retried
    def decide(self, stage: StageRecord, decision: Decision) -> None:
        """Record the decision of a stage; DatabaseError where another one is recorded."""
        place = f"stage {stage.name!r}"
        if (decision.stage, decision.name) != (stage.index, stage.name):
            raise DatabaseError("a decision must be of its stage", actual=decision.name, place=place)
        with self._write() as session:
            row = queries.get(session, StageRow, stage.id, place)
            recorded = rows.stage_record(row).decision
            if recorded is None:
                session.add(rows.decision_row(row, decision))
            elif recorded != decision:
                raise contradiction("decision", recorded.candidate, decision.candidate, place)

    @retried
    def begin_trial(
        self, stage: StageRecord, number: int, candidate: int, keep_rates: Sequence[float], evaluation_key: str
    ) -> None:
        """Record trial ``number`` as running; a recorded trial, running or complete, stays as it is.

        Raises:
            DatabaseError: trial ``number`` is recorded with another candidate, other keep rates or another key.
        """
        asked = TrialRecord(number, candidate, tuple(keep_rates), evaluation_key)
        with self._write() as session:
            if _recorded(session, stage, number) is None:
                values = {"stage_id": stage.id, "number": number, "candidate": candidate}
                identity = session.execute(_INSERT, {**values, "evaluation_key": evaluation_key}).scalar_one()
                session.execute(_INSERT_LAYERS, rows.trial_layers(identity, asked.keep_rates))
                return
            (recorded,) = queries.trials(session, stage, number)
            if _asked(recorded) != _asked(asked):
                raise contradiction("candidate", recorded.candidate, candidate, _trial_place(stage, number))

    @retried
    def finish_trial(self, stage: StageRecord, number: int, figures: Figures) -> None:
        """Record the figures of a running trial, and that it is complete, or stopped where they are over fewer samples.

        Raises:
            DatabaseError: the trial was not begun, has other figures already, or a figure is not finite.
        """
        rows.require_figures(figures)
        place = _trial_place(stage, number)
        with self._write() as session:
            row = _recorded(session, stage, number)
            if row is None:
                raise DatabaseError("a trial must be begun before it is finished", place=place)
            recorded = rows.figures(row)
            if recorded is None:
                update = _TRIALS.update().where(_TRIALS.c.id == row.id)
                session.execute(update.values(**rows.figure_values(figures), finished=func.now()))
            elif recorded != figures:
                raise contradiction("figures", recorded, figures, place)

    @retried
    def trials(self, stage: StageRecord) -> list[TrialRecord]:
        """The recorded trials of a stage, by number."""
        with self._read() as session:
            return queries.trials(session, stage)


def _recorded(session: Session, stage: StageRecord, number: int) -> Row[Any] | None:
    return session.execute(_NUMBERED, {"of": stage.id, "wanted": number}).one_or_none()


def _trial_place(stage: StageRecord, number: int) -> str:
    return f"stage {stage.name!r}, trial {number}"


def _asked(trial: TrialRecord) -> tuple[object, ...]:
    """What is known of a trial when it begins."""
    return (trial.candidate, trial.keep_rates, trial.evaluation_key)
