"""Fronts and the scores of baselines in the database.

Knows: that each is recorded once, as a whole. Does not know: how either came to be.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, select

from scheduler_search.storage import rows
from scheduler_search.storage.connection import Connection
from scheduler_search.storage.refusals import contradiction
from scheduler_search.storage.retries import retried
from scheduler_search.storage.tables import BaselineRow, FrontRow
from scheduler_search.study.front import BaselineScore, FrontPoint
from scheduler_search.study.states import StudyRecord


class Fronts(Connection):
    """The part of ``StudyDatabase`` that is about fronts."""

    @retried
    def record_front(self, study: StudyRecord, points: Sequence[FrontPoint]) -> None:
        """Record all points of a front; DatabaseError where others are recorded."""
        for point in points:
            rows.require_finite(score=point.score, error=point.standard_error, difference=point.difference)
        with self._write() as session:
            recorded = [rows.front_point(row) for row in session.scalars(_points(study))]
            if not recorded:
                session.add_all(rows.front_row(study, place, point) for place, point in enumerate(points))
            elif recorded != list(points):
                raise contradiction("front", recorded, list(points), f"study {study.name!r}")

    @retried
    def front(self, study: StudyRecord) -> list[FrontPoint]:
        """The recorded points, in the order in which they were given; none where there is no front."""
        with self._read() as session:
            return [rows.front_point(row) for row in session.scalars(_points(study))]

    @retried
    def record_baselines(self, study: StudyRecord, scores: Sequence[BaselineScore]) -> None:
        """Record the scores of all baselines; DatabaseError where others are recorded."""
        for score in scores:
            rows.require_finite(score=score.score, difference=score.difference, variance=score.variance)
        with self._write() as session:
            recorded = [rows.baseline_score(row) for row in session.scalars(_baselines(study))]
            if not recorded:
                session.add_all(rows.baseline_row(study, place, score) for place, score in enumerate(scores))
            elif recorded != list(scores):
                raise contradiction("baselines", recorded, list(scores), f"study {study.name!r}")

    @retried
    def baselines(self, study: StudyRecord) -> list[BaselineScore]:
        """The recorded scores, in the order in which they were given."""
        with self._read() as session:
            return [rows.baseline_score(row) for row in session.scalars(_baselines(study))]


def _points(study: StudyRecord) -> Select[FrontRow]:
    return select(FrontRow).where(FrontRow.study_id == study.id).order_by(FrontRow.place)


def _baselines(study: StudyRecord) -> Select[BaselineRow]:
    return select(BaselineRow).where(BaselineRow.study_id == study.id).order_by(BaselineRow.place)
