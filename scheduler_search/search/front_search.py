"""Which points of a frontier stage are tried next: those that are expected to raise the front most.

Knows: expected hypervolume improvement where the cost is known and only the score is not. Does not know: Optuna,
databases, or how scores are predicted (``front``). What is suggested is a function of its arguments alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from scheduler_search.search.front import Front
from scheduler_search.search.matern import Array, MaternProcess
from scheduler_search.search.observation import Observation, unseen
from scheduler_search.search.stage import Stage

# Improvements that differ by less than this are equal.
_TIE = 1e-12

# Powers of the inverse of the plastic number: with them the points of an additive sequence are spread evenly over the
# square (the two-dimensional counterpart of the golden ratio).
_STEP = (0.7548776662466927, 0.5698402909980532)


def next_points(stage: Stage, observations: Sequence[Observation], seed: int) -> tuple[int, ...]:
    """Candidates of the trials that follow ``observations``; the contract is that of ``surrogate.next_batch``.

    Trial 0 is the anchor, alone; ``effort.initial`` points of a low-discrepancy sequence follow, then at most
    ``effort.iterations`` with the largest expected improvement of the front. The stage ends where that is below
    ``effort.tolerance``: the height by which the front would rise, averaged over the axis of costs. In a batch, the
    candidates chosen before count as observed with their predicted score.
    """
    number = len(observations)
    size = min(stage.effort.batch, stage.trials - number)
    if number == 0 or size <= 0:
        return (stage.anchor,)[:size]
    if number <= stage.effort.initial:
        return _spread(stage, observations, seed, min(size, 1 + stage.effort.initial - number))
    free = list(unseen(stage, observations))
    coordinates = _features(stage, free)
    process, known = _settled(stage, observations)
    chosen: list[int] = []
    while len(chosen) < size:
        gains = expected_gains(process, known, coordinates)
        gains[[free.index(one) for one in chosen]] = -1.0
        best = int(numpy.flatnonzero(gains >= gains.max() - _TIE)[0])
        if not chosen and gains[best] < stage.effort.tolerance:
            return ()
        chosen.append(free[best])
        process = process.conditioned(coordinates[best], float(process.predict(coordinates[best : best + 1])[0][0]))
        known = numpy.vstack([known, coordinates[best]])
    return tuple(chosen)


def expected_gains(process: MaternProcess, known: Array, points: Array) -> Array:
    """Expected rise of the front's height, averaged over the cost axis [0, 1], for each of ``points``; [m].

    The front at a cost is the largest mean of the process at the ``known`` points that cost no more (their means, not
    their scores, so that a lucky observation does not hide what is better). The cost of a point is known exactly, so
    its hypervolume improvement is an integral over cost: the sum, over the segments of the front to its right, of width
    times expected improvement over the segment's height. To the left of the cheapest known point the front is as high
    as the lowest one.

    Args:
        known: [n, 2], n >= 1.
        points: [m, 2].
    """
    heights = process.predict(known)[0]
    order = numpy.argsort(known[:, 0], kind="stable")
    starts = numpy.concatenate([[0.0], known[order, 0]])
    ends = numpy.concatenate([known[order, 0], [1.0]])
    levels = numpy.maximum.accumulate(numpy.concatenate([[heights.min()], heights[order]]))
    widths = numpy.maximum(ends[None, :] - numpy.maximum(starts[None, :], points[:, :1]), 0.0)
    means, variances = process.predict(points)
    result: Array = (widths * expected_improvement(means[:, None], numpy.sqrt(variances)[:, None], levels)).sum(1)
    return result


def expected_improvement(means: Array, deviations: Array, levels: Array) -> Array:
    """E[max(X - level, 0)] of a normal X, accurate far below the level too."""
    from scipy.special import erfcx, ndtr

    safe = numpy.maximum(deviations, 1e-12)
    z = (means - levels) / safe
    density = numpy.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    # density + z * ndtr(z), which for z << 0 is a difference of almost equal numbers: there by the scaled complementary
    # error function.
    below = density * (1.0 + z * math.sqrt(math.pi / 2.0) * erfcx(numpy.maximum(-z, 0.0) / math.sqrt(2.0)))
    result: Array = safe * numpy.where(z < 0.0, below, density + z * ndtr(z))
    return numpy.maximum(result, 0.0)


def _settled(stage: Stage, observations: Sequence[Observation]) -> tuple[MaternProcess, Array]:
    front = Front(stage, observations)
    return front.process, _features(stage, sorted(front.observed))


def _spread(stage: Stage, observations: Sequence[Observation], seed: int, size: int) -> tuple[int, ...]:
    """The next ``size`` initial points: the unseen candidates nearest to those of an additive sequence.

    The sequence starts where the seed says, and does not depend on what was observed.
    """
    free = list(unseen(stage, observations))
    start = numpy.random.Generator(numpy.random.PCG64(seed)).random(2)
    chosen: list[int] = []
    for number in range(len(observations), len(observations) + size):
        target = (start + number * numpy.array(_STEP)) % 1.0
        distances = ((_features(stage, free) - target) ** 2).sum(1)
        chosen.append(free.pop(int(distances.argmin())))
    return tuple(chosen)


def _features(stage: Stage, candidates: Sequence[int]) -> Array:
    return numpy.array([stage.candidates[candidate].features for candidate in candidates], dtype=numpy.float64)
