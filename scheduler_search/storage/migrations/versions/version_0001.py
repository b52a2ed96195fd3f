"""The first version of our schema.

Knows: the tables as they were then; never change what is written here. Does not know: later versions.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables in an empty database."""
    _evaluations()
    _search_studies()
    _chunk_scores()
    _evaluation_layers()
    _prefill_milliseconds()
    _schedules()
    _search_baselines()
    _search_fronts()
    _search_logs()
    _search_models()
    _search_splits()
    _search_stages()
    _search_decisions()
    _search_split_samples()
    _search_trials()
    _search_decision_layers()
    _search_trial_layers()


def _time(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def _evaluations() -> None:
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=71), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("split_digest", sa.String(length=71), nullable=False),
        sa.Column("chunks", sa.Integer(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("entry_rule", sa.Text(), nullable=True),
        sa.Column("vision_rule", sa.Text(), nullable=True),
        _time("created"),
        sa.Column("hits", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("key", name=op.f("uq_evaluations_key")),
    )


def _search_studies() -> None:
    op.create_table(
        "search_studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        _time("created"),
        _time("changed"),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.Column("owner", sa.String(length=200), nullable=True),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("heartbeat", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'interrupted', 'failed', 'finished', 'cancelled')",
            name=op.f("ck_search_studies_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_search_studies")),
        sa.UniqueConstraint("name", name=op.f("uq_search_studies_name")),
    )


def _chunk_scores() -> None:
    op.create_table(
        "chunk_scores",
        sa.Column("evaluation_id", sa.Integer(), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_chunk_scores_evaluation_id_evaluations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "chunk", "sample", name=op.f("pk_chunk_scores")),
    )


def _evaluation_layers() -> None:
    op.create_table(
        "evaluation_layers",
        sa.Column("evaluation_id", sa.Integer(), nullable=False),
        sa.Column("place", sa.String(length=16), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("keep_rate", sa.Double(), nullable=False),
        sa.CheckConstraint("place IN ('decoder', 'vision')", name=op.f("ck_evaluation_layers_place")),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_evaluation_layers_evaluation_id_evaluations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "place", "layer", name=op.f("pk_evaluation_layers")),
    )


def _prefill_milliseconds() -> None:
    op.create_table(
        "prefill_milliseconds",
        sa.Column("evaluation_id", sa.Integer(), nullable=False),
        sa.Column("reduced", sa.Double(), nullable=False),
        sa.Column("unreduced", sa.Double(), nullable=False),
        _time("measured"),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_prefill_milliseconds_evaluation_id_evaluations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", name=op.f("pk_prefill_milliseconds")),
    )


def _schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(length=100), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("max_drop", sa.Double(), nullable=True),
        sa.Column("loss_limit", sa.Double(), nullable=True),
        _time("exported"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["search_studies.id"], name=op.f("fk_schedules_study_id_search_studies"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
        sa.UniqueConstraint("study_id", "version", "target", name=op.f("uq_schedules_study_id")),
    )


def _search_baselines() -> None:
    op.create_table(
        "search_baselines",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("budget", sa.Double(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("flops", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("difference", sa.Double(), nullable=False),
        sa.Column("variance", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["search_studies.id"],
            name=op.f("fk_search_baselines_study_id_search_studies"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", "place", name=op.f("pk_search_baselines")),
    )


def _search_fronts() -> None:
    op.create_table(
        "search_fronts",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("budget", sa.Double(), nullable=False),
        sa.Column("k", sa.Double(), nullable=False),
        sa.Column("flops", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("standard_error", sa.Double(), nullable=False),
        sa.Column("difference", sa.Double(), nullable=False),
        sa.Column("difference_error", sa.Double(), nullable=False),
        sa.Column("evaluated", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["search_studies.id"],
            name=op.f("fk_search_fronts_study_id_search_studies"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", "place", name=op.f("pk_search_fronts")),
    )


def _search_logs() -> None:
    op.create_table(
        "search_logs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        _time("written"),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.CheckConstraint("level IN ('info', 'warning', 'error')", name=op.f("ck_search_logs_level")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["search_studies.id"], name=op.f("fk_search_logs_study_id_search_studies"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_search_logs")),
    )
    op.create_index(op.f("ix_search_logs_study_id"), "search_logs", ["study_id"], unique=False)


def _search_models() -> None:
    op.create_table(
        "search_models",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("decoder_layers", sa.Integer(), nullable=False),
        sa.Column("vision_layers", sa.Integer(), nullable=False),
        sa.Column("config_digest", sa.String(length=71), nullable=False),
        sa.Column("shape", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        _time("described"),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["search_studies.id"],
            name=op.f("fk_search_models_study_id_search_studies"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", name=op.f("pk_search_models")),
    )


def _search_splits() -> None:
    op.create_table(
        "search_splits",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("context_digest", sa.String(length=71), nullable=False),
        sa.Column("chunk_size", sa.Integer(), nullable=False),
        _time("described"),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["search_studies.id"],
            name=op.f("fk_search_splits_study_id_search_studies"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", "name", name=op.f("pk_search_splits")),
    )


def _search_stages() -> None:
    op.create_table(
        "search_stages",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("domain_digest", sa.String(length=71), nullable=False),
        _time("created"),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["search_studies.id"],
            name=op.f("fk_search_stages_study_id_search_studies"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_search_stages")),
        sa.UniqueConstraint("study_id", "stage", name=op.f("uq_search_stages_study_id")),
    )


def _search_decisions() -> None:
    op.create_table(
        "search_decisions",
        sa.Column("stage_id", sa.Integer(), nullable=False),
        sa.Column("candidate", sa.Integer(), nullable=False),
        sa.Column("parameter", sa.String(length=100), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("objective", sa.Double(), nullable=False),
        _time("decided"),
        sa.ForeignKeyConstraint(
            ["stage_id"],
            ["search_stages.id"],
            name=op.f("fk_search_decisions_stage_id_search_stages"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("stage_id", name=op.f("pk_search_decisions")),
    )


def _search_split_samples() -> None:
    op.create_table(
        "search_split_samples",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("vision_tokens", sa.Integer(), nullable=False),
        sa.Column("text_tokens", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id", "split"],
            ["search_splits.study_id", "search_splits.name"],
            name=op.f("fk_search_split_samples_study_id_search_splits"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", "split", "sample", name=op.f("pk_search_split_samples")),
    )


def _search_trials() -> None:
    op.create_table(
        "search_trials",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("stage_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("candidate", sa.Integer(), nullable=False),
        sa.Column("evaluation_key", sa.String(length=71), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("difference", sa.Double(), nullable=True),
        sa.Column("variance", sa.Double(), nullable=True),
        sa.Column("objective", sa.Double(), nullable=True),
        sa.Column("samples", sa.Integer(), nullable=True),
        sa.Column("total", sa.Integer(), nullable=True),
        _time("begun"),
        sa.Column("finished", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('running', 'complete', 'stopped')", name=op.f("ck_search_trials_state")),
        sa.ForeignKeyConstraint(
            ["stage_id"], ["search_stages.id"], name=op.f("fk_search_trials_stage_id_search_stages"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_search_trials")),
        sa.UniqueConstraint("stage_id", "number", name=op.f("uq_search_trials_stage_id")),
    )
    op.create_index(op.f("ix_search_trials_evaluation_key"), "search_trials", ["evaluation_key"], unique=False)


def _search_decision_layers() -> None:
    op.create_table(
        "search_decision_layers",
        sa.Column("stage_id", sa.Integer(), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("keep_rate", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["stage_id"],
            ["search_decisions.stage_id"],
            name=op.f("fk_search_decision_layers_stage_id_search_decisions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("stage_id", "layer", name=op.f("pk_search_decision_layers")),
    )


def _search_trial_layers() -> None:
    op.create_table(
        "search_trial_layers",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("keep_rate", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id"],
            ["search_trials.id"],
            name=op.f("fk_search_trial_layers_trial_id_search_trials"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_id", "layer", name=op.f("pk_search_trial_layers")),
    )
