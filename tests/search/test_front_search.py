from __future__ import annotations

import dataclasses
import math

import numpy
import pytest

from scheduler_search.search import Effort, Observation, Stage, next_batch
from scheduler_search.search.front import Front
from scheduler_search.search.front_search import expected_gains, expected_improvement, next_points
from scheduler_search.search.matern import Hyperparameters, MaternProcess
from tests.search.front_surface import SAMPLES, Population, explore, frontier

pytestmark = pytest.mark.slow

STAGE = frontier().stage
COLUMNS = (numpy.arange(2000) + 0.5) / 2000


def with_effort(**effort: object) -> Stage:
    return dataclasses.replace(STAGE, effort=dataclasses.replace(STAGE.effort, **effort))  # type: ignore[arg-type]


def process(seed: int = 0, size: int = 5) -> tuple[MaternProcess, numpy.ndarray]:  # type: ignore[type-arg]
    generator = numpy.random.default_rng(seed)
    known = generator.random((size, 2))
    values = known[:, 0] - 1.0 + generator.normal(scale=0.2, size=size)
    return MaternProcess(known, values, numpy.full(size, 0.01), 0.5, Hyperparameters((0.4, 0.6), 0.3, 0.4)), known


def front_of(heights: numpy.ndarray, costs: numpy.ndarray) -> numpy.ndarray:  # type: ignore[type-arg]
    """Height of the front in 2000 narrow columns of the cost axis, by its definition."""
    front = numpy.full(COLUMNS.shape, heights.min())
    for height, cost in zip(heights, costs, strict=True):
        front = numpy.where(cost <= COLUMNS, numpy.maximum(front, height), front)
    return front


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_closed_form_is_the_expected_rise_of_the_front(seed: int) -> None:
    # 4000 draws for each of 4 points: the mean is within 4.5 of its standard errors (and 0.0005 for the columns)
    # with probability 1 - 7e-6 each; false alarm for fresh seeds about 1e-4 in all.
    fitted, known = process(seed)
    points = numpy.random.default_rng(seed + 10).random((4, 2))
    gains = expected_gains(fitted, known, points)
    before = front_of(fitted.predict(known)[0], known[:, 0])
    means, variances = fitted.predict(points)
    draws = numpy.random.default_rng(seed).normal(size=(4000, 1))
    for point, mean, variance, gain in zip(points, means, variances, gains, strict=True):
        after = numpy.maximum(before, mean + math.sqrt(variance) * draws)
        rises = numpy.where(point[0] <= COLUMNS, after - before, 0.0).mean(1)
        error = rises.std() / math.sqrt(len(draws))
        assert gain == pytest.approx(rises.mean(), abs=4.5 * error + 5e-4)


@pytest.mark.parametrize(
    ("z", "improvement"), [(-10.0, 7.4745e-25), (-5.0, 5.3461e-8), (0.0, 0.398942), (3.0, 3.000382)]
)
def test_improvement_is_accurate_far_below_and_above_the_level(z: float, improvement: float) -> None:
    found = expected_improvement(numpy.array([0.2 + 0.5 * z]), numpy.array([0.5]), numpy.array([0.2]))
    assert found[0] == pytest.approx(0.5 * improvement, rel=1e-4)
    certain = expected_improvement(numpy.array([0.3, 0.1]), numpy.array([0.0, 0.0]), numpy.array([0.2, 0.2]))
    assert certain == pytest.approx([0.1, 0.0], abs=1e-12)


def test_what_costs_more_than_everything_can_raise_nothing() -> None:
    fitted, known = process()
    assert expected_gains(fitted, known, numpy.array([[1.0, 0.5]]))[0] == 0.0


def test_trials_are_the_anchor_the_initial_points_and_improvements() -> None:
    population = Population(surface=0, sample=0, size=SAMPLES)
    assert next_batch(STAGE, [], 7) == (STAGE.anchor,)
    seen = explore(STAGE, population).observations
    assert len({one.candidate for one in seen}) == len(seen) <= STAGE.trials
    assert len(seen) > 1 + STAGE.effort.initial
    initial = numpy.array([STAGE.candidates[one.candidate].features for one in seen[1 : 1 + STAGE.effort.initial]])
    gaps = numpy.sqrt(((initial[:, None] - initial[None, :]) ** 2).sum(-1)) + numpy.eye(len(initial))
    assert gaps.min() > 0.15


def test_suggestions_repeat_and_follow_the_seed() -> None:
    population = Population(surface=0, sample=0, size=SAMPLES)
    short = with_effort(iterations=3)
    assert explore(short, population, seed=1) == explore(short, population, seed=1)
    first, other = explore(short, population, seed=1), explore(short, population, seed=2)
    assert first.observations[1].candidate != other.observations[1].candidate


def test_a_stage_ends_where_little_is_expected_or_after_all_its_trials() -> None:
    population = Population(surface=1, sample=0, size=SAMPLES)
    whole = explore(with_effort(tolerance=0.0, iterations=6), population).observations
    assert len(whole) == 1 + STAGE.effort.initial + 6
    assert len(explore(with_effort(tolerance=0.2, iterations=6), population).observations) == 1 + STAGE.effort.initial
    front = Front(STAGE, whole)
    free = [index for index in range(len(STAGE.candidates)) if index not in front.observed]
    points = numpy.array([STAGE.candidates[index].features for index in free])
    known = numpy.array([STAGE.candidates[index].features for index in sorted(front.observed)])
    largest = float(expected_gains(front.process, known, points).max())
    longer = Effort(STAGE.effort.initial, 20)
    assert (
        next_points(dataclasses.replace(STAGE, effort=dataclasses.replace(longer, tolerance=largest * 1.01)), whole, 0)
        == ()
    )
    best = next_points(
        dataclasses.replace(STAGE, effort=dataclasses.replace(longer, tolerance=largest * 0.99)), whole, 0
    )
    assert best == (free[int(expected_gains(front.process, known, points).argmax())],)


@pytest.mark.slow
def test_batches_hold_different_points_and_begin_with_the_best() -> None:
    population = Population(surface=2, sample=0, size=SAMPLES)
    single = with_effort(tolerance=0.0)
    observations: list[Observation] = list(explore(with_effort(iterations=0, tolerance=0.0), population).observations)
    batch = next_points(with_effort(batch=4, tolerance=0.0), observations, 0)
    assert len(set(batch)) == 4
    assert batch[:1] == next_points(single, observations, 0)
    assert not {one.candidate for one in observations} & set(batch)
    features = [STAGE.candidates[candidate].features for candidate in batch]
    assert min(math.dist(features[0], other) for other in features[1:]) > 0.05
    # Initial points do not depend on how many are asked for together.
    assert next_points(with_effort(batch=3), observations[:2], 5) == tuple(
        next_points(with_effort(batch=8), observations[:2], 5)[:3]
    )
    assert len(next_points(with_effort(batch=8), observations[:5], 5)) == 1 + STAGE.effort.initial - 5
