"""The steepness k of a sigmoid schedule as a finite axis: from the uniform schedule up to where no count changes.

Knows: keep counts of a split, and spacing that is uniform in log(1 + k). Does not know: budgets, scores or costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

    Integers = numpy.typing.NDArray[numpy.int64]

# Neighbouring layers are at least 1/2 from the midpoint, so beyond this k the rates differ from their limit by less
# than e^-512: no keep count can change any more.
_LIMIT = 1024.0
_BISECTIONS = 30

# Steps in which an axis is measured.
_AXIS = 129


class SplitCounts:
    """Keep counts of all samples of a split as one hashable value: equal values are one evaluation.

    ``samples`` has the number of samples of each different N, in increasing order of N.
    """

    def __init__(self, vision_tokens: Sequence[int]) -> None:
        import numpy  # 80 ms that an import of the package does not owe

        sizes, self.samples = numpy.unique(numpy.asarray(vision_tokens), return_counts=True)
        self._tokens = sizes.astype(numpy.float64)[:, None]

    def array(self, keep_rates: Sequence[float]) -> Integers:
        """Counts under ``keep_rates``, rounded as by ``counts.keep_count``; [S, L] for S different N, increasing."""
        import numpy  # see __init__

        kept = numpy.clip(numpy.floor(numpy.asarray(keep_rates) * self._tokens + 0.5), 0.0, self._tokens)
        counts: Integers = kept.astype(numpy.int64)
        return counts

    def __call__(self, keep_rates: Sequence[float]) -> bytes:
        """The same as one hashable value."""
        return self.array(keep_rates).tobytes()


def steepest(counts_at: Callable[[float], Hashable]) -> float:
    """The smallest k found, by halving and bisection, from which on ``counts_at(k)`` is that of the limit."""
    limit = counts_at(_LIMIT)
    if counts_at(0.0) == limit:
        return 0.0
    high = _LIMIT
    while high > 2.0**-20 and counts_at(high / 2) == limit:
        high /= 2
    low = high / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if counts_at(middle) == limit:
            high = middle
        else:
            low = middle
    return high


def steepness_grid(end: float, size: int) -> Iterator[float]:
    """``size`` values of k from 0 to ``end``, uniform in log(1 + k)."""
    top = math.log1p(end)
    for index in range(size):
        yield end if index == size - 1 else math.expm1(top * index / (size - 1))


def steepness_coordinate(k: float, end: float) -> float:
    """Position of k on the axis from 0 to ``end``, in [0, 1]."""
    return min(math.log1p(k) / math.log1p(end), 1.0) if end else 0.0


class SteepnessAxis:
    """k as a coordinate in [0, 1] that grows by how much the schedules change, not by k.

    Of the values of log(1 + k) up to where the last count changes, most differ in a token or two; a model of the score
    that takes equal steps for equal changes would learn from them that k does not matter. Here a step is the mean
    change of the keep rates, over all layers and several budgets.

    Args:
        rates_at: keep rates of a budget and a k.
        budgets: at which the change is measured.
        end: the k at coordinate 1.
    """

    def __init__(
        self, rates_at: Callable[[float, float], Sequence[float]], budgets: Sequence[float], end: float
    ) -> None:
        import numpy  # see SplitCounts

        steps = list(steepness_grid(end, _AXIS))
        rates = numpy.array([[rates_at(budget, k) for budget in budgets] for k in steps])
        path = numpy.abs(numpy.diff(rates, axis=0)).mean(axis=(1, 2)).cumsum()
        self._k = steps
        self._coordinates = [0.0, *(path / path[-1]).tolist()] if end else [0.0] * _AXIS

    def coordinate(self, k: float) -> float:
        """Position of k; linear between the steps."""
        import numpy

        return float(numpy.interp(k, self._k, self._coordinates))

    def k(self, coordinate: float) -> float:
        """The k at a position."""
        import numpy

        return float(numpy.interp(coordinate, self._coordinates, self._k))

    def grid(self, size: int) -> tuple[float, ...]:
        """``size`` values of k at equal distances, from 0 to the end."""
        return tuple(self.k(index / (size - 1)) for index in range(size))
