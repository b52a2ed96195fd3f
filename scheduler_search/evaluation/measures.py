"""What the value of a sample is: its metric, its fidelity, or a weighted sum of both.

Knows: which of them a split of a study asks for, and how they are joined. Does not know: how either is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from scheduler_search.evaluation.metrics import Metric, metric_of
from scheduler_search.evaluation.samples import Sample
from scheduler_search.study.values import SplitName

if TYPE_CHECKING:
    from scheduler_search.study.definition import StudyDefinition

_T = TypeVar("_T")


@dataclass(frozen=True)
class Outcome:
    """What a batch gave: one answer and one fidelity per sample, None for what was not asked for."""

    answers: tuple[str, ...] | None
    fidelities: tuple[float, ...] | None


@dataclass(frozen=True)
class Measure:
    """What the value of a sample is: ``weight`` times its fidelity, and the rest of 1 times the metric.

    Args:
        weight: in [0, 1]; that of the metric "fidelity" is always 1.
    """

    metric: Metric
    weight: float

    @classmethod
    def of(cls, metric: Metric, weight: float = 0.0) -> Measure:
        """The measure of that metric, the fidelity being ``weight`` of it."""
        return cls(metric, 1.0 if metric.score is None else weight)

    @property
    def needs_answers(self) -> bool:
        """Whether texts are compared with answers."""
        return self.weight < 1

    @property
    def needs_fidelity(self) -> bool:
        """Whether distributions are compared with the unreduced model's."""
        return self.weight > 0

    def values(self, outcome: Outcome, samples: Sequence[Sample]) -> tuple[float, ...]:
        """Values in [0, 1], one per sample, of an outcome that has what the measure needs."""
        if not self.needs_answers:
            return _asked_for(outcome.fidelities)
        pairs = zip(_asked_for(outcome.answers), samples, strict=True)
        scores = [float(_asked_for(self.metric.score)(answer, sample.answers)) for answer, sample in pairs]
        if not self.needs_fidelity:
            return tuple(scores)
        both = zip(_asked_for(outcome.fidelities), scores, strict=True)
        return tuple(self.weight * fidelity + (1 - self.weight) * score for fidelity, score in both)


def measure_of(definition: StudyDefinition, split: SplitName) -> Measure:
    """The measure of a split: ``[search] objective`` is for the search split alone, the others have the metric."""
    weight = definition.search.fidelity_weight if split == "search" else 0.0
    return Measure.of(metric_of(definition.data.metric), weight)


def _asked_for(value: _T | None) -> _T:
    if value is None:
        raise AssertionError("an outcome has what its measure needs")
    return value
