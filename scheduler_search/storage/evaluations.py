"""Evaluations in the database: the scores of a reduction over a split, chunk by chunk, shared by all studies.

Knows: that a chunk is counted once and keeps its scores. Does not know: what makes two evaluations the same
(``study.key``).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from scheduler_search.errors import DatabaseError
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage import queries, rows
from scheduler_search.storage.connection import Connection
from scheduler_search.storage.refusals import contradiction
from scheduler_search.storage.retries import retried
from scheduler_search.storage.tables import ChunkScoreRow, EvaluationLayerRow, EvaluationRow, Table
from scheduler_search.study.states import EvaluationTotals

# Chunks are recorded most often: made once and without objects, a statement takes a fifth of the time.
_EVALUATIONS = Table.metadata.tables[EvaluationRow.__tablename__]
_LAYERS = Table.metadata.tables[EvaluationLayerRow.__tablename__]
_SCORES = Table.metadata.tables[ChunkScoreRow.__tablename__]
_CHUNKS = select(_EVALUATIONS.c.chunks).where(_EVALUATIONS.c.id == bindparam("evaluation"))
_WITH_KEY = select(_EVALUATIONS).where(_EVALUATIONS.c.key == bindparam("wanted"))
_INSERT = _EVALUATIONS.insert().returning(_EVALUATIONS.c.id)
# With something to return, PostgreSQL gets all rows in one statement, and not a statement for each.
_INSERT_LAYERS = _LAYERS.insert().returning(_LAYERS.c.layer)
_INSERT_SCORES = _SCORES.insert().returning(_SCORES.c.sample)


class Evaluations(Connection):
    """The part of ``StudyDatabase`` that is about evaluations."""

    @retried
    def evaluation(self, key: str, split: str, split_digest: str, reduction: Reduction, chunks: int) -> int:
        """Identity of the evaluation with that key, recorded first where it is not there.

        Args:
            key: from ``study.key.evaluation_key``; equal keys mean equal scores.
            chunks: number of chunks of the split.

        Raises:
            DatabaseError: the recorded one is of other data or has another number of chunks.
        """
        with self._write() as session:
            return _evaluation(session, key, split, split_digest, reduction, chunks)

    @retried
    def take_up(
        self, key: str, split: str, split_digest: str, reduction: Reduction, chunks: int
    ) -> tuple[int, dict[int, tuple[float, ...]]]:
        """``evaluation`` and its ``chunk_scores`` at once."""
        with self._write() as session:
            identity = _evaluation(session, key, split, split_digest, reduction, chunks)
            return identity, queries.scores(session, identity)

    @retried
    def add_chunk(self, evaluation: int, chunk: int, scores: Sequence[float]) -> None:
        """Record the scores of one chunk, in the order of the split; a recorded chunk is not counted twice.

        Raises:
            DatabaseError: the chunk is recorded with other scores (the evaluation is not deterministic), does not
                exist, or holds a score outside [0, 1].
        """
        place = f"evaluation {evaluation}, chunk {chunk}"
        rows.require_scores(scores, place)
        with self._write() as session:
            chunks = session.execute(_CHUNKS, {"evaluation": evaluation}).scalar_one_or_none()
            if chunks is None:
                raise queries.missing(place)
            if not 0 <= chunk < chunks:
                raise DatabaseError(f"the evaluation has {chunks} chunks, counted from 0", actual=chunk, place=place)
            recorded = queries.scores(session, evaluation, chunk).get(chunk)
            if recorded is None:
                values = [
                    {"evaluation_id": evaluation, "chunk": chunk, "sample": sample, "score": float(score)}
                    for sample, score in enumerate(scores)
                ]
                session.execute(_INSERT_SCORES, values)
            elif recorded != tuple(scores):
                raise contradiction("scores", recorded, tuple(scores), place)

    @retried
    def add_hits(self, evaluation: int, chunks: int) -> None:
        """Count chunks of an evaluation that were read from the database where they would have been computed."""
        with self._write() as session:
            queries.get(session, EvaluationRow, evaluation, f"evaluation {evaluation}").hits += chunks

    @retried
    def evaluation_totals(self) -> EvaluationTotals:
        """Over all evaluations of the database."""
        with self._read() as session:
            chunks = select(ChunkScoreRow.evaluation_id, ChunkScoreRow.chunk).distinct().subquery()
            return EvaluationTotals(
                evaluations=session.scalars(select(func.count(EvaluationRow.id))).one(),
                chunks=session.scalars(select(func.count()).select_from(chunks)).one(),
                samples=session.scalars(select(func.count()).select_from(ChunkScoreRow)).one(),
                hits=session.scalars(select(func.coalesce(func.sum(EvaluationRow.hits), 0))).one(),
            )

    @retried
    def chunk_scores(self, evaluation: int) -> dict[int, tuple[float, ...]]:
        """The recorded chunks of an evaluation: scores of its samples by chunk, bit for bit as they were recorded."""
        with self._read() as session:
            return queries.scores(session, evaluation)

    @retried
    def scores_of(self, key: str) -> dict[int, tuple[float, ...]]:
        """``chunk_scores`` of the evaluation with that key; none where there is no such evaluation."""
        with self._read() as session:
            row = session.execute(_WITH_KEY, {"wanted": key}).one_or_none()
            return {} if row is None else queries.scores(session, int(row.id))


def _evaluation(session: Session, key: str, split: str, split_digest: str, reduction: Reduction, chunks: int) -> int:
    row = session.execute(_WITH_KEY, {"wanted": key}).one_or_none()
    if row is None:
        values = rows.evaluation_values(key, split, split_digest, reduction, chunks)
        identity = int(session.execute(_INSERT, values).scalar_one())
        session.execute(_INSERT_LAYERS, rows.evaluation_layers(identity, reduction))
        return identity
    if (row.split_digest, row.chunks) != (split_digest, chunks):
        recorded = (row.split_digest, row.chunks)
        raise contradiction("split", recorded, (split_digest, chunks), f"evaluation {key}")
    return int(row.id)
