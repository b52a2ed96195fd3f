from __future__ import annotations

import math
from functools import cache

import numpy
import pytest

from scheduler_search.errors import SearchError
from scheduler_search.search import Observation
from scheduler_search.search.front import Front
from tests.search.front_surface import SAMPLES, Population, explore, frontier

STAGE = frontier().stage
FEATURES = [candidate.features for candidate in STAGE.candidates]


@cache
def observed() -> tuple[Observation, ...]:
    return explore(STAGE, Population(0, 0, SAMPLES)).observations


def test_without_reduction_nothing_is_lost_whatever_k_is() -> None:
    front = Front(STAGE, observed())
    for prediction in front.predictions([(1.0, k) for k in (0.0, 0.1, 0.6, 1.0)]):
        assert prediction.difference == pytest.approx(0.0, abs=2e-3)
        # Not even there is the loss on new samples known to be 0: one sample's worth of doubt is left.
        assert 0.5 / SAMPLES < math.sqrt(prediction.difference_variance) < 3.0 / SAMPLES


def test_more_validation_samples_narrow_the_limit_of_the_loss() -> None:
    front = Front(STAGE, observed())
    (prediction,) = front.predictions([(0.4, 0.5)])
    limits = [prediction.loss_limit(samples, 1.645) for samples in (50, 500, 5000)]
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] > -prediction.difference + 1.6 * math.sqrt(prediction.difference_variance)


def test_scores_stay_in_their_range() -> None:
    front = Front(STAGE, explore(STAGE, Population(3, 0, 16)).observations)
    for prediction in front.predictions(FEATURES):
        assert 0.0 <= prediction.score <= 1.0
        assert prediction.score_error > 0.0
        assert prediction.sample_variance > 0.0


def test_a_front_needs_the_unreduced_model() -> None:
    observations = observed()
    with pytest.raises(SearchError, match="unreduced model"):
        Front(STAGE, observations[1:])
    # The unreduced model alone is enough to predict with: nothing is known to be lost anywhere.
    assert Front(STAGE, observations[:1]).predictions([(0.5, 0.5)])[0].difference == pytest.approx(0.0, abs=1e-9)


def errors(surfaces: range) -> tuple[numpy.ndarray, numpy.ndarray]:  # type: ignore[type-arg]
    """Errors on new samples in units of the predicted standard error, of scores and of differences; [surfaces, 3]."""
    scores, differences = [], []
    for surface in surfaces:
        front = Front(STAGE, explore(STAGE, Population(surface, 0, SAMPLES)).observations)
        truth = Population(surface, 1, 20_000)
        unseen = [index for index in range(STAGE.anchor) if index not in front.observed]
        chosen = numpy.random.default_rng(surface).choice(unseen, 3, replace=False).tolist()
        predictions = front.predictions([FEATURES[index] for index in chosen])
        unreduced = truth.mean(STAGE.candidates[STAGE.anchor])
        for index, prediction in zip(chosen, predictions, strict=True):
            score = truth.mean(STAGE.candidates[index])
            scores.append((prediction.score - score) / prediction.score_error)
            off = prediction.difference - (score - unreduced)
            differences.append(off / math.sqrt(prediction.difference_variance))
    return numpy.array(scores).reshape(-1, 3), numpy.array(differences).reshape(-1, 3)


@pytest.mark.slow
def test_standard_errors_of_predictions_are_honest() -> None:
    # 24 surfaces, three unseen points each, which share their samples: about 24 independent draws. Of a calibrated
    # model the root mean square of either kind is 1 +- 0.14 and the mean 0 +- 0.2: 4 deviations each, false alarm for
    # fresh surfaces about 3e-4.
    for found in errors(range(24)):
        assert 0.44 < math.sqrt(float((found**2).mean())) < 1.56
        assert abs(float(found.mean())) < 0.8
