"""`launch` and `resume`: check everything that a study needs, then run it in the foreground with live progress."""

from __future__ import annotations

import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from scheduler_search.cli.front import print_front
from scheduler_search.cli.lease import wait_for_lease
from scheduler_search.cli.render import bar_charts
from scheduler_search.cli.stopping import stop_on
from scheduler_search.cli.workplace import Workplace
from scheduler_search.errors import StudyNotFoundError
from scheduler_search.study import read_study_file
from scheduler_search.study.states import StudyState

if TYPE_CHECKING:
    from scheduler_search.search import Algorithm
    from scheduler_search.storage import StudyDatabase
    from scheduler_search.study.states import StudyRecord
    from scheduler_search.study.values import Executor


def launch_study(url: str, study_file: Path, ray: str | None = None) -> None:
    """Run the study of a file. Nothing is written before the model and every sample of every split could be read.

    Args:
        ray: address of the cluster that runs it; None to leave it to the study.

    Raises:
        StudyConflictError: a study of that name exists with another definition.
        SchedulerSearchError: the study file, the model, the data or the database is at fault.
    """
    from scheduler_search.storage import StudyDatabase, database_exists

    definition = read_study_file(study_file)
    if database_exists(url):
        with StudyDatabase.open(url, create=False) as database:
            database.check_definition(definition)
            with suppress(StudyNotFoundError):
                wait_for_lease(database, database.study(definition.name))
    with Workplace(Console(), ray) as workplace:
        executor, algorithm = workplace.load(definition)
        with closing(executor), StudyDatabase.open(url) as database:
            _run(database, database.add_study(definition), executor, algorithm, workplace)


def resume_study(url: str, name: str, take_over: bool, ray: str | None = None) -> None:
    """Go on with a recorded study, when whoever ran it has fallen silent, or at once to ``take_over``.

    Args:
        ray: address of the cluster that runs it; None to leave it to the study.

    Raises:
        StudyNotFoundError: no study of that name.
        LeaseHeldError: another process runs it.
    """
    from scheduler_search.storage import StudyDatabase

    with StudyDatabase.open(url, create=False) as database, Workplace(Console(), ray) as workplace:
        study = database.study(name)
        if study.state is StudyState.FINISHED:
            _print_finished(study)
            return
        if not take_over:
            wait_for_lease(database, study)
        executor, algorithm = workplace.load(study.definition)
        with closing(executor):
            _run(database, study, executor, algorithm, workplace, take_over=take_over)


def _run(
    database: StudyDatabase,
    study: StudyRecord,
    executor: Executor,
    algorithm: Algorithm,
    workplace: Workplace,
    *,
    take_over: bool = False,
) -> None:
    from scheduler_search.coordinator import Stopped, run_study

    if study.state is StudyState.FINISHED:
        _print_finished(study)
        return
    console = Console()
    try:
        with workplace.watch(database, study, algorithm) as listener, stop_on(signal.SIGTERM) as stop:
            reduction = run_study(
                database, study, executor, listener, algorithm=algorithm, take_over=take_over, stop=stop
            )
    except (KeyboardInterrupt, Stopped) as reason:
        console.print(f"interrupted; nothing is lost. Go on with: scheduler-search resume {study.name}")
        number = signal.SIGTERM if isinstance(reason, Stopped) else signal.SIGINT
        raise typer.Exit(128 + number) from None
    if study.definition.search.algorithm == "frontier":
        print_front(database.front(study), database.baselines(study))
    else:
        console.print(bar_charts(reduction.keep_rates, reduction.tower_rates))
    _print_finished(study)


def _print_finished(study: StudyRecord) -> None:
    target = " --keep-rate 0.25" if study.definition.search.algorithm == "frontier" else ""
    next_step = f"scheduler-search export {study.name}{target}"
    Console().print(f"study {study.name} is finished; next: {next_step}", soft_wrap=True)
