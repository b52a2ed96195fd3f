"""Live progress of a running study.

Knows: the coordinator's events, and rich. Does not know: databases, models or clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scheduler_search.coordinator.events import (
    BaselineScored,
    Event,
    StageDecided,
    StageStarted,
    TrialFinished,
)
from scheduler_search.coordinator.study_log import decided_text


@contextmanager
def watch(console: Console, study: str, stages: int) -> Iterator[Display]:
    """A display of stage, trial, best so far, workers and time left; one line per decision stays on the screen.

    Where the output is not a terminal (a log file, CI), only those lines are printed.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[workers]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        yield Display(progress, console, study, stages)


class Display:
    """Turns events into a progress bar over all trials of the study.

    The total is an estimate from above: a later stage has at most as many trials as the one that runs.
    """

    def __init__(self, progress: Progress, console: Console, study: str, stages: int) -> None:
        self._progress = progress
        self._console = console
        self._study = study
        self._stages = stages
        self._decided = 0
        self._done = 0
        self._trials = 0
        self._task = progress.add_task(study, total=None, workers="")

    def receive(self, event: Event) -> None:
        """Show one event: a listener."""
        match event:
            case StageStarted():
                self._started(event)
            case TrialFinished():
                self._finished(event)
            case StageDecided():
                self._decide(event)
            case BaselineScored():
                description = f"{self._study} {event.name} at budget {event.budget:g}: score {event.score:.4f}"
                self._progress.update(self._task, description=description)

    def show_workers(self, text: str) -> None:
        """Show how the workers are doing."""
        self._progress.update(self._task, workers=text)

    def _started(self, event: StageStarted) -> None:
        self._trials = event.trials
        self._done += event.finished
        total = self._done - event.finished + (self._stages - self._decided) * event.trials
        description = f"{self._study} stage {self._decided + 1}/{self._stages} {event.name}"
        self._progress.update(self._task, completed=self._done, total=total, description=description)
        if event.finished:
            self._console.print(f"{event.name}: {event.finished} of {event.trials} trials are recorded")

    def _finished(self, event: TrialFinished) -> None:
        self._done += 1
        description = (
            f"{self._study} stage {self._decided + 1}/{self._stages} {event.stage} "
            f"trial {event.number + 1}/{self._trials} best {event.best_value:.3f} score {event.best_score:.4f}"
        )
        self._progress.update(self._task, completed=self._done, description=description)

    def _decide(self, event: StageDecided) -> None:
        self._decided += 1
        self._console.print(decided_text(event))
