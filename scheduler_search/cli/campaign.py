"""`campaign run` and `campaign status`: many studies of one file, on a Ray cluster.

Knows: which studies of a campaign are left to run, and what a user is told of them. Does not know: how a study is run
(``cluster``), or how a matrix becomes studies (``study.campaign``).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.live import Live

from scheduler_search.cli.executors import Executors, default_address
from scheduler_search.cli.render import plain_table, say
from scheduler_search.cli.stopping import stop_on
from scheduler_search.errors import StudyConflictError, StudyNotFoundError
from scheduler_search.study.campaign import Campaign, read_campaign_file
from scheduler_search.study.states import StudyRecord, StudyState

if TYPE_CHECKING:
    from rich.table import Table

    from scheduler_search.storage import StudyDatabase

_FAILED = 2
_LEFT_ALONE = (StudyState.FINISHED, StudyState.CANCELLED)


def run_campaign(url: str, file: Path, ray: str | None, resume: bool) -> None:
    """Run the studies of a campaign file that are not finished, and print what each came to.

    Raises:
        StudyConflictError: some of it ran before, and ``resume`` was not asked for; or a study has another definition.
        ClusterError: the cluster cannot be reached, or cannot hold a study.
    """
    from scheduler_search.storage import StudyDatabase, database_exists

    campaign = read_campaign_file(file)
    if database_exists(url):
        with StudyDatabase.open(url, create=False) as database:
            if _is_over(database, campaign, resume):
                _print_summary(database, campaign)
                return
    with Executors() as executors, StudyDatabase.open(url) as database:
        executors.connect(ray or default_address())
        # Ray takes the signals for itself when it connects, so ours come after it.
        with stop_on(signal.SIGTERM) as terminated, stop_on(signal.SIGINT) as interrupted:
            errors = _run(database, url, campaign, lambda: terminated() or interrupted())
    with StudyDatabase.open(url, create=False) as database:
        _print_summary(database, campaign)
        complete = _print_errors(database, campaign, errors)
    if terminated() or interrupted():
        say(f"stopped; nothing is lost. Go on with: scheduler-search campaign run {file} --resume")
        raise typer.Exit(128 + (signal.SIGTERM if terminated() else signal.SIGINT))
    if not complete:
        raise typer.Exit(_FAILED)


def print_campaign(url: str, file: Path, as_json: bool) -> None:
    """Print the studies of a campaign file with what each came to."""
    from scheduler_search.storage import StudyDatabase

    campaign = read_campaign_file(file)
    with StudyDatabase.open(url, create=False) as database:
        if as_json:
            print(json.dumps(_summary(database, campaign), indent=2))
        else:
            _print_summary(database, campaign)


def _is_over(database: StudyDatabase, campaign: Campaign, resume: bool) -> bool:
    """Whether nothing is left to run; refuses what must not be run, before anything is written."""
    for definition in campaign.studies:
        database.check_definition(definition)
    found = list(_recorded(database, campaign))
    if len(found) == len(campaign.studies) and all(study.state in _LEFT_ALONE for study in found):
        return True
    begun = [study for study in found if study.state is not StudyState.QUEUED or database.stages(study)]
    if begun and not resume:
        finished = sum(study.state is StudyState.FINISHED for study in begun)
        raise StudyConflictError(
            "a campaign that began is gone on with on request only",
            actual=f"{len(begun)} of {len(campaign.studies)} studies begun, {finished} of them finished",
            place=f"campaign {campaign.name!r}",
            remedy="add --resume",
        )
    return False


def _run(database: StudyDatabase, url: str, campaign: Campaign, stop: Callable[[], bool]) -> dict[str, str]:
    from scheduler_search.cluster.campaign import check_resources, run_trials

    left = [one for one in campaign.studies if not _is_left_alone(database, one.name)]
    check_resources(left, url)
    studies = [database.add_study(definition) for definition in left]
    # Those that seem to be owned come last: by then a dead owner has been silent for long enough.
    studies.sort(key=lambda study: study.owner is not None)
    with _watched(database, campaign) as look:
        definitions = [study.definition for study in studies]
        return run_trials(database, url, campaign.section, definitions, stop=stop, look=look)


def _is_left_alone(database: StudyDatabase, name: str) -> bool:
    with suppress(StudyNotFoundError):
        return database.study(name).state in _LEFT_ALONE
    return False


def _recorded(database: StudyDatabase, campaign: Campaign) -> Iterator[StudyRecord]:
    for definition in campaign.studies:
        with suppress(StudyNotFoundError):
            yield database.study(definition.name)


@contextmanager
def _watched(database: StudyDatabase, campaign: Campaign) -> Iterator[Callable[[], None]]:
    """A function that shows where the studies stand: a live table, or a line per change where there is no terminal."""
    console = Console()
    progress = _Progress(database, campaign)
    if not console.is_terminal:

        def tell() -> None:
            for line in progress.look():
                say(line)

        yield tell
        return
    with Live(progress.table(), console=console, transient=True, auto_refresh=False) as live:

        def look() -> None:
            progress.look()
            live.update(progress.table(), refresh=True)

        yield look


class _Progress:
    """Where each study of a campaign stands; asks the database only for those that can still change."""

    def __init__(self, database: StudyDatabase, campaign: Campaign) -> None:
        self._database = database
        self._rows = {definition.name: ("", "", "") for definition in campaign.studies}
        self._settled: set[str] = set()

    def look(self) -> list[str]:
        """Ask the database; a line for each study whose state changed."""
        changed = []
        for name in [name for name in self._rows if name not in self._settled]:
            study = self._database.study(name)
            state = study.state.value
            if state != self._rows[name][0]:
                changed.append(f"study {name}: {state}")
            stages = self._database.stages(study)
            trials = sum(len(self._database.trials(stage)) for stage in stages)
            decided = sum(stage.decision is not None for stage in stages)
            self._rows[name] = (state, str(decided), str(trials))
            if study.state in _LEFT_ALONE:
                self._settled.add(name)
        return changed

    def table(self) -> Table:
        """All studies, in the order of the file."""
        rows = [(name, *row) for name, row in self._rows.items()]
        return plain_table("campaign", ("study", "state", "stages decided", "trials"), rows, texts=2)


def _summary(database: StudyDatabase, campaign: Campaign) -> list[dict[str, object]]:
    from scheduler_search.export import StudyFigures, study_figures

    records = {study.name: study for study in _recorded(database, campaign)}
    rows = []
    for definition in campaign.studies:
        study = records.get(definition.name)
        figures = StudyFigures() if study is None else study_figures(database, study)
        state = None if study is None else study.state.value
        error = None if study is None else study.error
        rows.append({"study": definition.name, "state": state, **asdict(figures), "error": error})
    return rows


def _print_summary(database: StudyDatabase, campaign: Campaign) -> None:
    columns = ("study", "state", "split", "score", "loss", "tflops", "milliseconds")
    headings = ("study", "state", "split", "score", "loss", "TFLOPs", "ms")
    rows = [[_cell(row[column]) for column in columns] for row in _summary(database, campaign)]
    Console().print(plain_table(f"campaign {campaign.name}", headings, rows, texts=3))
    states = [row[1] for row in rows]
    say(f"{states.count('finished')} of {len(states)} studies are finished")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_errors(database: StudyDatabase, campaign: Campaign, errors: dict[str, str]) -> bool:
    """Say why studies are not finished; whether none is left."""
    left = [study for study in _recorded(database, campaign) if study.state not in _LEFT_ALONE]
    for study in left:
        reason = study.error or errors.get(study.name)
        owner = f" by {study.owner}" if study.owner else ""
        say(f"study {study.name} is {study.state.value}{owner}{f': {reason}' if reason else ''}")
    return not left
