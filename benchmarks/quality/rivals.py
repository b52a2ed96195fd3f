"""What a searched schedule is compared with, at its FLOPs: the baselines of every export, and rivals that also search.

Knows: how random search and the search over steps choose, on the search split alone. Does not know: how differences
are pooled or shown.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy

from benchmarks.quality.bench import FIRST_LAYER, Bench, Found
from scheduler_search.rule import make_rule
from scheduler_search.schedule.budget import solve_rate
from scheduler_search.schedule.families import step
from scheduler_search.schedule.values import Reduction
from scheduler_search.search import baselines

Family = Callable[[float], tuple[float, ...]]

_STEPS = range(2, 10)


def rivals(bench: Bench, searched: Found, budget: float) -> dict[str, tuple[Reduction, float]]:
    """Reductions by name, each with its FLOPs on the test split over those of the searched schedule."""
    reduction, test = searched.reduction, bench.split("test")
    found = {
        baseline.name: baseline.reduction
        for baseline in baselines(reduction, bench.shape, test.vision_tokens, test.text_tokens, FIRST_LAYER, bench.seed)
    }
    found["its rates, fastv's ranking"] = replace(reduction, rule=make_rule("fastv"))
    found["random search"] = bench.best(random_schedules(bench, searched, budget))
    cost = bench.cost("test")
    return {name: (one, cost(one.keep_rates) / cost(reduction.keep_rates)) for name, one in found.items()}


def random_schedules(bench: Bench, searched: Found, budget: float) -> list[Reduction]:
    """As many random schedules as the search had trials, each with its FLOPs on the search split.

    A schedule drops in front of m random layers, m uniform, to sorted uniform levels, which are then scaled together
    until the FLOPs are right; levels above 1 are cut off. What is too dear at any scale is drawn again.
    """
    seed = f"{bench.seed} {budget}".encode()
    generator = numpy.random.default_rng(int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "little"))
    drawn: list[Reduction] = []
    while len(drawn) < searched.trials:
        levels = _random_levels(generator, bench.layers - FIRST_LAYER + 1)
        rates = _at_flops_of(bench, searched.reduction, partial(_scaled, levels))
        if rates is not None:
            drawn.append(replace(searched.reduction, keep_rates=rates))
    return drawn


def steps(bench: Bench, searched: Reduction) -> dict[int, Reduction]:
    """Every step (K, q) at the FLOPs of the searched schedule on the search split, by K, where there is one."""
    shapes = {last: _at_flops_of(bench, searched, partial(step, bench.layers, last)) for last in _STEPS}
    return {last: replace(searched, keep_rates=rates) for last, rates in shapes.items() if rates is not None}


def _at_flops_of(bench: Bench, searched: Reduction, family: Family) -> tuple[float, ...] | None:
    """The member of a family on [0, 1] that the FLOPs of the searched schedule pay for; None where all are dearer."""
    cost = bench.cost("search")
    target = cost(searched.keep_rates)
    if cost(family(0.0)) > target:
        return None
    return family(1.0) if cost(family(1.0)) <= target else family(solve_rate(lambda rate: cost(family(rate)), target))


def _random_levels(generator: numpy.random.Generator, layers: int) -> list[float]:
    """One level per layer, infinite before the first drop."""
    drops = numpy.sort(generator.permutation(layers)[: int(generator.integers(1, layers + 1))])
    levels = numpy.sort(generator.uniform(size=len(drops)))[::-1]
    places = numpy.searchsorted(drops, numpy.arange(layers), side="right")
    return [math.inf if place == 0 else float(levels[place - 1]) for place in places]


def _scaled(levels: Sequence[float], share: float) -> tuple[float, ...]:
    """The levels times share / (1 - share), at most 1, behind the layers that are never reduced."""
    scaled = (1.0 if math.isinf(level) else min(1.0, level * share / max(1.0 - share, 1e-9)) for level in levels)
    return (1.0,) * (FIRST_LAYER - 1) + tuple(scaled)
