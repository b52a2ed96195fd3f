"""What is learnt from the scores of one trial, and which candidate a stage decides on.

Knows: means, paired differences and ties. Does not know: how scores were made or stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler_search.errors import SearchError
from scheduler_search.search.stage import Stage
from scheduler_search.study.states import Decision

# Far below one sample of any split (1 / n), far above the rounding of a mean and a penalty: objectives closer than this
# are equal, so that rounding never decides for more tokens.
TIE = 1e-12


@dataclass(frozen=True)
class Observation:
    """One finished trial.

    Args:
        candidate: position in ``Stage.candidates``.
        score: mean score over the samples.
        difference: mean of the paired differences to the anchor on the same samples.
        variance: of that mean difference (sample variance / n).
        objective: score - penalty, what the stage maximises (seed 003, equation 2).
    """

    candidate: int
    score: float
    difference: float
    variance: float
    objective: float


def observe(stage: Stage, candidate: int, scores: Sequence[float], anchor_scores: Sequence[float]) -> Observation:
    """Summarise the scores of a candidate against those of the anchor on the same samples, in the same order.

    Sums are correctly rounded (``math.fsum``), so that the order and the grouping of samples change nothing. A single
    sample has no sample variance; 1, the largest that scores in [0, 1] allow, stands in unless the candidate is the
    anchor itself.

    Raises:
        SearchError: no scores, or not the same number of both.
    """
    if not scores or len(scores) != len(anchor_scores):
        raise SearchError(
            "a candidate and its anchor need the same samples, at least one",
            actual=f"{len(scores)} and {len(anchor_scores)} scores",
            place=stage.name,
        )
    differences = [score - anchor for score, anchor in zip(scores, anchor_scores, strict=True)]
    score = math.fsum(scores) / len(scores)
    return Observation(
        candidate=candidate,
        score=score,
        difference=math.fsum(differences) / len(differences),
        variance=0.0 if candidate == stage.anchor else _variance_of_mean(differences),
        objective=score - stage.candidates[candidate].penalty,
    )


def _variance_of_mean(differences: Sequence[float]) -> float:
    number = len(differences)
    if number == 1:
        return 1.0
    mean = math.fsum(differences) / number
    return math.fsum((difference - mean) ** 2 for difference in differences) / (number - 1) / number


def decide(stage: Stage, observations: Sequence[Observation]) -> Decision:
    """Decide on the best observed objective (seed 003, equation 1 and Algorithm 1); ties go to the preferred candidate.

    Raises:
        SearchError: there are no observations.
    """
    if not observations:
        raise SearchError("a decision needs at least one observation", place=stage.name)
    top = max(observation.objective for observation in observations)
    ties = [observation for observation in observations if observation.objective >= top - TIE]
    best = min(ties, key=lambda observation: observation.candidate)
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
