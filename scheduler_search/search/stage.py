"""One stage of a search: a finite, one-dimensional choice and the number of trials it may spend.

Knows: the candidates in their order of preference, the anchor that is always among the observations, and how many
trials there are. Does not know: how a stage was made (``g_search``, ``p_sigmoid``) or how the next candidate is
chosen (``surrogate``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
        keep_rates: what is evaluated, one rate per decoder layer; in front of them those of the tower's layers, where a
            study reduces there.
        penalty: what the objective subtracts from the mean score: lambda * r (seed 003, equation 2), 0 for P-Sigmoid.
        features: coordinates of the surrogate model, each in [0, 1], with the same meaning in all stages of a study.
        flops: mean prefill FLOPs over the search split.
        branch_layers: number of first layers in which other candidates keep what it keeps, where that spares most of
            their work (``sharing``); 0 for none. It changes no score.
    """

    value: float
    keep_rates: tuple[float, ...]
    penalty: float
    features: tuple[float, ...]
    flops: float
    branch_layers: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Effort:
    """What a stage may spend, and when it may spend less.

    Args:
        initial: trials that follow the anchor and need no model.
        iterations: trials of expected improvement that follow those (T in seed 003, Algorithm 1); at most so many.
        tolerance: the stage ends where no candidate is expected to improve the objective by as much; 0 to run all.
        batch: candidates that are asked for together.
        race_delta: error probability of all races of the stage together (``race``); 0 to evaluate all in full.
        race_margin: by how much a candidate must promise to beat the incumbent to go on in its race.
        faithful: exactly the procedure of seed 003, for the surrogate too.
    """

    initial: int = 10
    iterations: int = 20
    tolerance: float = 0.0
    batch: int = 1
    race_delta: float = 0.0
    race_margin: float = 0.0
    faithful: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers of trials that make no stage."""
        if self.initial < 0 or self.iterations < 0:
            actual = f"{self.initial} and {self.iterations}"
            raise SearchError("initial and iterations must not be negative", actual=actual)
        if self.batch < 1:
            raise SearchError("a batch must hold at least one candidate", actual=self.batch)


@dataclass(frozen=True)
class Stage:
    """A one-dimensional sub-search: layer i of G-Search, or k of P-Sigmoid.

    Args:
        index: position of the stage in its study, from 0.
        name: ``layer-03``, ``entry``, ``tower-02`` or ``sigmoid-k``; unique within a study.
        parameter: what a candidate's value stands for: ``keep_rate``, ``k``, or ``budget`` of the frontier.
        candidates: in order of preference; of two equal objectives the earlier candidate wins.
        anchor: position of the candidate of trial 0.
        effort: that the choice is worth.
        tower_layers: how many of a candidate's keep rates are of layers of the vision tower.
    """

    index: int
    name: str
    parameter: Literal["keep_rate", "k", "budget"]
    candidates: tuple[Candidate, ...]
    anchor: int
    effort: Effort
    tower_layers: int = 0

    def __post_init__(self) -> None:
        """Refuse a stage without candidates, and an anchor outside of them."""
        if not 0 <= self.anchor < len(self.candidates):
            raise SearchError(
                f"the anchor must be one of {len(self.candidates)} candidates", actual=self.anchor, place=self.name
            )

    @property
    def trials(self) -> int:
        """Number of trials at most, the anchor's included; never more than there are candidates."""
        return min(len(self.candidates), 1 + self.effort.initial + self.effort.iterations)

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
        """Number of first decoder layers up to which all candidates have the same keep rates, the tower included."""
        layers = zip(*(candidate.keep_rates for candidate in self.candidates), strict=True)
        alike = sum(1 for _ in takewhile(lambda rates: len(set(rates)) == 1, layers))
        return max(alike - self.tower_layers, 0)

    @cached_property
    def domain_digest(self) -> str:
        """``sha256:`` over everything that makes two stages the same choice: values, rates, penalties and anchor."""
        value = {
            "name": self.name,
            "parameter": self.parameter,
            "anchor": self.anchor,
            "candidates": [[one.value, list(one.keep_rates), one.penalty, one.features] for one in self.candidates],
        }
        return digest_of(value)
