"""The states of a study and the values that its record is made of.

Knows: which state may follow which, and what is recorded of a stage, a trial and a decision. Does not know: where it is
recorded (``storage``) or how a candidate is chosen (``search``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from types import MappingProxyType

from scheduler_search.study.definition import StudyDefinition


class StudyState(Enum):
    """Where a study stands. A coordinator that was killed leaves its study ``running``."""

    QUEUED = "queued"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"
    CANCELLED = "cancelled"

    def may_become(self, other: StudyState) -> bool:
        """Whether ``other`` may follow; staying in a state is always allowed."""
        return other is self or other in TRANSITIONS[self]


_ALL = frozenset(StudyState)

TRANSITIONS: Mapping[StudyState, frozenset[StudyState]] = MappingProxyType(
    {
        StudyState.QUEUED: _ALL - {StudyState.FINISHED},
        StudyState.RUNNING: _ALL,
        StudyState.INTERRUPTED: _ALL - {StudyState.FINISHED},
        StudyState.FAILED: frozenset({StudyState.QUEUED, StudyState.RUNNING, StudyState.CANCELLED}),
        StudyState.CANCELLED: frozenset({StudyState.QUEUED, StudyState.RUNNING}),
        StudyState.FINISHED: frozenset(),
    }
)


@dataclass(frozen=True)
class Lease:
    """The right to write to a study.

    Args:
        study_id: row of the study in the database.
        name: of the study.
        owner: who holds it, as errors print it.
        epoch: number of the lease; it is lost as soon as the study has a higher one.
    """

    study_id: int
    name: str
    owner: str
    epoch: int


@dataclass(frozen=True)
class Holder:
    """Who holds the lease of a study; ``silent_seconds`` ago by the database's clock it was renewed."""

    owner: str
    silent_seconds: float


@dataclass(frozen=True)
class LogLine:
    """One line of a study's log; ``level`` is ``info``, ``warning`` or ``error``, ``written`` the database's clock."""

    written: datetime
    level: str
    text: str


@dataclass(frozen=True)
class Decision:
    """What a stage decided.

    Args:
        stage: 0-based index of the stage in its study.
        name: of the stage, as reports print it (``layer-03``).
        candidate: index of the chosen value in the stage's domain.
        parameter: name of what was searched (``keep_rate``, ``k``).
        value: the chosen value of the parameter.
        keep_rates: of all decoder layers, with this decision and all earlier ones; in front of them those of the
            vision tower's layers, where the study reduces there.
        score: mean score on the search split, in [0, 1].
        objective: score less the penalty of the chosen value.
    """

    stage: int
    name: str
    candidate: int
    parameter: str
    value: float
    keep_rates: tuple[float, ...]
    score: float
    objective: float


@dataclass(frozen=True)
class Figures:
    """What a trial came to.

    Args:
        score: mean score on the search split; an estimate where a race stopped the trial.
        difference: mean paired difference to the stage's anchor on the samples that were read.
        variance: of that mean difference.
        objective: score less the penalty.
        samples: that were read, from the first one on.
        total: samples of the split.
    """

    score: float
    difference: float
    variance: float
    objective: float
    samples: int
    total: int

    @property
    def complete(self) -> bool:
        """Whether every sample was read."""
        return self.samples == self.total


@dataclass(frozen=True)
class TrialRecord:
    """One candidate of a stage.

    Args:
        number: 0-based, in the order in which the candidates were asked for.
        candidate: index of the value in the stage's domain.
        figures: None while the trial is running.
    """

    number: int
    candidate: int
    keep_rates: tuple[float, ...]
    evaluation_key: str
    figures: Figures | None = None


@dataclass(frozen=True)
class StageRecord:
    """One stage as recorded; ``id`` is its row in the database, ``domain_digest`` is over its candidates in order."""

    id: int
    index: int
    name: str
    domain_digest: str
    decision: Decision | None = None


@dataclass(frozen=True)
class StudyRecord:
    """One study as recorded. Times are the database's clock, in UTC.

    Args:
        error: the reason of a failed or cancelled state; ``traceback`` is where a failure came from.
        priority: higher ones are claimed first from the queue.
        attempts: claims by a daemon since the study was submitted or retried.
        owner: who holds the lease, None where nobody does.
    """

    id: int
    name: str
    digest: str
    definition: StudyDefinition
    state: StudyState
    error: str | None
    created: datetime
    changed: datetime
    traceback: str | None = None
    priority: int = 0
    attempts: int = 0
    owner: str | None = None


@dataclass(frozen=True)
class EvaluationTotals:
    """How much was computed in a database, and how much of it was asked for again.

    Args:
        chunks: that were computed; ``samples`` are theirs.
        hits: chunks that were read from the database instead of being computed again.
    """

    evaluations: int
    chunks: int
    samples: int
    hits: int
