"""What a study knows of its model and its splits, and how long a prefill took: enough to export it without either.

Knows: that the newest description counts. Does not know: how a model or a split is loaded or timed.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from scheduler_search.errors import DatabaseError
from scheduler_search.schedule.canonical import canonical_json
from scheduler_search.schedule.cost import DecoderShape, ModelShape, VisionShape
from scheduler_search.schedule.values import ModelIdentity
from scheduler_search.storage import rows
from scheduler_search.storage.connection import Connection
from scheduler_search.storage.retries import retried
from scheduler_search.storage.tables import EvaluationRow, ModelRow, PrefillRow, SplitRow, SplitSampleRow
from scheduler_search.study.states import StudyRecord
from scheduler_search.study.values import ModelDescription, SplitDescription, SplitName


class Descriptions(Connection):
    """The part of ``StudyDatabase`` that is about models, splits and times."""

    @retried
    def describe_model(self, study: StudyRecord, model: ModelDescription) -> None:
        """Record the model of a study in the place of what was recorded of it."""
        with self._write() as session:
            if _model(session, study) != model:
                session.execute(delete(ModelRow).where(ModelRow.study_id == study.id))
                session.add(_model_row(study, model))

    @retried
    def model_description(self, study: StudyRecord) -> ModelDescription | None:
        """The recorded model of a study; None where none was loaded yet."""
        with self._read() as session:
            return _model(session, study)

    @retried
    def describe_split(self, study: StudyRecord, split: SplitDescription) -> None:
        """Record a split of a study in the place of what was recorded of it."""
        with self._write() as session:
            if _split(session, study, split.name) != split:
                session.execute(delete(SplitRow).where(SplitRow.study_id == study.id, SplitRow.name == split.name))
                session.add(
                    SplitRow(
                        study_id=study.id,
                        name=split.name,
                        digest=split.digest,
                        context_digest=split.context_digest,
                        chunk_size=split.chunk_size,
                    )
                )
                session.flush()
                session.execute(insert(SplitSampleRow), _samples(study, split))

    @retried
    def split_description(self, study: StudyRecord, name: SplitName) -> SplitDescription | None:
        """The recorded split of a study; None where it was not prepared yet."""
        with self._read() as session:
            return _split(session, study, name)

    @retried
    def record_prefill(self, key: str, reduced: float, unreduced: float) -> None:
        """Record the milliseconds of a prefill in the place of what was recorded of the evaluation with that key."""
        rows.require_finite(reduced=reduced, unreduced=unreduced)
        with self._write() as session:
            evaluation = session.scalar(select(EvaluationRow.id).where(EvaluationRow.key == key))
            if evaluation is None:
                raise DatabaseError("a reduction is evaluated before its prefill is timed", place=f"evaluation {key}")
            session.execute(delete(PrefillRow).where(PrefillRow.evaluation_id == evaluation))
            session.add(PrefillRow(evaluation_id=evaluation, reduced=reduced, unreduced=unreduced))

    @retried
    def prefill(self, key: str) -> tuple[float, float] | None:
        """Milliseconds of a prefill (reduced, unreduced); None where it was not timed."""
        query = select(PrefillRow).join(EvaluationRow).where(EvaluationRow.key == key)
        with self._read() as session:
            row = session.scalar(query)
            return None if row is None else (row.reduced, row.unreduced)


def _model(session: Session, study: StudyRecord) -> ModelDescription | None:
    row = session.get(ModelRow, study.id)
    if row is None:
        return None
    identity = ModelIdentity(
        row.model, row.revision, row.architecture, row.decoder_layers, row.vision_layers, row.config_digest
    )
    environment = json.loads(row.environment)
    return ModelDescription(identity, _shape(json.loads(row.shape)), tuple((name, text) for name, text in environment))


def _model_row(study: StudyRecord, model: ModelDescription) -> ModelRow:
    identity = model.identity
    return ModelRow(
        study_id=study.id,
        model=identity.id,
        revision=identity.revision,
        architecture=identity.architecture,
        decoder_layers=identity.decoder_layers,
        vision_layers=identity.vision_layers,
        config_digest=identity.config_digest,
        shape=canonical_json(asdict(model.shape)),
        environment=canonical_json(model.environment),
    )


def _shape(document: dict[str, object]) -> ModelShape:
    decoder, vision, projector = (document.pop(name) for name in ("decoder", "vision", "projector"))
    assert isinstance(decoder, dict)
    assert isinstance(projector, list)
    tower = None
    if isinstance(vision, dict):
        tower = VisionShape(**{**vision, "windows": tuple(vision["windows"])})
    return ModelShape(DecoderShape(**decoder), tower, tuple(projector), **document)  # type: ignore[arg-type]


def _split(session: Session, study: StudyRecord, name: SplitName) -> SplitDescription | None:
    row = session.get(SplitRow, (study.id, name))
    if row is None:
        return None
    query = select(SplitSampleRow.vision_tokens, SplitSampleRow.text_tokens).where(
        SplitSampleRow.study_id == study.id, SplitSampleRow.split == name
    )
    samples = session.execute(query.order_by(SplitSampleRow.sample)).all()
    return SplitDescription(
        name=name,
        digest=row.digest,
        context_digest=row.context_digest,
        chunk_size=row.chunk_size,
        vision_tokens=tuple(vision for vision, _ in samples),
        text_tokens=tuple(text for _, text in samples),
    )


def _samples(study: StudyRecord, split: SplitDescription) -> list[dict[str, object]]:
    tokens = enumerate(zip(split.vision_tokens, split.text_tokens, strict=True))
    return [
        {"study_id": study.id, "split": split.name, "sample": sample, "vision_tokens": vision, "text_tokens": text}
        for sample, (vision, text) in tokens
    ]
