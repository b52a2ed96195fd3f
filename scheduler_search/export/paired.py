"""Paired comparison of two score vectors over the same samples, with an interval that is honest for small samples.

Knows: two tuples of numbers. Does not know: models, schedules or which of the two is better news.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Mean:
    """A mean score and its standard error (0 for a single sample)."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class PairedDifference:
    """Mean of first minus second over the same samples, with its standard error and 95 % interval."""

    mean: float
    standard_error: float
    low: float
    high: float


def mean_score(scores: Sequence[float]) -> Mean:
    """Mean and standard error of the mean."""
    count = len(scores)
    mean = math.fsum(scores) / count
    variance = math.fsum((score - mean) ** 2 for score in scores) / max(count - 1, 1)
    return Mean(mean, math.sqrt(variance / count))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Mean of ``first - second`` with a 95 % interval.

    The interval is Agresti and Min's for paired proportions (Statistics in Medicine 24, 2005), which adds half an
    observation to each cell of the two-by-two table. For differences in [-1, 1] that is one more observation's worth of
    squared difference and two more samples. Without it, two schedules that happen to agree on every sample would get an
    interval of width zero.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    raw = mean_score(differences)
    count = len(differences) + 2
    center = math.fsum(differences) / count
    spread = max((math.fsum(value * value for value in differences) + 1.0) / count - center * center, 0.0)
    half = _Z * math.sqrt(spread / count)
    return PairedDifference(
        mean=raw.value,
        standard_error=raw.standard_error,
        low=max(center - half, -1.0),
        high=min(center + half, 1.0),
    )
