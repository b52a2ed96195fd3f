"""`evaluate`: apply a schedule to its model and compare it with the unreduced model on one split."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scheduler_search.cli.executors import Executors
from scheduler_search.cli.render import bar_charts, interval, plain_table
from scheduler_search.cli.workers import WorkerNews
from scheduler_search.errors import StudyFileError
from scheduler_search.study import StudyDefinition, read_study_file

if TYPE_CHECKING:
    from scheduler_search.export import Comparison
    from scheduler_search.schedule.document import ScheduleDocument
    from scheduler_search.study.values import SplitName


def evaluate_schedule(
    url: str, path: Path, study: str | None, split: SplitName, as_json: bool, ray: str | None = None
) -> None:
    """Compare a schedule with the unreduced model; scores are taken from the study database where they are known.

    Args:
        ray: address of the cluster that runs the model; None to leave it to the study.

    Raises:
        ScheduleMismatchError: the schedule was made for another model than the study's.
        SchedulerSearchError: schedule, study, data or database are at fault.
    """
    from scheduler_search.coordinator import Evaluations
    from scheduler_search.export import compare
    from scheduler_search.runtime import check_identity
    from scheduler_search.schedule.document import read_document
    from scheduler_search.storage import StudyDatabase

    document = read_document(path)
    from_file = study is not None and study.endswith(".toml")
    definition = read_study_file(Path(study)) if from_file and study is not None else None
    with StudyDatabase.open(url, create=from_file) as database, Console(stderr=True).status("evaluating"):
        definition = definition or database.study(study or document.provenance.study).definition
        _check_split(definition, split)
        with Executors(ray) as executors, closing(executors.make(definition, WorkerNews().receive)) as executor:
            check_identity(document.schedule, executor.model().identity)
            scores = Evaluations(database, executor).scores
            comparison = compare(document.schedule.reduction, split, executor, scores)
            environment = dict(executor.model().environment)
    if as_json:
        print(json.dumps(_document(path, document, split, comparison, environment), indent=2))
    else:
        _print(document, split, comparison)


def _check_split(definition: StudyDefinition, split: SplitName) -> None:
    if split not in definition.data.splits:
        raise StudyFileError(
            "the split must be one of the study's",
            actual=repr(split),
            place=f"study {definition.name!r}",
            remedy=f"use --split {'|'.join(definition.data.splits)}, or --study with a study file that has it",
        )


def _document(
    path: Path, document: ScheduleDocument, split: SplitName, comparison: Comparison, environment: dict[str, str]
) -> dict[str, object]:
    times, reduction = comparison.prefill_milliseconds, document.schedule.reduction
    return {
        "schedule": path.name,
        "digest": document.digest,
        "split": split,
        "samples": comparison.samples,
        "reduced": comparison.reduced.model_dump(),
        "unreduced": comparison.unreduced.model_dump(),
        "difference": comparison.difference.model_dump(),
        "tflops": comparison.tflops.model_dump(),
        "kv_cache_ratio": comparison.kv_cache_ratio,
        "vision_kv_cache_ratio": comparison.vision_kv_cache_ratio,
        "prefill_milliseconds": times.model_dump() if times else None,
        "keep_rates": list(reduction.keep_rates),
        **({"vision_keep_rates": list(reduction.tower_rates)} if reduction.tower_rates else {}),
        "environment": environment,
    }


def _print(document: ScheduleDocument, split: SplitName, comparison: Comparison) -> None:
    console = Console()
    reduction = document.schedule.reduction
    console.print(bar_charts(reduction.keep_rates, reduction.tower_rates))
    tflops = comparison.tflops
    full, reduced = comparison.unreduced, comparison.reduced
    rows = [
        (
            "score",
            f"{full.score:.4f} ± {full.standard_error:.4f}",
            f"{reduced.score:.4f} ± {reduced.standard_error:.4f}",
            "",
        ),
        (
            "TFLOPs per prefill",
            f"{tflops.unreduced:.6f}",
            f"{tflops.reduced:.6f}",
            f"{tflops.reduced / tflops.unreduced:.3f}",
        ),
        ("KV cache", "1", "", f"{comparison.kv_cache_ratio:.3f}"),
        ("KV cache of vision tokens", "1", "", f"{comparison.vision_kv_cache_ratio:.3f}"),
        *_times(comparison),
    ]
    title = f"{document.schedule.model.id} on the {split} split, {comparison.samples} samples"
    console.print(plain_table(title, ("", "unreduced", "reduced", "ratio"), rows))
    difference = comparison.difference
    console.print(f"reduced minus unreduced, paired, 95 % interval: {interval(difference.mean, *difference.interval)}")


def _times(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    times = comparison.prefill_milliseconds
    if times is None:
        return []
    ratio = f"{times.reduced / times.unreduced:.3f}"
    return [(f"prefill of one chunk, ms, {times.device}", f"{times.unreduced:.1f}", f"{times.reduced:.1f}", ratio)]
