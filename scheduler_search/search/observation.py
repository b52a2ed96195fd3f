"""What is learnt from the scores of one trial, and which candidate a stage decides on.

Knows: means, paired differences and ties. Does not know: how scores were made or stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from scheduler_search.errors import SearchError
from scheduler_search.search.stage import Stage
from scheduler_search.study.states import Decision, Figures

# Far below one sample of any split (1 / n), far above the rounding of a mean and a penalty: objectives closer than this
# are equal, so that rounding never decides for more tokens.
TIE = 1e-12


@dataclass(frozen=True)
class Observation:
    """One finished trial.

    Args:
        candidate: position in ``Stage.candidates``.
        score: mean score over the split. Where a race stopped the trial, an estimate: the anchor's mean score plus the
            mean difference over the samples that were read.
        difference: mean of the paired differences to the anchor on the samples that were read.
        variance: of that mean difference (sample variance / ``samples``).
        objective: score - penalty, what the stage maximises (seed 003, equation 2).
        samples: that were read.
        total: samples of the split.
    """

    candidate: int
    score: float
    difference: float
    variance: float
    objective: float
    samples: int
    total: int

    @classmethod
    def of(cls, candidate: int, figures: Figures) -> Self:
        """The observation of a trial with these figures."""
        return cls(candidate, **vars(figures))

    @property
    def figures(self) -> Figures:
        """What is recorded of the trial."""
        return Figures(self.score, self.difference, self.variance, self.objective, self.samples, self.total)

    @property
    def complete(self) -> bool:
        """Whether every sample of the split was read; only such a trial can be decided on."""
        return self.samples == self.total

    @property
    def sampling_variance(self) -> float:
        """Variance of ``difference`` as an estimate of that over the whole split: 0 once all of it was read.

        Samples are read in random order without replacement, hence the finite-population factor.
        """
        return self.variance * (1 - self.samples / self.total)


@dataclass(frozen=True)
class Explored:
    """A stage that is decided, with what was observed in it, in the order of its trials."""

    stage: Stage
    observations: tuple[Observation, ...]


def observe(stage: Stage, candidate: int, scores: Sequence[float], anchor_scores: Sequence[float]) -> Observation:
    """Summarise the scores of a candidate against those of the anchor on the same samples, in the same order.

    Args:
        scores: of all samples, or of the first ones where a race stopped the trial.
        anchor_scores: of all samples.

    Sums are correctly rounded (``math.fsum``), so that the order and the grouping of samples change nothing. A single
    sample has no sample variance; 1, the largest that scores in [0, 1] allow, stands in unless the candidate is the
    anchor itself.

    Raises:
        SearchError: no scores, or more than the anchor has.
    """
    if not scores or len(scores) > len(anchor_scores):
        raise SearchError(
            "a candidate and its anchor need the same samples, at least one",
            actual=f"{len(scores)} and {len(anchor_scores)} scores",
            place=stage.name,
        )
    difference, variance = paired_mean(scores, anchor_scores)
    whole = scores if len(scores) == len(anchor_scores) else [*anchor_scores, len(anchor_scores) * difference]
    score = math.fsum(whole) / len(anchor_scores)
    return Observation(
        candidate=candidate,
        score=score,
        difference=difference,
        variance=0.0 if candidate == stage.anchor else variance,
        objective=score - stage.candidates[candidate].penalty,
        samples=len(scores),
        total=len(anchor_scores),
    )


def paired_mean(scores: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mean of ``scores`` - ``others`` on the same samples, as far as both go, and the variance of that mean."""
    differences = [score - other for score, other in zip(scores, others, strict=False)]
    return math.fsum(differences) / len(differences), _variance_of_mean(differences)


def _variance_of_mean(differences: Sequence[float]) -> float:
    number = len(differences)
    if number == 1:
        return 1.0
    mean = math.fsum(differences) / number
    return math.fsum((difference - mean) ** 2 for difference in differences) / (number - 1) / number


def decide(stage: Stage, observations: Sequence[Observation]) -> Decision:
    """Decide on the best observed objective (seed 003, equation 1 and Algorithm 1); ties go to the preferred candidate.

    Raises:
        SearchError: there is no complete observation.
    """
    best = incumbent(stage, observations)
    candidate = stage.candidates[best.candidate]
    return Decision(
        stage=stage.index,
        name=stage.name,
        candidate=best.candidate,
        parameter=stage.parameter,
        value=candidate.value,
        keep_rates=candidate.keep_rates,
        score=best.score,
        objective=best.objective,
    )


def incumbent(stage: Stage, observations: Sequence[Observation]) -> Observation:
    """The complete observation that the stage would decide on if it ended now.

    Raises:
        SearchError: there is none.
    """
    complete = [observation for observation in observations if observation.complete]
    if not complete:
        raise SearchError("a decision needs at least one candidate that was scored on every sample", place=stage.name)
    top = max(observation.objective for observation in complete)
    ties = [observation for observation in complete if observation.objective >= top - TIE]
    return min(ties, key=lambda observation: observation.candidate)


def unseen(stage: Stage, observations: Sequence[Observation]) -> tuple[int, ...]:
    """The candidates without an observation, in order of preference."""
    seen = {observation.candidate for observation in observations}
    return tuple(index for index in range(len(stage.candidates)) if index not in seen)
