"""A Gaussian process over a few dozen points of the unit square, in numpy and scipy.

Knows: the Matern-5/2 kernel with a lengthscale per axis, a constant mean, and how both are fitted. Does not know:
budgets, scores or trials. Not BoTorch, so that `status` and `export`, which predict a front without searching on, need
not load torch; and so that noise can be known up to one factor, which is fitted with the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[numpy.float64]

# Expected (lengthscale per axis, share of the noise, and nothing of the amplitude), and their deviations as logarithms.
_LENGTHSCALE, _LENGTHSCALE_DEVIATION = 0.5, 0.7
_SHARE, _SHARE_DEVIATION = 0.05, 0.6
_AMPLITUDE_DEVIATION = 2.0
_STARTS = ((0.5, 0.5, 0.1), (0.2, 0.8, 0.3), (1.0, 0.3, 0.05))
_BOUNDS = ((0.05, 2.0), (0.05, 2.0), (1e-3, 1.0), (1e-2, 1e2))
# Relative to the amplitude: keeps the factorisation stable where points without noise lie close together.
_JITTER = 1e-8


@dataclass(frozen=True)
class Hyperparameters:
    """Lengthscales of the axes, share of the given noise that is independent, and amplitude (a deviation)."""

    lengthscales: tuple[float, float]
    share: float
    amplitude: float


class MaternProcess:
    """The process, conditioned on values at points.

    Args:
        points: [n, 2] in the unit square, n >= 1.
        values: [n].
        noise: [n], variances; the part of them that differs between neighbouring points is fitted (``share``).
        hyperparameters: fitted where they are not given, as maximum of the posterior (no randomness).
        scale: expected amplitude; a deviation.
    """

    def __init__(
        self,
        points: Array,
        values: Array,
        noise: Array,
        scale: float,
        hyperparameters: Hyperparameters | None = None,
    ) -> None:
        self._points = points
        self._values = values
        self._noise = noise
        self._scale = scale
        self.hyperparameters = hyperparameters or self._fitted()

    def conditioned(self, point: Array, value: float) -> MaternProcess:
        """The process with one more value that is taken as known, and the same hyperparameters."""
        points = numpy.vstack([self._points, point[None, :]])
        values, noise = numpy.append(self._values, value), numpy.append(self._noise, 0.0)
        return MaternProcess(points, values, noise, self._scale, self.hyperparameters)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and variance of the process itself, without noise, at ``points`` [m, 2]; each [m].

        The variance includes that of the fitted mean.
        """
        factor, weighted_ones, precision, mean = self._solution
        cross = self._kernel(points, self._points, self.hyperparameters)
        solved = _solve(factor, cross.T)
        residual = _solve(factor, self._values - mean)
        missing = 1.0 - weighted_ones @ solved
        variance = self.hyperparameters.amplitude**2 - (solved**2).sum(0) + missing**2 / precision
        return mean + solved.T @ residual, numpy.maximum(variance, 0.0)

    def interpolate(self, values: Array, points: Array) -> Array:
        """Other values at the same points, [n], interpolated to ``points`` with the same kernel and noise; [m]."""
        other = MaternProcess(self._points, values, self._noise, self._scale, self.hyperparameters)
        return other.predict(points)[0]

    @cached_property
    def _solution(self) -> tuple[Array, Array, float, float]:
        return self._solve(self.hyperparameters)

    def _solve(self, parameters: Hyperparameters) -> tuple[Array, Array, float, float]:
        """Lower factor of the covariance; whitened ones; precision of the mean; the mean."""
        covariance = self._kernel(self._points, self._points, parameters)
        covariance += numpy.diag(parameters.share * self._noise + _JITTER * parameters.amplitude**2)
        factor: Array = numpy.linalg.cholesky(covariance).astype(numpy.float64)
        ones = _solve(factor, numpy.ones(len(self._values)))
        precision = float(ones @ ones)
        return factor, ones, precision, float(ones @ _solve(factor, self._values)) / precision

    def _kernel(self, first: Array, second: Array, parameters: Hyperparameters) -> Array:
        scaled = (first[:, None, :] - second[None, :, :]) / numpy.asarray(parameters.lengthscales)
        distance = math.sqrt(5.0) * numpy.sqrt((scaled**2).sum(-1))
        result: Array = parameters.amplitude**2 * (1.0 + distance + distance**2 / 3.0) * numpy.exp(-distance)
        return result

    def _fitted(self) -> Hyperparameters:
        from scipy.optimize import minimize  # 200 ms that a second prediction does not owe

        bounds = [(math.log(low), math.log(high)) for low, high in _BOUNDS]
        results = [
            minimize(self._loss, [*map(math.log, start), 0.0], method="L-BFGS-B", bounds=bounds) for start in _STARTS
        ]
        best = min(results, key=lambda result: float(result.fun))
        return self._parameters(best.x)

    def _parameters(self, logarithms: Sequence[float]) -> Hyperparameters:
        first, second, share, amplitude = (math.exp(value) for value in logarithms)
        return Hyperparameters((first, second), share, amplitude * self._scale)

    def _loss(self, logarithms: Array) -> float:
        """Negative logarithm of the posterior of the hyperparameters, up to a constant."""
        factor, ones, precision, mean = self._solve(self._parameters([float(value) for value in logarithms]))
        residual = _solve(factor, self._values) - mean * ones
        likelihood = 0.5 * float(residual @ residual) + float(numpy.log(numpy.diag(factor)).sum())
        likelihood += 0.5 * math.log(precision)
        expected = numpy.log([_LENGTHSCALE, _LENGTHSCALE, _SHARE, 1.0])
        deviations = numpy.array(
            [_LENGTHSCALE_DEVIATION, _LENGTHSCALE_DEVIATION, _SHARE_DEVIATION, _AMPLITUDE_DEVIATION]
        )
        return likelihood + 0.5 * float((((logarithms - expected) / deviations) ** 2).sum())


def _solve(factor: Array, right: Array) -> Array:
    from scipy.linalg import solve_triangular  # see _fitted

    solved: Array = solve_triangular(factor, right, lower=True, check_finite=False)
    return solved
