"""G-Search with a refinement: after the greedy stages, one layer at a time is reconsidered, from shallow to deep.

Knows: which stages follow the greedy ones. Does not know: how a candidate is scored, or in which order candidates are
tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scheduler_search.search.g_search import TERA, GSearch
from scheduler_search.search.stage import Candidate, Stage
from scheduler_search.study.states import Decision


@dataclass(frozen=True)
class RefinedGSearch:
    """The stages of G-Search, then one for each single layer from ``first_layer`` to L that can change.

    A greedy stage is impatient: its candidates hold their rate in all later layers, so it counts the FLOPs of all of
    them as saved, where the next stage could drop the same tokens a little later at a smaller loss. In a refining stage
    all other layers stay as they are, and the candidates of layer i are the counts between those of its neighbours,
    r_(i+1) <= r <= r_(i-1); from shallow to deep, so that a rate can be held for as many layers as it pays. The anchor
    is the present count, so that score - penalty never falls; a layer between equal neighbours has no stage.

    The penalty is that of the greedy search, per TFLOP or, per keep rate, lambda * the mean keep rate over
    [first_layer, L], which is that of the first greedy stage.
    """

    greedy: GSearch

    @property
    def stages(self) -> int:
        """Number of stages at most."""
        return self.greedy.stages + self.greedy.layers - self.greedy.first_layer + 1

    def next_stage(self, decisions: Sequence[Decision]) -> Stage | None:
        """The next greedy stage, or the next refining one; None once every layer was reconsidered."""
        greedy = self._greedy(decisions)
        if len(greedy) == len(decisions) and (stage := self.greedy.next_stage(decisions)) is not None:
            return stage
        rates, layer = self._refined(decisions)
        return None if layer is None else self._stage(len(decisions), rates, layer)

    def final(self, decisions: Sequence[Decision]) -> tuple[float, ...]:
        """Keep rates of all layers under ``decisions``."""
        return self._refined(decisions)[0]

    def _greedy(self, decisions: Sequence[Decision]) -> Sequence[Decision]:
        """The decisions of the greedy stages."""
        for number in range(len(decisions)):
            if self.greedy.next_stage(decisions[:number]) is None:
                return decisions[:number]
        return decisions

    def _refined(self, decisions: Sequence[Decision]) -> tuple[tuple[float, ...], int | None]:
        """The rates under ``decisions``, and the layer to reconsider next."""
        greedy = self._greedy(decisions)
        rates = list(self.greedy.final(greedy))
        left = list(decisions[len(greedy) :])
        for layer in range(self.greedy.first_layer, self.greedy.layers + 1):
            if self._lowest(rates, layer) == self._highest(rates, layer):
                continue
            if not left:
                return tuple(rates), layer
            rates[layer - 1] = left.pop(0).value
        return tuple(rates), None

    def _lowest(self, rates: Sequence[float], layer: int) -> int:
        return 0 if layer == self.greedy.layers else self._count(rates[layer])

    def _highest(self, rates: Sequence[float], layer: int) -> int:
        return self.greedy.max_vision_tokens if layer == 1 else self._count(rates[layer - 2])

    def _count(self, rate: float) -> int:
        return round(rate * self.greedy.max_vision_tokens)

    def _stage(self, index: int, rates: tuple[float, ...], layer: int) -> Stage:
        lowest, highest = self._lowest(rates, layer), self._highest(rates, layer)
        return Stage(
            index=index,
            name=f"layer-{layer:02d}-refined",
            parameter="keep_rate",
            candidates=tuple(self._candidate(rates, layer, tokens) for tokens in range(lowest, highest + 1)),
            anchor=self._count(rates[layer - 1]) - lowest,
            effort=self.greedy.effort,
        )

    def _candidate(self, rates: tuple[float, ...], layer: int, tokens: int) -> Candidate:
        rate = tokens / self.greedy.max_vision_tokens
        changed = (*rates[: layer - 1], rate, *rates[layer:])
        flops = self.greedy.cost(changed)
        searched = changed[self.greedy.first_layer - 1 :]
        price = fmean(searched) if self.greedy.penalty_unit == "keep-rate" else flops / TERA
        return Candidate(rate, changed, self.greedy.penalty * price, (rate, layer / self.greedy.layers), flops)
