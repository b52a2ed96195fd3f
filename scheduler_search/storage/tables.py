"""Our tables. They lie beside Optuna's (``studies``, ``trials``, ...) in one database and share no name with them.

Knows: columns, keys and constraints. Does not know: who reads or writes them (``database``).

Layers are counted from 1, as everywhere outside Python sequences. Times are the database's clock, in UTC.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from scheduler_search.study.states import StudyState

_NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
_STATES = ", ".join(f"'{state.value}'" for state in StudyState)


def _owner(column: str, *, primary_key: bool = False) -> Mapped[int]:
    return mapped_column(ForeignKey(column, ondelete="CASCADE"), primary_key=primary_key)


def _now() -> Mapped[datetime]:
    return mapped_column(DateTime(timezone=True), server_default=func.now())


class Table(DeclarativeBase):
    """Base of our tables."""

    metadata = MetaData(naming_convention=_NAMES)


class StudyRow(Table):
    """A study: its definition as JSON text, where it stands, and who runs it.

    ``owner`` and ``heartbeat`` (seconds of the database's clock) are null while nobody holds the lease; ``epoch``
    counts the leases that there were, and the cancellations.
    """

    __tablename__ = "search_studies"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    digest: Mapped[str] = mapped_column(String(71))
    definition: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), default=StudyState.QUEUED.value)
    error: Mapped[str | None] = mapped_column(Text)
    created: Mapped[datetime] = _now()
    changed: Mapped[datetime] = _now()
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    traceback: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None] = mapped_column(String(200))
    epoch: Mapped[int] = mapped_column(default=0, server_default="0")
    heartbeat: Mapped[float | None] = mapped_column(Double)
    __table_args__ = (CheckConstraint(f"state IN ({_STATES})", name="state"),)


class LogRow(Table):
    """A line of a study's log, of level ``info``, ``warning`` or ``error``."""

    __tablename__ = "search_logs"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("search_studies.id", ondelete="CASCADE"), index=True)
    written: Mapped[datetime] = _now()
    level: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(Text)
    __table_args__ = (CheckConstraint("level IN ('info', 'warning', 'error')", name="level"),)


class StageRow(Table):
    """A one-dimensional sub-search of a study; its decision is there once it is decided."""

    __tablename__ = "search_stages"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _owner("search_studies.id")
    stage: Mapped[int]
    name: Mapped[str] = mapped_column(String(100))
    domain_digest: Mapped[str] = mapped_column(String(71))
    created: Mapped[datetime] = _now()
    decision: Mapped[DecisionRow | None] = relationship(lazy="selectin")
    __table_args__ = (UniqueConstraint("study_id", "stage"),)


class DecisionRow(Table):
    """What a stage decided."""

    __tablename__ = "search_decisions"
    stage_id: Mapped[int] = _owner("search_stages.id", primary_key=True)
    candidate: Mapped[int]
    parameter: Mapped[str] = mapped_column(String(100))
    value: Mapped[float] = mapped_column(Double)
    score: Mapped[float] = mapped_column(Double)
    objective: Mapped[float] = mapped_column(Double)
    decided: Mapped[datetime] = _now()
    layers: Mapped[list[DecisionLayerRow]] = relationship(lazy="selectin", order_by="DecisionLayerRow.layer")


class DecisionLayerRow(Table):
    """Keep rate at the input of one decoder layer, with this decision and all earlier ones."""

    __tablename__ = "search_decision_layers"
    stage_id: Mapped[int] = _owner("search_decisions.stage_id", primary_key=True)
    layer: Mapped[int] = mapped_column(primary_key=True)
    keep_rate: Mapped[float] = mapped_column(Double)


class TrialRow(Table):
    """One candidate of a stage. ``evaluation_key`` joins ``evaluations.key``, which is written after it."""

    __tablename__ = "search_trials"
    id: Mapped[int] = mapped_column(primary_key=True)
    stage_id: Mapped[int] = _owner("search_stages.id")
    number: Mapped[int]
    candidate: Mapped[int]
    evaluation_key: Mapped[str] = mapped_column(String(71), index=True)
    state: Mapped[str] = mapped_column(String(16), default="running")
    score: Mapped[float | None] = mapped_column(Double)
    difference: Mapped[float | None] = mapped_column(Double)
    variance: Mapped[float | None] = mapped_column(Double)
    objective: Mapped[float | None] = mapped_column(Double)
    samples: Mapped[int | None]
    total: Mapped[int | None]
    begun: Mapped[datetime] = _now()
    finished: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    layers: Mapped[list[TrialLayerRow]] = relationship(lazy="raise")
    __table_args__ = (
        UniqueConstraint("stage_id", "number"),
        CheckConstraint("state IN ('running', 'complete', 'stopped')", name="state"),
    )


class TrialLayerRow(Table):
    """Keep rate of a trial at the input of one decoder layer."""

    __tablename__ = "search_trial_layers"
    trial_id: Mapped[int] = _owner("search_trials.id", primary_key=True)
    layer: Mapped[int] = mapped_column(primary_key=True)
    keep_rate: Mapped[float] = mapped_column(Double)


