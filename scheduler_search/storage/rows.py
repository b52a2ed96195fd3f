"""From rows to the records that the other packages see, and back.

Knows: how a value is laid out in rows. Does not know: transactions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from scheduler_search.errors import DatabaseError
from scheduler_search.rule import Rule
from scheduler_search.schedule.canonical import canonical_json
from scheduler_search.schedule.values import Reduction
from scheduler_search.storage.tables import (
    BaselineRow,
    DecisionLayerRow,
    DecisionRow,
    FrontRow,
    LogRow,
    StageRow,
    StudyRow,
    TrialRow,
)
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.front import BaselineScore, FrontPoint
from scheduler_search.study.states import Decision, Figures, LogLine, StageRecord, StudyRecord, StudyState, TrialRecord


def study_record(row: StudyRow) -> StudyRecord:
    """The study that a row holds."""
    return StudyRecord(
        id=row.id,
        name=row.name,
        digest=row.digest,
        definition=StudyDefinition.from_json(row.definition, f"the study database, study {row.name!r}"),
        state=StudyState(row.state),
        error=row.error,
        created=_utc(row.created),
        changed=_utc(row.changed),
        traceback=row.traceback,
        priority=row.priority,
        attempts=row.attempts,
        owner=row.owner,
    )


def log_line(row: LogRow) -> LogLine:
    """The line of a log that a row holds."""
    return LogLine(_utc(row.written), row.level, row.text)


def stage_record(row: StageRow) -> StageRecord:
    """The stage that a row holds, with its decision."""
    decision = None if row.decision is None else _decision(row, row.decision)
    return StageRecord(row.id, row.stage, row.name, row.domain_digest, decision)


def _decision(stage: StageRow, row: DecisionRow) -> Decision:
    return Decision(
        stage=stage.stage,
        name=stage.name,
        candidate=row.candidate,
        parameter=row.parameter,
        value=row.value,
        keep_rates=tuple(layer.keep_rate for layer in row.layers),
        score=row.score,
        objective=row.objective,
    )


def decision_row(stage: StageRow, decision: Decision) -> DecisionRow:
    """The row of a decision."""
    require_finite(value=decision.value, score=decision.score, objective=decision.objective)
    return DecisionRow(
        stage_id=stage.id,
        candidate=decision.candidate,
        parameter=decision.parameter,
        value=decision.value,
        score=decision.score,
        objective=decision.objective,
        layers=[DecisionLayerRow(layer=at, keep_rate=rate) for at, rate in enumerate(decision.keep_rates, start=1)],
    )


def trial_record(row: TrialRow, keep_rates: tuple[float, ...]) -> TrialRecord:
    """The trial that a row and those of its layers hold."""
    return TrialRecord(row.number, row.candidate, keep_rates, row.evaluation_key, figures(row))


def figures(row: TrialRow | Row[Any]) -> Figures | None:
    """What a trial came to; None while it is running."""
    if row.state == "running":
        return None
    return Figures(*(getattr(row, field.name) for field in fields(Figures)))


def figure_values(of: Figures) -> dict[str, object]:
    """The columns of a trial with these figures, and the state that follows from them."""
    return {**vars(of), "state": "complete" if of.complete else "stopped"}


def evaluation_values(key: str, split: str, split_digest: str, reduction: Reduction, chunks: int) -> dict[str, object]:
    """The columns of an evaluation."""
    return {
        "key": key,
        "split": split,
        "split_digest": split_digest,
        "chunks": chunks,
        "rule": canonical_json(reduction.rule.to_document()),
        "entry_rule": _rule_text(reduction.entry_rule),
        "vision_rule": _rule_text(reduction.vision.rule if reduction.vision else None),
    }


def evaluation_layers(evaluation: int, reduction: Reduction) -> list[dict[str, object]]:
    """The columns of the layers of an evaluation."""
    places: Mapping[str, Sequence[float]] = {
        "decoder": reduction.keep_rates,
        "vision": reduction.vision.keep_rates if reduction.vision else (),
    }
    return [
        {"evaluation_id": evaluation, "place": place, "layer": layer, "keep_rate": rate}
        for place, rates in places.items()
        for layer, rate in enumerate(rates, start=1)
    ]


def front_row(study: StudyRecord, place: int, point: FrontPoint) -> FrontRow:
    """The row of a point of a front."""
    return FrontRow(study_id=study.id, place=place, **vars(point))


def front_point(row: FrontRow) -> FrontPoint:
    """The point of a front that a row holds."""
    return FrontPoint(**{field.name: getattr(row, field.name) for field in fields(FrontPoint)})


def baseline_row(study: StudyRecord, place: int, score: BaselineScore) -> BaselineRow:
    """The row of a baseline's score."""
    return BaselineRow(study_id=study.id, place=place, **vars(score))


def baseline_score(row: BaselineRow) -> BaselineScore:
    """The baseline's score that a row holds."""
    return BaselineScore(**{field.name: getattr(row, field.name) for field in fields(BaselineScore)})


def trial_layers(trial: int, keep_rates: Sequence[float]) -> list[dict[str, object]]:
    """The columns of the layers of a trial."""
    return [{"trial_id": trial, "layer": layer, "keep_rate": rate} for layer, rate in enumerate(keep_rates, start=1)]


def require_finite(**figures: float) -> None:
    """Refuse NaN, which SQL databases store as null or not at all, and infinities."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise DatabaseError(f"the recorded {name} must be a finite number", actual=value)


def require_figures(of: Figures) -> None:
    """Refuse figures that are not finite, or of more samples than there are."""
    require_finite(score=of.score, difference=of.difference, variance=of.variance, objective=of.objective)
    if not 1 <= of.samples <= of.total:
        raise DatabaseError(f"a trial reads 1 to {of.total} samples", actual=of.samples)


def require_scores(scores: Sequence[float], place: str) -> None:
    """Refuse a chunk without samples and scores outside [0, 1]."""
    if not scores:
        raise DatabaseError("a chunk must hold at least one score", place=place)
    for score in scores:
        if not 0.0 <= score <= 1.0:
            raise DatabaseError("a score must lie in [0, 1]", actual=score, place=place)


def _rule_text(rule: Rule | None) -> str | None:
    return None if rule is None else canonical_json(rule.to_document())


def _utc(time: datetime) -> datetime:
    # SQLite has no time zones: CURRENT_TIMESTAMP is UTC and comes back without one.
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
