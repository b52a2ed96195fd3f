"""StudyDatabase: everything that is recorded of studies, and the rules under which it is.

Knows: what may be recorded twice (the same again: always; something else in its place: never). Does not know: SQL
servers (``engine``), Optuna (``optuna_trials``), or why something is recorded.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

import sqlalchemy
from sqlalchemy import func, insert, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from scheduler_search.errors import DatabaseError, StudyConflictError, StudyNotFoundError
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import queries, rows
from scheduler_search.storage.engine import (
    READ_ONLY,
    database_errors,
    make_engine,
    parse_url,
    require_file,
    shown,
    use_write_ahead_log,
)
from scheduler_search.storage.schema import create_schema, is_ready
from scheduler_search.storage.tables import (
    ChunkScoreRow,
    EvaluationRow,
    ScheduleRow,
    StageRow,
    StudyRow,
    TrialLayerRow,
    TrialRow,
)
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import Decision, StageRecord, StudyRecord, StudyState, TrialRecord


class StudyDatabase:
    """A study database, opened with ``StudyDatabase.open``; a context manager that closes it.

    Every method is one transaction: after a kill at any moment its effect is there in full or not at all, and what a
    method returned from is durable. Methods may be called from several processes at once. Recording the same thing
    again does nothing; recording something else in its place is refused. Any method raises DatabaseError where the
    database cannot be used (disk full, read-only, locked for 30 seconds).
    """

    def __init__(self, url: URL, engine: sqlalchemy.Engine) -> None:
        self.url = url
        self._engine = engine
        self._reader = engine.execution_options(**{READ_ONLY: True})
        self._resources = ExitStack()
        self._resources.callback(engine.dispose)

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> Self:
        """Open the database at ``url``, with our schema created where there is none.

        Args:
            create: whether a missing file may be created.

        Raises:
            DatabaseError: bad URL, unwritable folder, not a database, of another program, newer, or left half made.
        """
        parsed = parse_url(url)
        require_file(parsed, may_create=create)
        database = cls(parsed, make_engine(parsed))
        try:
            with database_errors(parsed):
                database._prepare()
        except DatabaseError:
            database.close()
            raise
        return database

    def _prepare(self) -> None:
        place = shown(self.url)
        with self._reader.begin() as connection:
            if is_ready(connection, place):
                return
        use_write_ahead_log(self._engine)
        with self._engine.begin() as connection:
            # Asked again under the write lock: another process may have made the schema in the meantime.
            if not is_ready(connection, place):
                create_schema(connection)

    def close(self) -> None:
        """Close all connections."""
        self._resources.close()

    def close_later(self, release: Callable[[], None]) -> None:
        """Call ``release`` when the database is closed, before its own connections are."""
        self._resources.callback(release)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with database_errors(self.url), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with database_errors(self.url), Session(self._reader) as session, session.begin():
            yield session

    # Studies

    def add_study(self, definition: StudyDefinition) -> StudyRecord:
        """Record a study as queued, or return the one of that name where its definition digest is the same.

        Where only the folder of the study file moved, the recorded paths follow it.

        Raises:
            StudyConflictError: a study of that name has another definition.
        """
        with self._write() as session:
            row = session.scalar(queries.study(definition.name))
            _refuse_other(row, definition)
            if row is None:
                row = StudyRow(name=definition.name, digest=definition.digest, definition=definition.to_json())
                session.add(row)
            row.definition = definition.to_json()
            session.flush()
            return rows.study_record(row)

    def check_definition(self, definition: StudyDefinition) -> None:
        """Write nothing; StudyConflictError where ``add_study`` would raise it."""
        with self._read() as session:
            _refuse_other(session.scalar(queries.study(definition.name)), definition)

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

    def studies(self) -> list[StudyRecord]:
        """All studies, in the order in which they were added."""
        with self._read() as session:
            return [rows.study_record(row) for row in session.scalars(select(StudyRow).order_by(StudyRow.id))]

    def set_state(self, study: StudyRecord, state: StudyState, error: str | None = None) -> None:
        """Record that a study is now in ``state``; ``error`` is kept with it, and cleared by a state without one.

        Raises:
            StudyConflictError: ``state`` may not follow the recorded one (see ``study.states.TRANSITIONS``).
        """
        with self._write() as session:
            row = queries.get(session, StudyRow, study.id, f"study {study.name!r}")
            recorded = StudyState(row.state)
            if not recorded.may_become(state):
                actual = f"{recorded.value} to {state.value}"
                raise StudyConflictError(
                    "a study changes its state by the state table", actual=actual, place=study.name
                )
            row.state, row.error, row.changed = state.value, error, func.now()

    # Stages and trials

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

    def stages(self, study: StudyRecord) -> list[StageRecord]:
        """The recorded stages of a study in order, with their decisions."""
        with self._read() as session:
            query = select(StageRow).where(StageRow.study_id == study.id).order_by(StageRow.stage)
            return [rows.stage_record(row) for row in session.scalars(query)]

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
                raise _contradiction("decision", recorded.candidate, decision.candidate, place)

    def begin_trial(
        self, stage: StageRecord, number: int, candidate: int, keep_rates: Sequence[float], evaluation_key: str
    ) -> None:
        """Record trial ``number`` as running; a recorded trial, running or complete, stays as it is.

        Raises:
            DatabaseError: trial ``number`` is recorded with another candidate, other keep rates or another key.
        """
        asked = TrialRecord(number, candidate, tuple(keep_rates), evaluation_key)
        with self._write() as session:
            recorded = next(iter(queries.trials(session, stage, number)), None)
            if recorded is None:
                row = TrialRow(stage_id=stage.id, number=number, candidate=candidate, evaluation_key=evaluation_key)
                row.layers = rows.layer_rows(TrialLayerRow, asked.keep_rates)
                session.add(row)
                return
            if _asked(recorded) != _asked(asked):
                raise _contradiction("candidate", recorded.candidate, candidate, _trial_place(stage, number))

    def finish_trial(
        self, stage: StageRecord, number: int, score: float, difference: float, variance: float, objective: float
    ) -> None:
        """Record the figures of a running trial (see ``TrialRecord``) and that it is complete.

        Raises:
            DatabaseError: the trial was not begun, is complete with other figures, or a figure is not finite.
        """
        rows.require_finite(score=score, difference=difference, variance=variance, objective=objective)
        figures = (score, difference, variance, objective)
        place = _trial_place(stage, number)
        with self._write() as session:
            row = queries.trial_row(session, stage, number)
            if row is None:
                raise DatabaseError("a trial must be begun before it is finished", place=place)
            if row.state == "complete":
                recorded = (row.score, row.difference, row.variance, row.objective)
                if recorded != figures:
                    raise _contradiction("figures", recorded, figures, place)
                return
            row.score, row.difference, row.variance, row.objective = figures
            row.state, row.finished = "complete", func.now()

    def trials(self, stage: StageRecord) -> list[TrialRecord]:
        """The recorded trials of a stage, by number."""
        with self._read() as session:
            return queries.trials(session, stage)

    # Evaluations

    def evaluation(self, key: str, split: str, split_digest: str, reduction: Reduction, chunks: int) -> int:
        """Identity of the evaluation with that key, recorded first where it is not there.

        Args:
            key: from ``study.key.evaluation_key``; equal keys mean equal scores.
            chunks: number of chunks of the split.

        Raises:
            DatabaseError: the recorded one is of other data or has another number of chunks.
        """
        with self._write() as session:
            row = session.scalar(select(EvaluationRow).where(EvaluationRow.key == key))
            if row is None:
                row = rows.evaluation_row(key, split, split_digest, reduction, chunks)
                session.add(row)
                session.flush()
            elif (row.split_digest, row.chunks) != (split_digest, chunks):
                recorded = (row.split_digest, row.chunks)
                raise _contradiction("split", recorded, (split_digest, chunks), f"evaluation {key}")
            return row.id

    def add_chunk(self, evaluation: int, chunk: int, scores: Sequence[float]) -> None:
        """Record the scores of one chunk, in the order of the split; a recorded chunk is not counted twice.

        Raises:
            DatabaseError: the chunk is recorded with other scores (the evaluation is not deterministic), does not
                exist, or holds a score outside [0, 1].
        """
        place = f"evaluation {evaluation}, chunk {chunk}"
        rows.require_scores(scores, place)
        with self._write() as session:
            chunks = queries.get(session, EvaluationRow, evaluation, place).chunks
            if not 0 <= chunk < chunks:
                raise DatabaseError(f"the evaluation has {chunks} chunks, counted from 0", actual=chunk, place=place)
            recorded = queries.scores(session, evaluation, chunk).get(chunk)
            if recorded is None:
                values = [
                    {"evaluation_id": evaluation, "chunk": chunk, "sample": sample, "score": float(score)}
                    for sample, score in enumerate(scores)
                ]
                session.execute(insert(ChunkScoreRow), values)
            elif recorded != tuple(scores):
                raise _contradiction("scores", recorded, tuple(scores), place)

    def chunk_scores(self, evaluation: int) -> dict[int, tuple[float, ...]]:
        """The recorded chunks of an evaluation: scores of its samples by chunk, bit for bit as they were recorded."""
        with self._read() as session:
            return queries.scores(session, evaluation)

    # Schedules

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
                raise _contradiction("schedule", row.digest, digest, f"study {study.name!r}, version {version}")
            row.document, row.digest = document, digest
            row.max_drop, row.loss_limit, row.exported = max_drop, loss_limit, func.now()

    def schedule(self, study: StudyRecord, version: int | None = None) -> str | None:
        """The recorded schedule document, the one of the newest version by default; None where there is none."""
        with self._read() as session:
            row = session.scalar(queries.schedule(study, version))
            return None if row is None else row.document


def _refuse_other(row: StudyRow | None, definition: StudyDefinition) -> None:
    if row is not None and row.digest != definition.digest:
        raise StudyConflictError(
            "a study keeps its definition",
            actual="another one",
            place=f"study {row.name!r}",
            remedy="give the changed study another name",
        )


def _trial_place(stage: StageRecord, number: int) -> str:
    return f"stage {stage.name!r}, trial {number}"


def _asked(trial: TrialRecord) -> tuple[object, ...]:
    """What is known of a trial when it begins."""
    return (trial.candidate, trial.keep_rates, trial.evaluation_key)


def _contradiction(what: str, recorded: object, given: object, place: str) -> DatabaseError:
    return DatabaseError(
        f"the {what} must not change once recorded",
        actual=_short(f"{given} instead of {recorded}"),
        place=place,
        remedy="the computation is not repeatable, or the database was edited",
    )


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


def _known(names: Sequence[str]) -> str:
    if not names:
        return "the database holds no study yet"
    return _short(f"known studies: {', '.join(names)}")
