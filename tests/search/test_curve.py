from __future__ import annotations

import numpy
import pytest

from scheduler_search.search.curve import Array, Belief, Points, believe

PLACES = numpy.linspace(0.0, 1.0, 33)[:, None]


def _points(places: Array, values: Array, *, before: float = 0.0, variance: float = 0.0) -> Points:
    number = len(values)
    return Points(places, numpy.full(number, before), values, numpy.full(number, variance))


def _mean(belief: Belief) -> Array:
    result: Array = belief.weights @ belief.means
    return result


def _curve(places: Array) -> Array:
    result: Array = -0.5 * numpy.exp(-5 * places[:, 0])
    return result


def test_a_belief_goes_through_what_was_measured_without_noise() -> None:
    points = _points(PLACES[::4], _curve(PLACES[::4]))
    belief = believe(points, PLACES, 256)
    assert numpy.allclose(_mean(belief), _curve(PLACES), atol=0.015)
    assert numpy.allclose(_mean(belief)[::4], _curve(PLACES[::4]), atol=1 / 256)
    assert belief.weights.sum() == pytest.approx(1.0)


def test_noise_is_not_followed() -> None:
    noisy = _points(PLACES[::2], numpy.where(numpy.arange(17) % 2, 0.05, -0.05), variance=0.05**2)
    exact = _points(PLACES[::2], numpy.where(numpy.arange(17) % 2, 0.05, -0.05))
    assert abs(_mean(believe(noisy, PLACES[::2], 256))).max() < 0.02
    assert abs(_mean(believe(exact, PLACES[::2], 256))).max() > 0.04


def test_no_candidate_is_surer_than_its_own_step() -> None:
    """Between neighbours of a step function single samples turn: at least 0.3 of them, 1 / n each."""
    belief = believe(_points(PLACES, _curve(PLACES)), PLACES, 256)
    assert belief.variances.min() >= (0.3 / 256) ** 2


@pytest.mark.parametrize(("height", "surer"), [(0.02, True), (0.9, False)])
def test_the_stage_before_says_how_much_two_points_leave_open(height: float, surer: bool) -> None:
    """After a flat curve another flat one is expected, after a steep one anything less."""
    now = _points(numpy.array([[0.0], [1.0]]), numpy.array([-0.01, 0.0]))
    before = _points(PLACES[::3], height * _curve(PLACES[::3]), before=1.0)
    both = Points(*(numpy.concatenate(pair) for pair in zip(vars(before).values(), vars(now).values(), strict=True)))
    alone, informed = (believe(points, PLACES, 256) for points in (now, both))
    spreads = [float(belief.weights @ belief.variances[:, 16]) for belief in (alone, informed)]
    assert (spreads[1] < 0.5 * spreads[0]) is surer


def test_covariances_agree_with_variances_and_are_symmetric() -> None:
    belief = believe(_points(PLACES[::8], _curve(PLACES[::8])), PLACES, 256)
    columns = numpy.arange(len(PLACES))
    covariance = belief.covariances(columns)
    assert numpy.allclose(covariance, covariance.transpose(0, 2, 1))
    assert numpy.array_equal(numpy.einsum("hii->hi", covariance), belief.variances)
    assert numpy.linalg.eigvalsh(covariance).min() > 0


def test_a_subset_of_candidates_is_believed_the_same_of() -> None:
    points = _points(PLACES[::8], _curve(PLACES[::8]))
    whole, part = believe(points, PLACES, 256), believe(points, PLACES[5:7], 256)
    assert numpy.allclose(whole.means[:, 5:7], part.means)
    assert numpy.allclose(whole.variances[:, 5:7], part.variances)
