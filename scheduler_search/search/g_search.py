"""G-Search: layer by layer, from shallow to deep, the keep rate that trades score for tokens best.

Knows: seed 003, section 3.2 and Algorithm 1. Does not know: how a candidate is scored, or in which order candidates
are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scheduler_search.errors import SearchError
from scheduler_search.schedule.families import free
from scheduler_search.search.stage import Candidate, Effort, Stage
from scheduler_search.study.states import Decision

TERA = 1e12


@dataclass(frozen=True)
class GSearch:
    """The greedy search of seed 003 (Algorithm 1), on the finite domain r = j / M.

    At layers first_layer, first_layer + stride, ... <= L the keep rate that maximises E(r) - penalty * r is decided,
    with the earlier decisions fixed and all later layers holding r. The anchor of a stage is r_prev, whose score is
    known from the stage before; the best observed objective is therefore at least that of r_prev, and over all stages
    the score on the search split falls by at most ``penalty``: each stage loses at most penalty * (r_prev - r), and
    the sum telescopes. A penalty per TFLOP telescopes likewise: the score falls by at most penalty * (TFLOPs saved).

    Args:
        layers: L, decoder layers.
        max_vision_tokens: M, the largest number of vision tokens of a sample of the search split.
        cost: mean prefill FLOPs over the search split, of keep rates.
        first_layer: first searched layer, 1-based.
        penalty: lambda of seed 003, equation 2.
        penalty_unit: what lambda is per: a keep rate of 1 at the layer (seed 003), or a TFLOP of the whole prefill.
        effort: of a stage; the anchor does not count as one of ``effort.initial``.
    """

    layers: int
    max_vision_tokens: int
    cost: Callable[[Sequence[float]], float] = field(compare=False)
    first_layer: int = 3
    stride: int = 3
    penalty: float = 0.01
    penalty_unit: Literal["keep-rate", "tflop"] = "keep-rate"
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        """Refuse numbers that make no search."""
        for name in ("layers", "max_vision_tokens", "first_layer", "stride"):
            if getattr(self, name) < 1:
                raise SearchError(f"{name} must be at least 1", actual=getattr(self, name), place="g-search")
        if self.first_layer > self.layers:
            raise SearchError(
                f"first_layer must be at most {self.layers}, the layers of the model", actual=self.first_layer
            )

    @property
    def searched_layers(self) -> tuple[int, ...]:
        """The 1-based layers that get a stage, unless an earlier stage has removed every token."""
        return tuple(range(self.first_layer, self.layers + 1, self.stride))

    @property
    def stages(self) -> int:
        """Number of stages at most."""
        return len(self.searched_layers)

    def next_stage(self, decisions: Sequence[Decision]) -> Stage | None:
        """The stage of the next layer; None after the last layer and where no token is left to remove."""
        if self.is_over(decisions):
            return None
        searched, previous = self.searched_layers, self._tokens_left(decisions)
        return Stage(
            index=len(decisions),
            name=f"layer-{searched[len(decisions)]:02d}",
            parameter="keep_rate",
            candidates=tuple(self._candidate(decisions, count) for count in range(previous + 1)),
            anchor=previous,
            effort=self.effort,
        )

    def is_over(self, decisions: Sequence[Decision]) -> bool:
        """Whether no stage follows: after the last layer, and where no token is left to remove."""
        return len(decisions) >= self.stages or self._tokens_left(decisions) == 0

    def final(self, decisions: Sequence[Decision]) -> tuple[float, ...]:
        """Keep rates of all layers; 1.0 before the first decision, the last decided rate after the last."""
        return self._rates([decision.value for decision in decisions])

    def _tokens_left(self, decisions: Sequence[Decision]) -> int:
        return round(decisions[-1].value * self.max_vision_tokens) if decisions else self.max_vision_tokens

    def _candidate(self, decisions: Sequence[Decision], count: int) -> Candidate:
        rate = count / self.max_vision_tokens
        rates = self._rates([*(decision.value for decision in decisions), rate])
        flops = self.cost(rates)
        penalty = self.penalty * (rate if self.penalty_unit == "keep-rate" else flops / TERA)
        depth = self.searched_layers[len(decisions)] / self.layers
        return Candidate(rate, rates, penalty, (rate, depth), flops)

    def _rates(self, values: Sequence[float]) -> tuple[float, ...]:
        return free(self.layers, dict(zip(self.searched_layers, values, strict=False)))
