"""The schedules that a searched one has to beat, each at the FLOPs of the searched one.

Knows: the shapes and rules of the baselines and how their FLOPs are matched. Does not know: scores, or which split
they are compared on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler_search.rule import Rule, make_rule
from scheduler_search.schedule.budget import solve_rate
from scheduler_search.schedule.cost import ModelShape, SplitCost
from scheduler_search.schedule.families import staircase, step, uniform, withdraw
from scheduler_search.schedule.values import Reduction

Family = Callable[[float], tuple[float, ...]]

# FastV drops after its second layer, as published.
_FASTV_LAYER = 2


@dataclass(frozen=True)
class Baseline:
    """A schedule to compare with.

    Args:
        name: as reports print it.
        flops_ratio: mean prefill FLOPs of the baseline / those of the searched reduction, over the samples given.
            Below 1 by at most one step of the rounding of keep counts; above 1 where the shape cannot be that cheap.
    """

    name: str
    reduction: Reduction
    flops_ratio: float


@dataclass(frozen=True)
class _Match:
    """The cost to match: ``target`` mean FLOPs as ``cost`` counts them."""

    cost: SplitCost
    target: float

    def rates(self, family: Family) -> tuple[float, ...]:
        """The dearest member of a family on [0, 1] that the target pays for, or its cheapest where that is dearer."""
        if self.cost(family(0.0)) >= self.target:
            return family(0.0)
        if self.cost(family(1.0)) <= self.target:
            return family(1.0)
        return family(solve_rate(lambda rate: self.cost(family(rate)), self.target))


def baselines(
    searched: Reduction,
    shape: ModelShape,
    vision_tokens: Sequence[int],
    text_tokens: Sequence[int],
    first_layer: int,
    seed: int,
) -> tuple[Baseline, ...]:
    """The baselines of a searched reduction; none where it keeps every token, since everything else is cheaper.

    ``uniform``: the study's rule, one rate from ``first_layer`` on. ``fastv``: attention of the last query row, one
    rate from layer 3 on. ``random`` and ``random-uniform``: random tokens with the searched and with uniform rates.
    ``pooling``: average pooling before the first layer. ``pyramid-drop``: the study's rule with rates q, q^2, q^3
    after L/4, L/2, 3L/4. ``withdraw``: every token up to a layer and none after, the next larger cost.

    None of them reduces in the tower or makes images smaller: what the searched reduction saves there, they save in
    the decoder; ``random`` by taking the same share of every searched rate. Where the study's rule does not act in the
    decoder, the rule that stands in its place there is that of ``uniform``, ``pyramid-drop`` and ``withdraw``.

    Args:
        vision_tokens: N of every sample that costs are averaged over.
        text_tokens: prompt tokens that are not vision tokens, of every sample.
        first_layer: of the study, 1-based.
        seed: of the random baselines.
    """
    if not any(searched.reduces(tokens) for tokens in set(vision_tokens)):
        return ()
    layers = len(searched.keep_rates)
    cost = SplitCost(shape, vision_tokens, text_tokens)
    match = _Match(cost, cost(searched.keep_rates, searched.tower_rates, searched.image_rate))
    random = make_rule("random", {"seed": seed})
    flat = match.rates(lambda rate: uniform(layers, rate, first_layer))
    fastv = match.rates(lambda rate: step(layers, min(_FASTV_LAYER, layers), rate))
    reductions = {
        "uniform": Reduction(flat, searched.rule),
        "fastv": Reduction(fastv, make_rule("fastv")),
        "random": _random(match, searched.keep_rates, random),
        "random-uniform": Reduction(flat, random),
        "pooling": _pooling(match, layers, searched.rule),
        "pyramid-drop": Reduction(match.rates(_pyramid(layers)), searched.rule),
        "withdraw": Reduction(_withdrawn(match, layers), searched.rule),
    }
    return tuple(
        Baseline(name, reduction, cost(reduction.keep_rates) / match.target) for name, reduction in reductions.items()
    )


def _random(match: _Match, searched: tuple[float, ...], rule: Rule) -> Reduction:
    """Random tokens with the searched rates, or with the share of them that pays for a whole tower."""
    rates = match.rates(lambda share: tuple(share * rate for rate in searched))
    return Reduction(rates, rule, entry_rule=rule if rates[0] < 1.0 else None)


def _pooling(match: _Match, layers: int, rule: Rule) -> Reduction:
    rates = match.rates(lambda rate: (rate,) * layers)
    return Reduction(rates, rule, entry_rule=make_rule("pooling"))


def _pyramid(layers: int) -> Family:
    """PyramidDrop's staircase: four equal blocks of layers that keep 1, q, q^2 and q^3."""
    boundaries = sorted({layers * quarter // 4 for quarter in (1, 2, 3)} - {0})
    return lambda rate: staircase(layers, boundaries, [rate**power for power in range(1, len(boundaries) + 1)])


def _withdrawn(match: _Match, layers: int) -> tuple[float, ...]:
    """The earliest withdrawal that costs at least the target; keeping every token always does."""
    candidates = (withdraw(layers, last) for last in range(1, layers + 1))
    return next(rates for rates in candidates if match.cost(rates) >= match.target)
