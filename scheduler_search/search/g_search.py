"""G-Search: layer by layer, from shallow to deep, the keep rate that trades score for tokens best.

Knows: seed 003, section 3.2 and Algorithm 1, over any of the places that tokens pass (``sites``). Does not know: how a
candidate is scored, or in which order candidates are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Literal

from scheduler_search.errors import SearchError
from scheduler_search.rule import Place
from scheduler_search.search.sites import Sites, TowerLayers
from scheduler_search.search.stage import Candidate, Effort, Stage
from scheduler_search.study.states import Decision

TERA = 1e12

# Rates j / M and j / P that differ by less are one.
_ROUNDING = 1.0 - 1e-12


@dataclass(frozen=True)
class GSearch:
    """The greedy search of seed 003 (Algorithm 1), on the finite domain r = j / M.

    At layers first_layer, first_layer + stride, ... <= L the keep rate that maximises E(r) - penalty * r is decided,
    with the earlier decisions fixed and all later layers holding r. The anchor of a stage is r_prev, whose score is
    known from the stage before; the best observed objective is therefore at least that of r_prev, and over all stages
    the score on the search split falls by at most ``penalty``: each stage loses at most penalty * (r_prev - r), and
    the sum telescopes. A penalty per TFLOP telescopes likewise: the score falls by at most penalty * (TFLOPs saved).

    With a rule at other places it is the same search over more sites: first the searched layers of the tower (r = j / P
    of the P patches of an image, at least one of them), then the rate at the entry, then the decoder's layers.

    Args:
        layers: L, decoder layers.
        max_vision_tokens: M, the largest number of vision tokens of a sample of the search split.
        cost: mean prefill FLOPs over the search split, of keep rates (those of the tower in front).
        first_layer: first searched layer, 1-based.
        penalty: lambda of seed 003, equation 2.
        penalty_unit: what lambda is per: a keep rate of 1 at the layer (seed 003), or a TFLOP of the whole prefill.
        effort: of a stage; the anchor does not count as one of ``effort.initial``.
        places: where the rule acts.
        tower: what of the tower is searched; None where the rule does not act in it.
    """

    layers: int
    max_vision_tokens: int
    cost: Callable[[Sequence[float]], float] = field(compare=False)
    first_layer: int = 3
    stride: int = 3
    penalty: float = 0.01
    penalty_unit: Literal["keep-rate", "tflop"] = "keep-rate"
    effort: Effort = field(default_factory=Effort)
    places: tuple[Place, ...] = ("decoder",)
    tower: TowerLayers | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no search."""
        for name in ("layers", "max_vision_tokens", "first_layer", "stride"):
            if getattr(self, name) < 1:
                raise SearchError(f"{name} must be at least 1", actual=getattr(self, name), place="g-search")
        if self.first_layer > self.layers:
            raise SearchError(
                f"first_layer must be at most {self.layers}, the layers of the model", actual=self.first_layer
            )

    @cached_property
    def sites(self) -> Sites:
        """Where keep rates are decided."""
        return Sites(self.places, self.layers, self.first_layer, self.stride, self.tower)

    @property
    def stages(self) -> int:
        """Number of stages at most: a search ends where an earlier stage has removed every token."""
        return len(self.sites.all)

    def next_stage(self, decisions: Sequence[Decision]) -> Stage | None:
        """The stage of the next site; None after the last one and where no token is left to remove."""
        if self.is_over(decisions):
            return None
        rates = self._domain(decisions)
        return Stage(
            index=len(decisions),
            name=self.sites.all[len(decisions)].name,
            parameter="keep_rate",
            candidates=tuple(self._candidate(decisions, rate) for rate in rates),
            anchor=len(rates) - 1,
            effort=self.effort,
            tower_layers=self.sites.tower_layers,
        )

    def is_over(self, decisions: Sequence[Decision]) -> bool:
        """Whether no stage follows: after the last site, and where no token is left to remove."""
        return len(decisions) >= self.stages or (bool(decisions) and decisions[-1].value == 0.0)

    def final(self, decisions: Sequence[Decision]) -> tuple[float, ...]:
        """Keep rates of all layers; 1.0 before the first decision, the last decided rate after the last."""
        return self.sites.rates([decision.value for decision in decisions])

    def _domain(self, decisions: Sequence[Decision]) -> tuple[float, ...]:
        """The rates that a site can have, increasing; the last one is that of the site before."""
        previous = decisions[-1].value if decisions else 1.0
        least, tokens = 0, self.max_vision_tokens
        if self.tower is not None and self.sites.all[len(decisions)].place == "vision":
            least, tokens = 1, self.tower.tokens
        rates = (count / tokens for count in range(least, tokens))
        return (*takewhile(lambda rate: rate < previous * _ROUNDING, rates), previous)

    def _candidate(self, decisions: Sequence[Decision], rate: float) -> Candidate:
        rates = self.sites.rates([*(decision.value for decision in decisions), rate])
        flops = self.cost(rates)
        penalty = self.penalty * (rate if self.penalty_unit == "keep-rate" else flops / TERA)
        return Candidate(rate, rates, penalty, (rate, self.sites.depth(self.sites.all[len(decisions)])), flops)
