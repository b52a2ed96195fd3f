"""Mean paired differences over seeds and samples, with an interval that knows of both.

Knows: score vectors, one pair per seed. Does not know: schedules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, stdev

from scipy.special import stdtrit

from scheduler_search.export.paired import paired_difference

Scores = Sequence[float]


@dataclass(frozen=True)
class Difference:
    """Mean of first minus second, with a 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def pooled_difference(pairs: Sequence[tuple[Scores, Scores]]) -> Difference:
    """Mean over seeds of the mean paired difference within a seed; as many samples in every seed.

    A seed has its own search split, search and test split, so the means of the seeds are independent, and Student's t
    over them covers everything that differs between seeds, sampling included. With few seeds they can agree by chance;
    the interval is therefore never narrower than that of all pairs as one sample (``export.paired``), which is all
    there is for one seed.
    """
    means = [paired_difference(first, second).mean for first, second in pairs]
    mean = fmean(means)
    firsts, seconds = (list(chain.from_iterable(scores)) for scores in zip(*pairs, strict=True))
    within = paired_difference(firsts, seconds)
    low, high = within.low, within.high
    if len(means) > 1:
        half = float(stdtrit(len(means) - 1, 0.975)) * stdev(means) / math.sqrt(len(means))
        low, high = min(low, mean - half), max(high, mean + half)
    return Difference(mean, max(low, -1.0), min(high, 1.0))
