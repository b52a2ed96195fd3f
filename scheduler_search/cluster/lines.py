"""Lines for the log of a study: what workers do, and what a process logs and warns of.

Knows: how an event of a worker reads, and that whoever repeats itself must fill neither a database nor a terminal. Does
not know: Ray, or who writes the lines.
"""

from __future__ import annotations

import logging
import warnings
from typing import Literal

from scheduler_search.cluster.events import Progress, WorkerEvent, WorkerJoined, WorkerLogged, WorkerLost

Level = Literal["info", "warning", "error"]

_LONGEST_LINE = 1000
_MOST_LINES = 100


def line_of(event: WorkerEvent) -> tuple[Level, str] | None:
    """An event as a line of the log; None for progress, which is not logged."""
    match event:
        case WorkerJoined():
            return "info", shortened(f"{event.worker} joined: {event.device} on {event.node}")
        case WorkerLost():
            return "warning", shortened(lost_text(event))
        case WorkerLogged():
            return level_of(event.level), shortened(f"{event.worker}: {event.text}")
        case Progress():
            return None


def lost_text(event: WorkerLost) -> str:
    """Who was lost, and why."""
    return f"{event.worker} on {event.node} was lost: {event.reason}"


def shortened(text: str, longest: int = _LONGEST_LINE) -> str:
    """One line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def level_of(name: str) -> Level:
    """The level that a study's log has for one of ``logging``, given in lower case."""
    match name:
        case "warning":
            return "warning"
        case "error" | "critical":
            return "error"
        case _:
            return "info"


class Lines(logging.Handler):
    """Collects what this process logs and warns of; beyond some lines between two takes it only counts."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._taken: list[tuple[str, str]] = []
        self._left_out = 0
        self._seen: logging.LogRecord | None = None
        logging.captureWarnings(True)
        warnings.simplefilter("default")
        for name in ("", "transformers"):  # the latter may keep its lines from the former
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, once."""
        if record is self._seen:
            return
        self._seen = record
        if len(self._taken) >= _MOST_LINES:
            self._left_out += 1
            return
        self._taken.append((record.levelname.lower(), record.getMessage()))

    def take(self) -> tuple[tuple[str, str], ...]:
        """What was logged since this was last asked."""
        lines = list(self._taken)
        if self._left_out:
            lines.append(("warning", f"{self._left_out} more lines"))
        self._taken, self._left_out = [], 0
        return tuple(lines)
