"""Expected improvement of single candidates and of batches, maximised exactly by enumeration.

Knows: a belief about candidates' values, what each is penalised, and the best objective so far. Does not know: trials,
stages, or where the belief comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy.special import ndtr, ndtri

from scheduler_search.search.curve import Array, Belief

# Draws of what a batch's first candidates may measure, when its next one is chosen. A power of 2, as Sobol points want.
_DRAWS = 64

_SQRT_TWO_PI = float(numpy.sqrt(2 * numpy.pi))

# Expected improvements closer than this are equal: the preferred candidate is taken.
_TIE = 1e-12


@dataclass(frozen=True)
class Contest:
    """What a candidate has to beat.

    Args:
        belief: about the candidates' values.
        penalties: to subtract from the values; shape [m].
        ceiling: no value is above it; every score is at most 1.
        best: the best objective so far.
    """

    belief: Belief
    penalties: Array
    ceiling: float
    best: float

    def gains(self) -> Array:
        """Expected improvement of each candidate on its own over ``best``, shape [m]; 0 where it cannot win."""
        deviations = numpy.sqrt(self.belief.variances)
        result: Array = self.belief.weights @ self._excess(self.belief.means, deviations, numpy.array(self.best))
        return result

    def choose(self, size: int, seed: int) -> tuple[int, ...]:
        """``size`` positions that are expected to improve most together, taken one after the other.

        The expected improvement of a batch (qEI) grows by that of its next candidate over the best of ``best`` and of
        what its first ones measure. The latter is drawn, from scrambled Sobol points, and given each draw the former
        is exact; so a batch of one needs no random numbers, and nothing is lost where improvements are tiny.

        Args:
            size: at most m.
        """
        chosen = [_first_largest(self.gains(), ())]
        while len(chosen) < size:
            chosen.append(_first_largest(self._gains_beside(chosen, seed), chosen))
        return tuple(chosen)

    def _gains_beside(self, pending: Sequence[int], seed: int) -> Array:
        """Expected improvement over ``best`` and over whatever ``pending`` will measure, shape [m]."""
        belief, columns = self.belief, numpy.array(pending)
        covariance = belief.covariances(columns)
        factor = numpy.linalg.cholesky(covariance[:, columns])
        normal = _normal_draws(len(pending), seed)
        measured = belief.means[:, None, columns] + normal @ factor.transpose(0, 2, 1)
        objectives = numpy.minimum(measured, self.ceiling) - self.penalties[columns]
        to_beat = numpy.maximum(objectives.max(2), self.best)[:, :, None]
        explained = numpy.linalg.solve(factor, covariance.transpose(0, 2, 1))
        means = belief.means[:, None] + normal @ explained
        variances = belief.variances - (explained**2).sum(1)
        deviations = numpy.sqrt(numpy.maximum(variances, 0.0))[:, None]
        result: Array = belief.weights @ self._excess(means, deviations, to_beat).mean(1)
        return result

    def _excess(self, means: Array, deviations: Array, to_beat: Array) -> Array:
        """E[max(min(value, ceiling) - penalty - to_beat, 0)] of normal values."""
        objectives = means - self.penalties
        highest = numpy.maximum(self.ceiling - self.penalties, to_beat)
        return _excess(objectives, deviations, to_beat) - _excess(objectives, deviations, highest)


def _normal_draws(dimensions: int, seed: int) -> Array:
    """Scrambled Sobol points as standard normal draws, shape [_DRAWS, dimensions]."""
    from scipy.stats import qmc  # half a second, which studies without batches need not wait for

    points = qmc.Sobol(dimensions, rng=seed).random(_DRAWS)
    result: Array = ndtri(numpy.clip(points, 1e-12, 1 - 1e-12))
    return result


def _excess(means: Array, deviations: Array, threshold: Array) -> Array:
    """E[max(Y - threshold, 0)] of normal Y (seed 003 names it; Jones, Schonlau and Welch, 1998, equation 15)."""
    safe = numpy.maximum(deviations, 1e-15)
    scaled = (means - threshold) / safe
    result: Array = safe * (scaled * ndtr(scaled) + numpy.exp(-(scaled**2) / 2) / _SQRT_TWO_PI)
    return result


def _first_largest(gains: Array, excluded: Sequence[int]) -> int:
    gains = gains.copy()
    gains[list(excluded)] = -1.0
    return int(numpy.argmax(gains >= gains.max() - _TIE))
