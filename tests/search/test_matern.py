from __future__ import annotations

import math

import numpy
import pytest

from scheduler_search.search.matern import Hyperparameters, MaternProcess

POINTS = numpy.array([[0.1, 0.2], [0.4, 0.9], [0.7, 0.3], [0.9, 0.8]])
VALUES = numpy.array([-0.3, -0.1, -0.05, 0.0])
FIXED = Hyperparameters((0.4, 0.7), 0.5, 0.2)


def process(noise: float = 0.0, fixed: Hyperparameters | None = FIXED) -> MaternProcess:
    return MaternProcess(POINTS, VALUES, numpy.full(4, noise), 0.2, fixed)


def test_known_values_are_kept_and_noisy_ones_are_smoothed() -> None:
    means, variances = process().predict(POINTS)
    assert means == pytest.approx(VALUES, abs=1e-6)
    assert variances == pytest.approx(0.0, abs=1e-6)
    means, variances = process(noise=0.02).predict(POINTS)
    assert means.std() < VALUES.std()
    assert (variances > 1e-4).all()


def test_prediction_is_that_of_the_joint_normal_distribution() -> None:
    # A constant mean with a very wide prior is one more term of the covariance: the textbook formula, with no noise.
    wide = 1e4
    everything = numpy.vstack([POINTS, [[0.5, 0.5]]])
    difference = everything[:, None, :] - everything[None, :, :]
    distance = math.sqrt(5.0) * numpy.sqrt(((difference / numpy.array([0.4, 0.7])) ** 2).sum(-1))
    covariance = 0.04 * (1.0 + distance + distance**2 / 3.0) * numpy.exp(-distance) + wide
    inverse = numpy.linalg.inv(covariance[:4, :4] + 0.5 * 0.01 * numpy.eye(4))
    mean, variance = process(noise=0.01).predict(everything[4:])
    assert mean[0] == pytest.approx(covariance[4, :4] @ inverse @ VALUES, rel=1e-4)
    assert variance[0] == pytest.approx(covariance[4, 4] - covariance[4, :4] @ inverse @ covariance[:4, 4], rel=1e-3)


def test_conditioning_takes_a_value_as_known() -> None:
    point = numpy.array([0.5, 0.1])
    after = process(noise=0.02).conditioned(point, -0.2)
    mean, variance = after.predict(point[None, :])
    assert mean[0] == pytest.approx(-0.2, abs=1e-5)
    assert variance[0] < 1e-6
    assert after.hyperparameters == FIXED


def test_the_fit_follows_the_unit_of_the_values_and_repeats() -> None:
    generator = numpy.random.default_rng(3)
    points = generator.random((20, 2))
    values = numpy.sin(4.0 * points[:, 0]) + 0.1 * points[:, 1]
    small = MaternProcess(points, values, numpy.full(20, 1e-3), 0.6)
    large = MaternProcess(points, 100.0 * values, numpy.full(20, 10.0), 60.0)
    assert large.hyperparameters.amplitude == pytest.approx(100.0 * small.hyperparameters.amplitude, rel=1e-2)
    assert large.hyperparameters.lengthscales == pytest.approx(small.hyperparameters.lengthscales, rel=1e-2)
    # The values change with the first coordinate.
    assert small.hyperparameters.lengthscales[0] < small.hyperparameters.lengthscales[1]
    assert MaternProcess(points, values, numpy.full(20, 1e-3), 0.6).hyperparameters == small.hyperparameters


def test_constant_values_predict_the_constant() -> None:
    flat = MaternProcess(POINTS, numpy.zeros(4), numpy.zeros(4), 0.002)
    means, variances = flat.predict(numpy.array([[0.0, 0.0], [0.5, 0.5]]))
    assert means == pytest.approx(0.0, abs=1e-12)
    assert (variances < 0.01**2).all()
