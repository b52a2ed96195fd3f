"""`submit`, `coordinate`, `cancel`, `retry`, `logs` and `list`: studies that wait for someone to run them.

Knows: what a user is told at each step. Does not know: how a study is claimed (``storage``) or run (``coordinator``).
"""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scheduler_search.cli.render import plain_table, say
from scheduler_search.cli.stopping import stop_on
from scheduler_search.cli.workplace import Workplace
from scheduler_search.errors import StudyConflictError, StudyNotFoundError
from scheduler_search.study import read_study_file
from scheduler_search.study.states import StudyState

if TYPE_CHECKING:
    from scheduler_search.storage import StudyDatabase
    from scheduler_search.study.states import StudyRecord

_WAITS = (StudyState.QUEUED, StudyState.RUNNING)


def submit_study(url: str, study_file: Path, priority: int) -> None:
    """Record the study of a file as queued. Neither its model nor its data need be on this machine.

    Raises:
        StudyConflictError: a study of that name has another definition, or ended before it was finished.
        StudyFileError: the study file is at fault.
    """
    from scheduler_search.storage import StudyDatabase

    definition = read_study_file(study_file)
    with StudyDatabase.open(url) as database:
        with suppress(StudyNotFoundError):
            _refuse_ended(database.study(definition.name))
        study = database.submit(definition, priority)
    say(f"study {study.name} is {study.state.value}{_priority(study)}; next: {_next_step(study)}")


def _refuse_ended(study: StudyRecord) -> None:
    if study.state not in (*_WAITS, StudyState.FINISHED):
        raise StudyConflictError(
            "a study that ended early is queued again with its attempts anew",
            actual=f"a {study.state.value} study",
            place=f"study {study.name!r}",
            remedy=f"run: scheduler-search retry {study.name}",
        )


def _next_step(study: StudyRecord) -> str:
    if study.state is StudyState.FINISHED:
        return f"scheduler-search export {study.name}"
    if study.state is StudyState.RUNNING:
        return f"scheduler-search logs {study.name}"
    return "scheduler-search coordinate"


def coordinate_studies(url: str, once: bool, ray: str | None = None) -> None:
    """Run what is queued, and what lost its coordinator, until SIGTERM or Ctrl-C, or ``once`` until nothing waits.

    Args:
        ray: address of the cluster that runs every study; None to leave it to the study.

    Raises:
        DatabaseError: the database does not exist or cannot be used.
        ClusterError: ``once``, and studies wait for a cluster that cannot be used.
    """
    from scheduler_search.coordinator import Daemon

    console = Console()
    with (
        stop_on(signal.SIGTERM, signal.SIGINT) as stop,
        _existing(url) as database,
        Workplace(console, ray) as workplace,
    ):
        daemon = Daemon(
            database,
            workplace.load,
            lambda study, algorithm: workplace.watch(database, study, algorithm),
            stop,
            partial(say, console=console),
            workplace.check_cluster,
        )
        daemon.run(once=once)
    say("nothing waits" if not stop() else "stopped")


def cancel_study(url: str, name: str) -> None:
    """Cancel a study; whoever runs it stops before its next write.

    Raises:
        StudyConflictError: it is finished.
    """
    with _existing(url) as database:
        study = database.study(name)
        database.cancel(study)
    say(f"study {name} is cancelled; queue it again with: scheduler-search retry {name}")


def retry_study(url: str, name: str) -> None:
    """Queue a study again that failed, was cancelled or interrupted, with all its attempts.

    Raises:
        StudyConflictError: it is running or finished.
    """
    with _existing(url) as database:
        database.retry(database.study(name))
        study = database.study(name)
    say(f"study {name} is {study.state.value}{_priority(study)}; next: {_next_step(study)}")


def print_logs(url: str, name: str, lines: int) -> None:
    """Print the newest lines of a study's log, and the traceback of what it failed with."""
    with _existing(url) as database:
        study = database.study(name)
        for line in database.logs(study, lines):
            print(f"{line.written:%Y-%m-%d %H:%M:%S} {line.level:<7} {line.text}")
    if study.traceback:
        print(study.traceback.rstrip())


def list_studies(url: str, state: str | None, algorithm: str | None, model: str | None, as_json: bool) -> None:
    """Print the studies that pass every filter that is given; ``model`` is a part of the model's id."""
    with _existing(url) as database:
        studies = [_row(study) for study in database.studies()]
    wanted = [
        study
        for study in studies
        if state in (None, study["state"])
        and algorithm in (None, study["algorithm"])
        and (model is None or model in str(study["model"]))
    ]
    if as_json:
        print(json.dumps(wanted, indent=2))
        return
    columns = ("name", "state", "algorithm", "model", "owner", "priority", "attempts")
    rows = [["" if study[column] is None else str(study[column]) for column in columns] for study in wanted]
    Console().print(plain_table("studies", columns, rows, texts=5))


def _row(study: StudyRecord) -> dict[str, object]:
    return {
        "name": study.name,
        "state": study.state.value,
        "algorithm": study.definition.search.algorithm,
        "model": study.definition.model.id,
        "priority": study.priority,
        "attempts": study.attempts,
        "owner": study.owner,
        "created": study.created.isoformat(timespec="seconds"),
        "changed": study.changed.isoformat(timespec="seconds"),
        "error": study.error,
    }


def _priority(study: StudyRecord) -> str:
    return f", priority {study.priority}" if study.state is StudyState.QUEUED and study.priority else ""


def _existing(url: str) -> StudyDatabase:
    from scheduler_search.storage import StudyDatabase

    return StudyDatabase.open(url, create=False)
