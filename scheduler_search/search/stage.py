"""One stage of a search: a finite, one-dimensional choice and the number of trials it may spend.

Knows: the candidates in their order of preference, the anchor that is always among the observations, and how many
trials there are. Does not know: how a stage was made (``g_search``, ``p_sigmoid``) or how the next candidate is
chosen (``surrogate``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Literal

from scheduler_search.errors import SearchError
from scheduler_search.schedule.canonical import digest_of

# Name of the one integer parameter of a trial: a position in ``Stage.candidates``.
CANDIDATE = "candidate"


@dataclass(frozen=True)
class Candidate:
    """One value that a stage can decide on.

    Args:
        value: the keep rate r of G-Search, or the steepness k of P-Sigmoid.
        keep_rates: what is evaluated, one rate per decoder layer.
        penalty: what the objective subtracts from the mean score: lambda * r (seed 003, equation 2), 0 for P-Sigmoid.
        feature: the coordinate of the surrogate model, in [0, 1].
    """

    value: float
    keep_rates: tuple[float, ...]
    penalty: float
    feature: float


@dataclass(frozen=True)
class Stage:
    """A one-dimensional sub-search: layer i of G-Search, or k of P-Sigmoid.

    Args:
        index: position of the stage in its study, from 0.
        name: ``layer-03`` or ``sigmoid-k``; unique within a study.
        parameter: ``keep_rate`` or ``k``: what a candidate's value stands for.
        candidates: in order of preference; of two equal objectives the earlier candidate wins.
        anchor: position of the candidate of trial 0.
        initial: uniform trials that follow the anchor.
        iterations: trials of expected improvement that follow those (T in seed 003, Algorithm 1).
    """

    index: int
    name: str
    parameter: Literal["keep_rate", "k"]
    candidates: tuple[Candidate, ...]
    anchor: int
    initial: int
    iterations: int

    def __post_init__(self) -> None:
        """Refuse a stage without candidates, an anchor outside of them, and negative numbers of trials."""
        if not 0 <= self.anchor < len(self.candidates):
            raise SearchError(
                f"the anchor must be one of {len(self.candidates)} candidates", actual=self.anchor, place=self.name
            )
        if self.initial < 0 or self.iterations < 0:
            raise SearchError(
                "initial and iterations must not be negative",
                actual=f"{self.initial} and {self.iterations}",
                place=self.name,
            )

    @property
    def trials(self) -> int:
        """Number of trials, the anchor's included; never more than there are candidates."""
        return min(len(self.candidates), 1 + self.initial + self.iterations)

    @property
    def enumerated(self) -> bool:
        """Whether the trials cover the whole domain, so that nothing is left to a sampler."""
        return self.trials == len(self.candidates)

    @property
    def order(self) -> tuple[int, ...]:
        """All candidates, the anchor first and the others in order of preference: how a small domain is enumerated."""
        return (self.anchor, *(index for index in range(len(self.candidates)) if index != self.anchor))

    @cached_property
    def shared_layers(self) -> int:
        """Number of first decoder layers at each of which all candidates have the same keep rate."""
        layers = zip(*(candidate.keep_rates for candidate in self.candidates), strict=True)
        return sum(1 for _ in takewhile(lambda rates: len(set(rates)) == 1, layers))

    @cached_property
    def domain_digest(self) -> str:
        """``sha256:`` over everything that makes two stages the same choice: values, rates, penalties and anchor."""
        value = {
            "name": self.name,
            "parameter": self.parameter,
            "anchor": self.anchor,
            "candidates": [[one.value, list(one.keep_rates), one.penalty, one.feature] for one in self.candidates],
        }
        return digest_of(value)
