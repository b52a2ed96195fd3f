"""What the workers of a cluster do, as a user reads it: lines of the study's log, and losses on the terminal.

Knows: how an event of a worker reads, and that workers are there before their study has a log to write to. Does not
know: how workers are started, or how their progress is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from scheduler_search.cli.render import say
from scheduler_search.errors import DatabaseError

if TYPE_CHECKING:
    from scheduler_search.cluster.events import Progress, WorkerEvent
    from scheduler_search.coordinator.events import Event, Listener

    Level = Literal["info", "warning", "error"]
    Write = Callable[[Level, str], None]
    Show = Callable[[str], None]

# What the name of every worker begins with, and so every line about one.
WORKER = "worker-"

_LONGEST_PRINTED = 200
_MOST_KEPT = 1000


class WorkerNews:
    """Receives the events of one study's workers."""

    def __init__(self) -> None:
        self._kept: list[tuple[Level, str]] = []
        self._write: Write | None = None
        self._show: Show | None = None
        self._progress: Progress | None = None

    def receive(self, event: WorkerEvent) -> None:
        """Show it, and write it to the log or keep it until there is one."""
        from scheduler_search.cluster import events, lines

        if isinstance(event, events.Progress):
            self._progress = event
            if self._show is not None:
                self._show(progress_text(event))
        if isinstance(event, events.WorkerLost):
            say(lines.shortened(lines.lost_text(event), _LONGEST_PRINTED), Console(stderr=True))
        if (line := lines.line_of(event)) is not None:
            self._log(*line)

    @contextmanager
    def told(self, write: Write, show: Show) -> Iterator[Callable[[Listener], Listener]]:
        """For the time of a run: show progress, and write lines from the first event of a listener on.

        Before it, the study may be another coordinator's.
        """
        self._show = show
        try:
            yield lambda listener: self._beginning(listener, write)
        finally:
            if self._progress is not None:
                self._log("info", progress_text(self._progress))
            self._show = self._write = self._progress = None

    def _beginning(self, listener: Listener, write: Write) -> Listener:
        def receive(event: Event) -> None:
            if self._write is None:
                self._begin(write)
            listener(event)

        return receive

    def _begin(self, write: Write) -> None:
        self._write = write
        kept, self._kept = self._kept, []
        for level, text in kept:
            self._log(level, text)

    def _log(self, level: Level, text: str) -> None:
        if self._write is None:
            self._kept = [*self._kept, (level, text)][-_MOST_KEPT:]
            return
        # Whatever it is, the study's own next write meets it too, and can say so.
        with suppress(DatabaseError):
            self._write(level, text)


def progress_text(progress: Progress) -> str:
    """Workers, chunks per second and device memory; what is not known is left out."""
    parts = [f"{progress.workers} worker{'' if progress.workers == 1 else 's'}"]
    if progress.chunks and progress.seconds > 0:
        parts.append(f"{progress.chunks / progress.seconds:.1f} chunks/s")
    if progress.device_bytes:
        parts.append(f"{progress.device_bytes / 2**30:.1f} GiB at most")
    return ", ".join(parts)
