"""What is recorded of a finished frontier, so that it can be shown without a model: its points, and its baselines.

Knows: the two values. Does not know: how a score is predicted, or where it is recorded (``storage``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrontPoint:
    """The schedule that is predicted to be the best at a budget.

    Args:
        budget: mean keep rate over [first_layer, L].
        k: steepness.
        flops: mean prefill FLOPs over the search split.
        score: predicted mean score.
        standard_error: of ``score`` as a prediction on new data.
        difference: predicted paired difference to the unreduced model.
        difference_error: its standard error, likewise.
        evaluated: whether the search scored this schedule itself.
    """

    budget: float
    k: float
    flops: float
    score: float
    standard_error: float
    difference: float
    difference_error: float
    evaluated: bool


@dataclass(frozen=True)
class BaselineScore:
    """What a baseline scored on the search split, beside the front at a budget; ``frontier`` is the front itself.

    Args:
        budget: of the point of the front whose FLOPs the baseline matches.
        name: as reports print it.
        flops: mean prefill FLOPs over the search split.
        score: mean score.
        difference: mean paired difference to the unreduced model.
        variance: of that mean difference.
    """

    budget: float
    name: str
    flops: float
    score: float
    difference: float
    variance: float
