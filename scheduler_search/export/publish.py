"""The export gate: from a finished study to a frozen schedule document, recorded and written, or refused.

Knows: when a schedule may be published and where its file goes. Does not know: how it was measured (``measure``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from scheduler_search.errors import ExportError, GateError
from scheduler_search.schedule.document import ScheduleDocument, parse_document, write_document
from scheduler_search.schedule.record import Measured, Provenance
from scheduler_search.schedule.values import Reduction, Schedule
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import StudyRecord, StudyState
from scheduler_search.study.values import Executor

_VERSION = 1


def searched_reduction(database: StudyDatabase, study: StudyRecord) -> Reduction:
    """What a finished study decided.

    Raises:
        ExportError: the study is not finished.
    """
    decisions = [stage.decision for stage in database.stages(study)]
    last = decisions[-1] if decisions else None
    if study.state is not StudyState.FINISHED or last is None:
        raise ExportError(
            "a study must be finished before it is exported",
            actual=study.state.value,
            place=f"study {study.name!r}",
            remedy=f"run: scheduler-search resume {study.name}",
        )
    return study.definition.reduction(last.keep_rates, tower_layers(database, study))


def tower_layers(database: StudyDatabase, study: StudyRecord) -> int:
    """How many of the recorded keep rates of a study are of layers of the vision tower.

    Raises:
        ExportError: it reduces in the tower, and no coordinator has loaded its model yet.
    """
    if "vision" not in study.definition.places:
        return 0
    model = database.model_description(study)
    if model is None:
        rule = "the model of a study that reduces in the vision tower must be recorded"
        raise ExportError(rule, place=f"study {study.name!r}", remedy=f"run: scheduler-search resume {study.name}")
    return study.definition.tower_layers(model.shape)


def check_validated(study: StudyRecord, allow_unvalidated: bool) -> None:
    """Refuse a study without a validation split, unless the caller takes the risk."""
    if study.definition.data.validation is None and not allow_unvalidated:
        raise ExportError(
            "a schedule is published with its measurement on data the search never saw",
            actual="a study without a validation split",
            place=f"study {study.name!r}",
            remedy="add validation to [data] of the study file, or use --allow-unvalidated",
        )


def check_folder(out: Path) -> None:
    """Refuse an output folder that cannot be written, before anything is measured for it."""
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        actual = "not a folder" if not nearest.is_dir() else "a read-only folder"
        raise ExportError(
            "the output folder must be writable", actual=actual, place=str(nearest), remedy="name another with --out"
        )


def check_gate(document: ScheduleDocument, max_drop: float | None) -> None:
    """Refuse a schedule whose paired loss on the validation split may exceed ``max_drop``.

    Raises:
        GateError: the upper 95 % limit of the loss exceeds it, or there is no measurement to judge by.
    """
    if max_drop is None:
        return
    limit = loss_limit(document.measured)
    if limit is None:
        raise GateError("--max-drop needs a measurement on a validation split", actual="an unvalidated schedule")
    if limit > max_drop:
        raise GateError(
            f"the upper 95 % limit of the loss on the validation split must not exceed {max_drop:g}",
            actual=f"{limit:.4f}",
            place=f"study {document.provenance.study!r}",
            remedy="nothing was written",
        )


def loss_limit(measured: Measured | None) -> float | None:
    """Upper 95 % limit of the paired loss (unreduced minus reduced); None without a measurement."""
    return None if measured is None else -measured.difference.interval[0]


def freeze(
    study: StudyRecord,
    reduction: Reduction,
    measured: Measured | None,
    executor: Executor,
    software: Mapping[str, str],
    found: Mapping[str, JsonValue] | None = None,
) -> ScheduleDocument:
    """The document of a study's schedule, as of now; ``found`` is added to the parameters of its algorithm."""
    definition = study.definition
    search = executor.split("search")
    validation = None if measured is None else executor.split("validation")
    parameters = cast("dict[str, JsonValue]", definition.search.to_document())
    provenance = Provenance(
        study=definition.name,
        algorithm=str(parameters.pop("algorithm")),
        algorithm_parameters=parameters | dict(found or {}),
        search_data_digest=search.digest,
        validation_data_digest=None if validation is None else validation.digest,
        search_samples=search.samples,
        validation_samples=0 if validation is None else validation.samples,
        seed=definition.seed,
        software=dict(software),
    )
    created = datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
    return ScheduleDocument(Schedule(executor.model().identity, reduction), provenance, measured, created)


def recorded_document(database: StudyDatabase, study: StudyRecord, target: str = "") -> ScheduleDocument | None:
    """The document of an earlier export (for that target), byte for byte; None where there was none."""
    text = database.schedule(study, target=target)
    return None if text is None else parse_document(text, f"the study database, study {study.name!r}")


def publish(
    database: StudyDatabase,
    study: StudyRecord,
    document: ScheduleDocument,
    out: Path,
    *,
    max_drop: float | None,
    replace: bool,
    target: str = "",
) -> Path:
    """Record a document and write it to ``<out>/<model>/<study>[-<target>].v1.json``; returns the path.

    The record comes first: a file that exists can always be traced to its study.

    Raises:
        GateError: see ``check_gate``; nothing is recorded or written.
        ScheduleDocumentError: the file exists with other content, or cannot be written.
    """
    check_gate(document, max_drop)
    database.record_schedule(
        study,
        _VERSION,
        document.to_json(),
        document.digest,
        max_drop=max_drop,
        loss_limit=loss_limit(document.measured),
        replace=replace,
        target=target,
    )
    name = f"{study.name}-{target}" if target else study.name
    path = out / document.schedule.model.id.replace("/", "--") / f"{name}.v{_VERSION}.json"
    write_document(path, document, replace=replace)
    return path
