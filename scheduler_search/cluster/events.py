"""What the workers of a cluster tell whoever watches a study. Knows nothing of Ray, terminals or databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerJoined:
    """A worker has loaded the model and takes chunks."""

    worker: str
    node: str
    device: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker died, was stopped or refused. Its chunks go to others."""

    worker: str
    node: str
    reason: str


@dataclass(frozen=True)
class WorkerLogged:
    """A worker, or whoever waits for one, has a line for the log; ``level`` is that of ``logging``, in lower case."""

    worker: str
    level: str
    text: str


@dataclass(frozen=True)
class Progress:
    """How the executor is doing: after each chunk, and when workers come or go.

    Args:
        workers: that are ready.
        chunks: that are done since the executor was made.
        seconds: in which chunks were being run, in all.
        device_bytes: most device memory that any of the workers had allocated.
    """

    workers: int
    chunks: int
    seconds: float
    device_bytes: int


WorkerEvent = WorkerJoined | WorkerLost | WorkerLogged | Progress
Report = Callable[[WorkerEvent], None]


def ignore(event: WorkerEvent) -> None:
    """A report for callers that watch nothing."""
