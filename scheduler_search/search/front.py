"""What a frontier stage knows: the score of every schedule of its domain, predicted from a few dozen observed ones.

Knows: paired differences to the unreduced model, and how sure a prediction is on samples that the search never saw.
Does not know: how candidates are chosen (``front_search``), what a user asks of the front (``target``), or databases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy

from scheduler_search.errors import SearchError
from scheduler_search.search.matern import Array, MaternProcess
from scheduler_search.search.observation import Observation
from scheduler_search.search.stage import Stage

# The export gate asks for the upper end of a two-sided 95 % interval, that many standard errors above the loss.
_GATE = 1.959963984540054

# Without reduction k changes nothing: the differences there are known to be 0, for every k.
_KNOWN = tuple((1.0, coordinate) for coordinate in (0.0, 0.25, 0.5, 0.75, 1.0))


@dataclass(frozen=True)
class Prediction:
    """What is expected of a schedule.

    Args:
        difference: expected paired difference to the unreduced model.
        score: expected mean score.
        model_variance: of ``difference`` as a prediction of what the search split itself would give.
        sample_variance: of the paired difference of one sample.
        samples: of the search split.
    """

    difference: float
    score: float
    model_variance: float
    sample_variance: float
    samples: int

    @property
    def difference_variance(self) -> float:
        """Of ``difference`` as a prediction on new data: the search split is a sample itself."""
        return self.model_variance + self.sample_variance / self.samples

    @property
    def score_error(self) -> float:
        """Standard error of ``score`` as a prediction on new data."""
        # Two right and two wrong answers are added (Agresti and Coull, The American Statistician 52, 1998): near 1, the
        # variance of a few hundred answers is more often too small than too large. p (1 - p) is the variance of a score
        # that is 0 or 1, and more than that of any other one in [0, 1].
        share = (self.samples * self.score + 2.0) / (self.samples + 4)
        return math.sqrt(self.model_variance + share * (1.0 - share) / self.samples)

    def loss_limit(self, validation_samples: int, quantile: float) -> float:
        """What the upper 95 % limit of the loss, measured on so many new samples, stays below.

        Args:
            quantile: of the standard normal distribution, at the probability with which it does.
        """
        measurement = self.sample_variance / validation_samples
        margin = _GATE * math.sqrt(measurement)
        return -self.difference + margin + quantile * math.sqrt(self.difference_variance + measurement)


class Front:
    """The scores of a frontier stage as a Gaussian process over its two coordinates.

    The observations are of one split. What is predicted for it has the variance of the process; what is predicted for
    new data adds the sampling variance of the paired difference on the split, which is shared by all candidates, since
    they were scored on the same samples, and which no further trial would reduce.

    Args:
        observations: of the stage, the anchor's among them; those that a race stopped are not read.

    Raises:
        SearchError: the anchor was not observed.
    """

    def __init__(self, stage: Stage, observations: Sequence[Observation]) -> None:
        anchor = next((one for one in observations if one.candidate == stage.anchor), None)
        if anchor is None:
            raise SearchError("a front needs the score of the unreduced model", place=stage.name)
        self._stage = stage
        self._anchor = anchor
        self._observations = [one for one in observations if one.complete and one.candidate != stage.anchor]

    @property
    def samples(self) -> int:
        """Samples of the search split."""
        return self._anchor.total

    @property
    def observed(self) -> frozenset[int]:
        """The candidates that were scored."""
        return frozenset(one.candidate for one in self._observations) | {self._stage.anchor}

    def predictions(self, features: Sequence[tuple[float, ...]]) -> tuple[Prediction, ...]:
        """What is expected at points of the domain."""
        points = numpy.asarray(features, dtype=numpy.float64).reshape(-1, 2)
        means, variances = self.process.predict(points)
        deviations = numpy.clip(self.process.interpolate(self._deviations, points), 0.0, self._deviations.max())
        rows = zip(means.tolist(), variances.tolist(), deviations.tolist(), strict=True)
        return tuple(self._prediction(*row) for row in rows)

    def _prediction(self, mean: float, variance: float, deviation: float) -> Prediction:
        score = min(max(self._anchor.score + mean, 0.0), 1.0)
        difference = score - self._anchor.score
        # One sample's worth is added, as in the interval of a measured difference (export.paired): candidates that
        # happen to agree with the unreduced model on every sample are not known to agree everywhere.
        square = (self.samples * (deviation**2 + difference**2) + 1.0) / (self.samples + 2)
        return Prediction(difference, score, variance, max(square - difference**2, 0.0), self.samples)

    @cached_property
    def process(self) -> MaternProcess:
        """The fitted process of paired differences."""
        values = numpy.array([0.0] * len(_KNOWN) + [one.difference for one in self._observations])
        noise = numpy.array([0.0] * len(_KNOWN) + [one.variance for one in self._observations])
        scale = max(float(values.std()), 0.5 / self.samples)
        return MaternProcess(self._points, values, noise, scale)

    @cached_property
    def _points(self) -> Array:
        features = [self._stage.candidates[one.candidate].features for one in self._observations]
        return numpy.array([*_KNOWN, *features], dtype=numpy.float64)

    @cached_property
    def _deviations(self) -> Array:
        """Standard deviation of one sample's paired difference at every point of the process."""
        observed = [math.sqrt(one.variance * one.samples) for one in self._observations]
        return numpy.array([0.0] * len(_KNOWN) + observed)
