"""What a running study tells whoever watches it. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scheduler_search.study.states import Decision


@dataclass(frozen=True)
class StageStarted:
    """A stage begins, or goes on after an interruption with ``finished`` of its ``trials`` recorded."""

    name: str
    parameter: str
    trials: int
    finished: int


@dataclass(frozen=True)
class TrialFinished:
    """One candidate is scored: ``value`` is its keep rate or k; ``best_*`` belong to the best trial so far.

    A race ``stopped`` it where not all samples were read; score and objective are estimates then.
    """

    stage: str
    number: int
    value: float
    score: float
    objective: float
    stopped: bool
    best_value: float
    best_score: float


@dataclass(frozen=True)
class StageDecided:
    """A stage has its decision."""

    decision: Decision


@dataclass(frozen=True)
class BaselineScored:
    """A schedule that a front is shown beside is scored on the search split."""

    budget: float
    name: str
    score: float


Event = StageStarted | TrialFinished | StageDecided | BaselineScored
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener for callers that watch nothing."""
