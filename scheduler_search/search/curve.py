"""What is believed of a stage's score curve: Gaussian processes, averaged by their likelihood.

Knows: how scores change with a candidate's coordinate, what the curve of one stage says of the next one's, and how
single candidates leave the curve. Does not know: penalties, trials, seeds, batches, or when a stage ends. Plain numpy
in float64: no random numbers, no optimiser that could fail, and hyperparameters that a few points cannot tell apart
are all kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product

import numpy
import numpy.typing

Array = numpy.typing.NDArray[numpy.float64]

# Hyperparameters, from which every combination is tried; a priori all are equally likely. Scores are in [0, 1].
_AMPLITUDES = (0.03, 0.1, 0.3, 1.0)
_LENGTHSCALES = (0.1, 0.2, 0.4, 0.8)
# By how many samples of the split a candidate typically leaves the curve: a score is a step function, and which few
# samples turn between two neighbours is chance.
_NUGGETS = (0.3, 1.0, 3.0)
# Amplitude of the running stage's curve beside that of the stage before: the deeper the layer, the less its tokens
# matter. Smoothness and single steps are shared. The values of two stages are taken as independent: correlated ones
# saved no trials in experiments (docs/log.md).
_RATIOS = (0.1, 0.3, 1.0)

# Combinations less likely than this share of the likeliest are dropped, and all but so many.
_UNLIKELY = 1e-3
_SETTINGS = 16

# Variance far below that of one turned sample in a million, to keep matrices positive definite.
_JITTER = 1e-12


@dataclass(frozen=True)
class Points:
    """Measured values of score curves.

    Args:
        coordinates: shape [n, d], each in about [0, 1].
        before: 1 for points of the stage before, 0 for those of the running stage; shape [n].
        values: score minus that of the running stage's anchor; shape [n].
        variances: of the noise of ``values``, 0 for trials that read the whole split; shape [n].
    """

    coordinates: Array
    before: Array
    values: Array
    variances: Array


@dataclass(frozen=True)
class _Settings:
    """Combinations of hyperparameters, each of shape [h]; ``nugget`` is a variance."""

    amplitude: Array
    lengthscale: Array
    nugget: Array
    ratio: Array

    def chosen(self, which: numpy.typing.NDArray[numpy.intp]) -> _Settings:
        """Some of them."""
        return _Settings(*(getattr(self, field.name)[which] for field in fields(self)))

    def kernel(self, distances: Array, first: Array, second: Array) -> Array:
        """Prior covariance (Matern 5/2 within a stage, 0 between stages), shape [h, n, m].

        Args:
            distances: shape [n, m].
            first: ``Points.before`` of the rows, shape [n].
            second: and of the columns, shape [m].
        """
        scaled = numpy.sqrt(5.0) * distances / self.lengthscale[:, None, None]
        matern = (1 + scaled + scaled**2 / 3) * numpy.exp(-scaled)
        sizes = self._amplitudes(first)[:, :, None] * self._amplitudes(second)[:, None, :]
        result: Array = numpy.where(first[:, None] == second, sizes * matern, 0.0)
        return result

    def _amplitudes(self, before: Array) -> Array:
        result: Array = self.amplitude[:, None] * numpy.where(before > 0, 1.0, self.ratio[:, None])
        return result


@dataclass(frozen=True)
class Belief:
    """Normal beliefs about the values of m candidates, one for each of h settings of the hyperparameters.

    Args:
        weights: of the settings, sum 1; shape [h].
        means: shape [h, m].
        variances: of what would be measured, the nugget included; shape [h, m].
    """

    weights: Array
    means: Array
    variances: Array
    _settings: _Settings
    _coordinates: Array
    _explained: Array

    def covariances(self, columns: numpy.typing.NDArray[numpy.intp]) -> Array:
        """Between all candidates and those in ``columns`` as they would be measured, shape [h, m, len(columns)]."""
        apart = _distances(self._coordinates, self._coordinates[columns])
        known = self._explained.transpose(0, 2, 1) @ self._explained[:, :, columns]
        result: Array = self._settings.kernel(apart, *map(numpy.zeros, apart.shape)) - known
        result[:, columns, range(len(columns))] = self.variances[:, columns]
        return result


def believe(points: Points, coordinates: Array, samples: int) -> Belief:
    """The belief about the running stage's values at ``coordinates``, shape [m, d].

    Args:
        samples: of the split.
    """
    settings = _grid(samples, related=bool(points.before.any()))
    apart = _distances(points.coordinates, points.coordinates)
    noise = settings.nugget[:, None] + points.variances + _JITTER
    covariance = settings.kernel(apart, points.before, points.before) + noise[:, :, None] * numpy.eye(
        len(points.values)
    )
    factor = numpy.linalg.cholesky(covariance)
    whitened = numpy.linalg.solve(factor, numpy.broadcast_to(points.values[:, None], (*noise.shape, 1)))[..., 0]
    log_likelihood = -(whitened**2).sum(1) / 2 - numpy.log(numpy.einsum("hii->hi", factor)).sum(1)
    likeliest = numpy.argsort(-log_likelihood, kind="stable")[:_SETTINGS]
    likeliest = likeliest[log_likelihood[likeliest] >= log_likelihood.max() + numpy.log(_UNLIKELY)]
    settings = settings.chosen(likeliest)
    weights = numpy.exp(log_likelihood[likeliest] - log_likelihood.max())
    apart = _distances(points.coordinates, coordinates)
    cross = settings.kernel(apart, points.before, numpy.zeros(len(coordinates)))
    explained = numpy.linalg.solve(factor[likeliest], cross)
    means = (explained * whitened[likeliest][:, :, None]).sum(1)
    curve = numpy.maximum(((settings.amplitude * settings.ratio) ** 2)[:, None] - (explained**2).sum(1), 0.0)
    variances = curve + settings.nugget[:, None]
    return Belief(weights / weights.sum(), means, variances, settings, coordinates, explained)


def _grid(samples: int, *, related: bool) -> _Settings:
    rows = product(_AMPLITUDES, _LENGTHSCALES, _NUGGETS, _RATIOS if related else (1.0,))
    amplitude, lengthscale, nugget, ratio = numpy.array(list(rows)).T
    return _Settings(amplitude, lengthscale, (nugget / samples) ** 2, ratio)


def _distances(first: Array, second: Array) -> Array:
    result: Array = numpy.sqrt(((first[:, None, :] - second[None, :, :]) ** 2).sum(-1))
    return result