class EvaluationRow(Table):
    """Running a model over a split with one reduction, shared by every study. Rules are JSON text.

    ``split`` and the keep rates are those of the first who asked; others with an equal key may have other ones.
    ``hits`` counts chunks that were read from here instead of being computed again.
    """

    __tablename__ = "evaluations"
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(71), unique=True)
    split: Mapped[str] = mapped_column(String(16))
    split_digest: Mapped[str] = mapped_column(String(71))
    chunks: Mapped[int]
    rule: Mapped[str] = mapped_column(Text)
    entry_rule: Mapped[str | None] = mapped_column(Text)
    vision_rule: Mapped[str | None] = mapped_column(Text)
    created: Mapped[datetime] = _now()
    hits: Mapped[int] = mapped_column(default=0, server_default="0")
    layers: Mapped[list[EvaluationLayerRow]] = relationship(lazy="raise")


class EvaluationLayerRow(Table):
    """Keep rate of an evaluation at one layer of the decoder or of the vision tower."""

    __tablename__ = "evaluation_layers"
    evaluation_id: Mapped[int] = _owner("evaluations.id", primary_key=True)
    place: Mapped[str] = mapped_column(String(16), primary_key=True)
    layer: Mapped[int] = mapped_column(primary_key=True)
    keep_rate: Mapped[float] = mapped_column(Double)
    __table_args__ = (CheckConstraint("place IN ('decoder', 'vision')", name="place"),)


class ChunkScoreRow(Table):
    """Score of one sample; ``sample`` counts from 0 within its chunk."""

    __tablename__ = "chunk_scores"
    evaluation_id: Mapped[int] = _owner("evaluations.id", primary_key=True)
    chunk: Mapped[int] = mapped_column(primary_key=True)
    sample: Mapped[int] = mapped_column(primary_key=True)
    score: Mapped[float] = mapped_column(Double)


class FrontRow(Table):
    """A point of the front that a frontier study found, in the order in which reports show them."""

    __tablename__ = "search_fronts"
    study_id: Mapped[int] = _owner("search_studies.id", primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    budget: Mapped[float] = mapped_column(Double)
    k: Mapped[float] = mapped_column(Double)
    flops: Mapped[float] = mapped_column(Double)
    score: Mapped[float] = mapped_column(Double)
    standard_error: Mapped[float] = mapped_column(Double)
    difference: Mapped[float] = mapped_column(Double)
    difference_error: Mapped[float] = mapped_column(Double)
    evaluated: Mapped[bool]


class BaselineRow(Table):
    """Score of a baseline on the search split, at the FLOPs of the front at ``budget``."""

    __tablename__ = "search_baselines"
    study_id: Mapped[int] = _owner("search_studies.id", primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    budget: Mapped[float] = mapped_column(Double)
    name: Mapped[str] = mapped_column(String(100))
    flops: Mapped[float] = mapped_column(Double)
    score: Mapped[float] = mapped_column(Double)
    difference: Mapped[float] = mapped_column(Double)
    variance: Mapped[float] = mapped_column(Double)


class ModelRow(Table):
    """The model of a study as it was last loaded. ``shape`` and ``environment`` are JSON text."""

    __tablename__ = "search_models"
    study_id: Mapped[int] = _owner("search_studies.id", primary_key=True)
    model: Mapped[str] = mapped_column(Text)
    revision: Mapped[str] = mapped_column(Text)
    architecture: Mapped[str] = mapped_column(Text)
    decoder_layers: Mapped[int]
    vision_layers: Mapped[int]
    config_digest: Mapped[str] = mapped_column(String(71))
    shape: Mapped[str] = mapped_column(Text)
    environment: Mapped[str] = mapped_column(Text)
    described: Mapped[datetime] = _now()


class SplitRow(Table):
    """A split of a study as it was last prepared; ``name`` is ``search``, ``validation`` or ``test``."""

    __tablename__ = "search_splits"
    study_id: Mapped[int] = _owner("search_studies.id", primary_key=True)
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    digest: Mapped[str] = mapped_column(String(71))
    context_digest: Mapped[str] = mapped_column(String(71))
    chunk_size: Mapped[int]
    described: Mapped[datetime] = _now()


class SplitSampleRow(Table):
    """Prompt tokens of one sample of a split, counted from 0 in the order of the split."""

    __tablename__ = "search_split_samples"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    split: Mapped[str] = mapped_column(String(16), primary_key=True)
    sample: Mapped[int] = mapped_column(primary_key=True)
    vision_tokens: Mapped[int]
    text_tokens: Mapped[int]
    __table_args__ = (
        ForeignKeyConstraint(
            ["study_id", "split"], ["search_splits.study_id", "search_splits.name"], ondelete="CASCADE"
        ),
    )


class PrefillRow(Table):
    """Measured milliseconds of a prefill of one chunk, with the reduction of an evaluation and without any."""

    __tablename__ = "prefill_milliseconds"
    evaluation_id: Mapped[int] = _owner("evaluations.id", primary_key=True)
    reduced: Mapped[float] = mapped_column(Double)
    unreduced: Mapped[float] = mapped_column(Double)
    measured: Mapped[datetime] = _now()


class ScheduleRow(Table):
    """An exported schedule document and what its gate was asked and found (null where it was not asked).

    ``target`` is what a front was asked for (``keep-0.25``); empty where a study has the one schedule that it decided.
    """

    __tablename__ = "schedules"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _owner("search_studies.id")
    version: Mapped[int]
    target: Mapped[str] = mapped_column(String(100), default="")
    digest: Mapped[str] = mapped_column(String(71))
    document: Mapped[str] = mapped_column(Text)
    max_drop: Mapped[float | None] = mapped_column(Double)
    loss_limit: Mapped[float | None] = mapped_column(Double)
    exported: Mapped[datetime] = _now()
    __table_args__ = (UniqueConstraint("study_id", "version", "target"),)
