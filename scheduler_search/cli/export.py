"""`export`: validate, gate, freeze and write the schedule of a finished study; say plainly what it does not beat."""

from __future__ import annotations

from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scheduler_search.cli.executors import Executors
from scheduler_search.cli.front import print_expectation
from scheduler_search.cli.render import interval, plain_table
from scheduler_search.cli.workers import WorkerNews
from scheduler_search.errors import DataError, ExportError, ModelError, NotRecordedError

if TYPE_CHECKING:
    from scheduler_search.schedule.document import ScheduleDocument
    from scheduler_search.schedule.record import Measured
    from scheduler_search.schedule.values import Reduction
    from scheduler_search.search.target import Target
    from scheduler_search.storage import StudyDatabase
    from scheduler_search.study.states import StudyRecord
    from scheduler_search.study.values import Executor

_SOFTWARE = ("scheduler-search", "torch", "transformers", "optuna", "botorch", "gpytorch")


def export_schedule(
    url: str,
    name: str,
    out: Path,
    *,
    tflops: float | None = None,
    keep_rate: float | None = None,
    max_drop: float | None = None,
    allow_unvalidated: bool = False,
    replace: bool = False,
    ray: str | None = None,
) -> None:
    """Export a study; of a frontier study, the schedule for one target.

    Args:
        ray: address of the cluster that runs the model, where it must be run; None to leave it to the study.

    Raises:
        ExportError: the study is not finished, or has no validation split, or the options do not fit its algorithm.
        GateError: the schedule may lose more than ``max_drop``.
        ScheduleDocumentError: the file cannot be written, or holds another document.
    """
    from scheduler_search.export import check_folder, check_validated, publish, recorded_document, target_of
    from scheduler_search.storage import StudyDatabase

    check_folder(out)
    with StudyDatabase.open(url, create=False) as database:
        study = database.study(name)
        target = target_of(study, tflops, keep_rate, max_drop)
        label = "" if target is None else target.label
        check_validated(study, allow_unvalidated)
        document = None if replace else recorded_document(database, study, label)
        if document is None:
            with Console(stderr=True).status("measuring on the validation split"):
                document = _measured_document(database, study, target, again=replace, ray=ray)
        print_expectation(document)
        _print_measurement(document)
        path = publish(database, study, document, out, max_drop=max_drop, replace=replace, target=label)
    Console().print(f"wrote {path}", soft_wrap=True)


def _measured_document(
    database: StudyDatabase, study: StudyRecord, target: Target | None, *, again: bool, ray: str | None
) -> ScheduleDocument:
    """From the database alone where all that takes is recorded, unless asked ``again``; else with model and data."""
    from scheduler_search.coordinator import RecordedExecutor, TimedExecutor, record_descriptions
    from scheduler_search.export import searched_reduction

    decided = searched_reduction(database, study)
    if not again:
        with suppress(NotRecordedError):
            return _document(database, study, decided, target, RecordedExecutor(database, study))
    with Executors(ray) as executors, closing(executors.make(study.definition, WorkerNews().receive)) as executor:
        try:
            record_descriptions(database, study, executor)
        except (ModelError, DataError) as error:
            raise ExportError(
                "an export needs the model and the data of its study, unless its validation is recorded",
                actual=str(error),
                place=f"study {study.name!r}",
                remedy="export it where both are, once; from then on the database is enough",
            ) from error
        return _document(database, study, decided, target, TimedExecutor(database, executor, again=again))


def _document(
    database: StudyDatabase, study: StudyRecord, reduction: Reduction, target: Target | None, executor: Executor
) -> ScheduleDocument:
    from scheduler_search.coordinator import Evaluations
    from scheduler_search.export import chosen, freeze, measure, parameters_of, reduction_of

    definition = study.definition
    measured, found = None, None
    if target is not None:
        choice = chosen(database, study, executor, target)
        reduction, found = reduction_of(study, choice), parameters_of(target, choice)
    if definition.data.validation is not None:
        measured = measure(
            reduction,
            metric=definition.data.metric,
            first_layer=definition.search.first_layer,
            seed=definition.seed,
            executor=executor,
            scores=Evaluations(database, executor).scores,
        )
    return freeze(study, reduction, measured, executor, _software(executor), found)


def _software(executor: Executor) -> dict[str, str]:
    """Versions of what is installed, and of what ran the model."""
    ran = dict(executor.model().environment)
    return {name: ran.get(name) or version(name) for name in _SOFTWARE}


def _print_measurement(document: ScheduleDocument) -> None:
    console = Console()
    measured = document.measured
    if measured is None:
        console.print("this schedule was not validated: its measured block is null")
        return
    console.print(
        f"validation split, {measured.samples} samples, {measured.metric}: "
        f"{measured.reduced.score:.4f} reduced, {measured.unreduced.score:.4f} unreduced"
    )
    console.print(f"reduced minus unreduced, paired, 95 % interval: {_difference(measured)}")
    rows = [
        (
            baseline.name,
            f"{baseline.score:.4f}",
            interval(baseline.difference.mean, *baseline.difference.interval),
            f"{baseline.flops_ratio:.3f}",
            "yes" if baseline.beaten else "no",
        )
        for baseline in measured.baselines
    ]
    headings = ("baseline", "score", "schedule minus baseline [95 %]", "FLOPs ratio", "beaten")
    console.print(plain_table("baselines at matched FLOPs", headings, rows))
    console.print(_verdict(measured))


def _difference(measured: Measured) -> str:
    return interval(measured.difference.mean, *measured.difference.interval)


def _verdict(measured: Measured) -> str:
    unbeaten = [baseline.name for baseline in measured.baselines if not baseline.beaten]
    if not unbeaten:
        return "the schedule beats every baseline: each 95 % interval lies above zero"
    winners = [baseline.name for baseline in measured.baselines if baseline.difference.interval[1] < 0.0]
    text = f"the schedule does NOT beat: {', '.join(unbeaten)}"
    return text + (f"; it loses to: {', '.join(winners)}" if winners else "")
