"""G-Search with a refinement: after the greedy stages, one layer at a time is reconsidered, there and back.

Knows: which stages follow the greedy ones. Does not know: how a candidate is scored, or in which order candidates are
tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from scheduler_search.search.g_search import TERA, GSearch
from scheduler_search.search.stage import Candidate, Stage
from scheduler_search.study.states import Decision


class _Move(NamedTuple):
    """A layer, 1-based, and which way its rate may go."""

    layer: int
    kind: Literal["raised", "lowered"]


@dataclass(frozen=True)
class RefinedGSearch:
    """The stages of G-Search, then at most two for each single layer from ``first_layer`` on.

    A greedy stage is impatient: its candidates hold their rate in all later layers, so it counts the FLOPs of all of
    them as saved, where the next stage could drop the same tokens a little later at a smaller loss. In a refining stage
    all other layers stay as they are. First, from shallow to deep, a layer may be *raised*, to at most the rate of the
    layer before, so that a rate is held for as many layers as it pays; then, from deep to shallow, it may be *lowered*,
    to at least the rate of the layer behind. The anchor is the present count, so that score - penalty never falls. A
    layer that cannot change has no stage, and neither has one whose choices all cost the same but for less than
    ``effort.tolerance``. (Lowering first would take tokens from the last layer before a drop that
    comes too early, instead of moving the drop: docs/log.md.)

    The penalty is that of the greedy search, per TFLOP or, per keep rate, lambda * the mean keep rate over
    [first_layer, L], which is that of the first greedy stage.
    """

    greedy: GSearch

    @property
    def stages(self) -> int:
        """Number of stages at most."""
        return self.greedy.stages + 2 * (self.greedy.layers - self.greedy.first_layer + 1)

    def next_stage(self, decisions: Sequence[Decision]) -> Stage | None:
        """The next greedy stage, or the next refining one; None once every layer was reconsidered."""
        greedy = self._greedy(decisions)
        if len(greedy) == len(decisions) and (stage := self.greedy.next_stage(decisions)) is not None:
            return stage
        rates, move = self._refined(decisions)
        return None if move is None else self._stage(len(decisions), rates, move)

    def final(self, decisions: Sequence[Decision]) -> tuple[float, ...]:
        """Keep rates of all layers under ``decisions``."""
        return self._refined(decisions)[0]

    def _greedy(self, decisions: Sequence[Decision]) -> Sequence[Decision]:
        """The decisions of the greedy stages."""
        for number in range(len(decisions)):
            if self.greedy.is_over(decisions[:number]):
                return decisions[:number]
        return decisions

    def _refined(self, decisions: Sequence[Decision]) -> tuple[tuple[float, ...], _Move | None]:
        """The rates under ``decisions``, and the move to consider next."""
        greedy = self._greedy(decisions)
        rates = list(self.greedy.final(greedy))
        left = list(decisions[len(greedy) :])
        for move in self._moves():
            if not self._matters(tuple(rates), move):
                continue
            if not left:
                return tuple(rates), move
            rates[move.layer - 1] = left.pop(0).value
        return tuple(rates), None

    def _matters(self, rates: tuple[float, ...], move: _Move) -> bool:
        """Whether a layer has a choice whose price differs from the others' by the tolerance or more."""
        counts = self._counts(rates, move)
        if len(counts) == 1:
            return False
        ends = [self._candidate(rates, move.layer, tokens) for tokens in (counts[0], counts[-1])]
        return ends[-1].penalty - ends[0].penalty >= self.greedy.effort.tolerance

    def _moves(self) -> Iterator[_Move]:
        layers = range(self.greedy.first_layer, self.greedy.layers + 1)
        yield from (_Move(layer, "raised") for layer in layers)
        yield from (_Move(layer, "lowered") for layer in reversed(layers))

    def _counts(self, rates: Sequence[float], move: _Move) -> range:
        """The counts that a layer may have, its present one among them."""
        before, present, behind = (self._count(rate) for rate in [1.0, *rates, 0.0][move.layer - 1 : move.layer + 2])
        return range(present, before + 1) if move.kind == "raised" else range(behind, present + 1)

    def _count(self, rate: float) -> int:
        return round(rate * self.greedy.max_vision_tokens)

    def _stage(self, index: int, rates: tuple[float, ...], move: _Move) -> Stage:
        counts = self._counts(rates, move)
        return Stage(
            index=index,
            name=f"layer-{move.layer:02d}-{move.kind}",
            parameter="keep_rate",
            candidates=tuple(self._candidate(rates, move.layer, tokens) for tokens in counts),
            anchor=counts.index(self._count(rates[move.layer - 1])),
            effort=self.greedy.effort,
        )

    def _candidate(self, rates: tuple[float, ...], layer: int, tokens: int) -> Candidate:
        rate = tokens / self.greedy.max_vision_tokens
        changed = (*rates[: layer - 1], rate, *rates[layer:])
        flops = self.greedy.cost(changed)
        searched = changed[self.greedy.first_layer - 1 :]
        price = fmean(searched) if self.greedy.penalty_unit == "keep-rate" else flops / TERA
        return Candidate(rate, changed, self.greedy.penalty * price, (rate, layer / self.greedy.layers), flops)
