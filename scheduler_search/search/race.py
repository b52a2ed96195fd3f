"""The race of a candidate against the incumbent: when it may be given up before all its samples are read.

Knows: the scores read so far, what the candidate must reach, and the probability of giving up the better one. Does not
know: chunks, models, or which candidate comes next.

A candidate is given up for one of two reasons. It *cannot win*: it has missed more than it may miss, whatever the
samples left say. Or it is *worse with a stated error probability*: betting against "its mean score over the whole split
reaches the goal", on samples drawn in random order without replacement, has multiplied the stake by 1 / level. Under
the hypothesis the stake is a non-negative supermartingale, so that by Ville's inequality it ever gets there with
probability at most ``level``, however often one looks (Waudby-Smith and Ramdas, Confidence sequences for sampling
without replacement, NeurIPS 2020, sections 2 and 4; the bets here are a fixed mixture, so nothing is tuned on data).

What a stage promises. The samples of a split are in random order, one order for all candidates, and the candidates are
chosen by what was seen of others. So the level of each candidate of the stage is delta / (number of candidates): with
probability >= 1 - delta no candidate that reaches its goal on the whole split is ever given up, whichever were tried,
and against whichever incumbent. The goal may depend on the data, since a stake that is lost against a high goal would
have been lost against any lower one too. With that probability the stage decides on the candidate that full evaluation
of all tried ones would choose, or on one that is worse by no more than the margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from scheduler_search.errors import SearchError
from scheduler_search.search.observation import Observation
from scheduler_search.search.stage import Stage

# Shares of the stake that are put on each sample. Small ones pay where the candidate is worse by little, large ones
# where by much; the mixture pays about as well as the best of them.
_FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 0.95)

# Shares of the stake that are bet on paired differences; the rest is bet on the candidate's own score. Where the
# incumbent is nearly always right its own score says most, where it is often wrong the pairs do.
_ANCHOR_SHARE = 0.4
_INCUMBENT_SHARE = 0.2

# Sums of scores are exact to far below this; a goal that is reached up to rounding is reached.
_ROUNDING = 1e-9


class Race:
    """One candidate's race. Read its scores in the order of the split.

    Bets are made on y = 1 - score + reference, for a reference of 0, and of the scores of other candidates, which are
    known on the whole split: the second is the paired difference. Both have a known mean under the hypothesis.

    Args:
        goal: mean score over the split that would let the candidate win.
        references: scores of other candidates on the whole split, each with its share of the stake; the rest is bet
            on the score alone. Together the shares are less than 1.
        total: samples of the split.
        level: probability of giving up a candidate that reaches the goal.
    """

    def __init__(
        self, goal: float, total: int, level: float, references: Sequence[tuple[float, Sequence[float]]] = ()
    ) -> None:
        rest = 1.0 - math.fsum(share for share, _ in references)
        if not 0.0 < level < 1.0 or rest <= 0.0 or any(len(scores) != total for _, scores in references):
            raise SearchError("a race needs a level in (0, 1) and references on every sample", actual=level)
        shares = numpy.array([rest, *(share for share, _ in references)])
        self._total = total
        self._level = level
        self._allowed = total * (1.0 - goal)
        self._known = numpy.array([[0.0] * total, *(scores for _, scores in references)])
        self._budget = self._allowed + self._known.sum(axis=1)
        self._fractions = numpy.array(_FRACTIONS)
        # Logarithms of the stakes, [references, fractions].
        self._stakes: NDArray[numpy.float64] = numpy.log(
            numpy.outer(shares, numpy.full(len(_FRACTIONS), 1 / len(_FRACTIONS)))
        )
        self._read = 0
        self._missed = 0.0
        self._spent = numpy.zeros(len(shares))

    def read(self, scores: Sequence[float]) -> bool:
        """Read the scores of the next samples; True where the candidate may be given up now."""
        for score in scores:
            self._bet(score)
        return self.given_up

    @property
    def given_up(self) -> bool:
        """Whether the candidate cannot win, or the stake has reached 1 / level."""
        if self._missed > self._allowed + _ROUNDING * self._total:
            return True
        return self.log_stake >= -math.log(self._level)

    @property
    def log_stake(self) -> float:
        """Logarithm of what a stake of 1 has become."""
        return float(numpy.logaddexp.reduce(self._stakes, axis=None))

    def _bet(self, score: float) -> None:
        """Multiply every stake by 1 - f + f y / (expected y), the expectation being what the hypothesis has left."""
        drawn = 1.0 - score + self._known[:, self._read]
        expected = (self._budget - self._spent) / (self._total - self._read)
        possible = expected > _ROUNDING
        ratio = numpy.where(possible, drawn / numpy.where(possible, expected, 1.0), 1.0)
        self._stakes += numpy.log1p(self._fractions * (ratio[:, None] - 1.0))
        self._spent += drawn
        self._missed += 1.0 - score
        self._read += 1


def race_for(
    stage: Stage, candidate: int, best: Observation, best_scores: Sequence[float], anchor_scores: Sequence[float]
) -> Race | None:
    """The race of a candidate of ``stage``; None where it is the anchor, or the stage has no races.

    Args:
        best: the incumbent.
        best_scores: of the incumbent, on the whole split.
        anchor_scores: likewise.
    """
    if candidate == stage.anchor or not stage.effort.race_delta:
        return None
    # The incumbent is chosen on the data: its share is split over all candidates that it could have been.
    references = [(_ANCHOR_SHARE, anchor_scores), (_INCUMBENT_SHARE / len(stage.candidates), best_scores)]
    return Race(
        goal=best.objective + stage.candidates[candidate].penalty + stage.effort.race_margin,
        total=best.total,
        level=stage.effort.race_delta / len(stage.candidates),
        references=references,
    )
