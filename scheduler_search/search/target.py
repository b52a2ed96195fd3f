"""Which schedule of a front answers a question: the best at a cost, or the cheapest with a bounded loss.

Knows: the three questions, and that the budget is solved exactly, not taken from the grid of the search. Does not know:
what is measured afterwards, or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler_search.errors import GateError, SearchError
from scheduler_search.schedule.budget import sigmoid_rates_for_flops
from scheduler_search.schedule.families import mean_keep_rate
from scheduler_search.search.front import Front, Prediction
from scheduler_search.search.frontier import CHEAPEST, STEEPNESSES, FrontierDomain, budget_grid
from scheduler_search.search.stage import Candidate

# Mean keep rates at which a front is shown: half octaves where many tokens are left, whole ones below.
SHOWN = (1.0, 2.0**-0.5, 0.5, 2.0**-1.5, 0.25, 0.125, 0.0625, CHEAPEST)

# Values of k among which the best is chosen at a given cost, and budgets and values of k at a given loss.
_FINE = 129
_BUDGETS, _STEEPNESSES = 121, 33

_TERA = 1e12

# 95 % quantile of the standard normal distribution: one side, since only losing more than allowed matters.
_QUANTILE = 1.6448536269514722


@dataclass(frozen=True)
class Target:
    """What is asked of a front: exactly one of the three.

    Args:
        tflops: mean prefill TFLOPs over the search split, not to be exceeded.
        keep_rate: mean keep rate over [first_layer, L].
        max_drop: loss against the unreduced model on new data, not to be exceeded.
    """

    tflops: float | None = None
    keep_rate: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        """Refuse none and several."""
        given = [value for value in (self.tflops, self.keep_rate, self.max_drop) if value is not None]
        if len(given) != 1:
            raise SearchError("a target is one of TFLOPs, keep rate and drop", actual=f"{len(given)} of them")

    @property
    def label(self) -> str:
        """Short name, fit for a file: ``tflops-0.35``, ``keep-0.25`` or ``drop-0.02``; different for every target."""
        names = (("tflops", self.tflops), ("keep", self.keep_rate), ("drop", self.max_drop))
        return next(f"{name}-{repr(value).removesuffix('.0')}" for name, value in names if value is not None)

    def to_document(self) -> dict[str, float]:
        """The one value by name, as in a provenance."""
        values = {"tflops": self.tflops, "keep_rate": self.keep_rate, "max_drop": self.max_drop}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Choice:
    """A schedule of the domain and what is expected of it; ``candidate.value`` is its mean keep rate."""

    candidate: Candidate
    k: float
    prediction: Prediction


def choose(domain: FrontierDomain, front: Front, target: Target, validation_samples: int) -> Choice:
    """The answer to ``target``; a function of what the front observed, without randomness.

    At a cost, the schedule with the largest predicted score (of equal ones the cheapest, then the least steep). At a
    loss, the cheapest schedule that is predicted to pass the export gate, with 95 % probability, on new samples.

    Args:
        validation_samples: on which a loss will be measured; only ``max_drop`` depends on it.

    Raises:
        SearchError: the cost is outside of what the front was searched for.
        GateError: no schedule of the domain is predicted to lose so little.
    """
    if target.max_drop is not None:
        return _cheapest(domain, front, target.max_drop, validation_samples)
    choices = _choices(domain, front, _at_cost(domain, target))
    top = max(choice.prediction.score for choice in choices)
    return next(choice for choice in choices if choice.prediction.score >= top - 1e-12)


def best_at(domain: FrontierDomain, front: Front, candidates: Iterable[Candidate]) -> Choice:
    """The candidate with the largest predicted score; the cheapest, then the least steep, of equal ones."""
    choices = _choices(domain, front, candidates)
    return max(choices, key=lambda choice: choice.prediction.score)


def _at_cost(domain: FrontierDomain, target: Target) -> list[Candidate]:
    if target.keep_rate is not None:
        if not CHEAPEST <= target.keep_rate <= 1.0:
            known = f"a frontier study knows mean keep rates from {CHEAPEST:g} to 1"
            raise SearchError(known, actual=f"{target.keep_rate:g}")
        return [domain.candidate(target.keep_rate, k) for k in domain.axis.grid(_FINE)]
    assert target.tflops is not None
    flops = target.tflops * _TERA
    # The FLOPs of a budget depend on k a little: at the cheap end only some k can be paid for.
    cheapest = {k: domain.cost(domain.rates(CHEAPEST, k)) for k in domain.axis.grid(_FINE)}
    dearest = domain.cost(domain.rates(1.0, 0.0))
    if not min(cheapest.values()) <= flops <= dearest * (1.0 + 1e-12):
        known = f"{min(cheapest.values()) / _TERA:.6g} to {dearest / _TERA:.6g} TFLOPs, what its schedules cost"
        raise SearchError(f"a frontier study knows {known}", actual=f"{target.tflops:g}")
    return [_affordable(domain, flops, k) for k, least in cheapest.items() if least <= flops]


def _affordable(domain: FrontierDomain, flops: float, k: float) -> Candidate:
    rates = sigmoid_rates_for_flops(
        domain.shape, k, flops, domain.vision_tokens, domain.text_tokens, domain.first_layer
    )
    return domain.candidate(mean_keep_rate(rates, domain.first_layer), k, rates)


def _cheapest(domain: FrontierDomain, front: Front, max_drop: float, validation_samples: int) -> Choice:
    grid = [domain.candidate(budget, k) for k in domain.axis.grid(_STEEPNESSES) for budget in budget_grid(_BUDGETS)]
    choices = _choices(domain, front, grid)
    limits = [choice.prediction.loss_limit(validation_samples, _QUANTILE) for choice in choices]
    for choice, limit in zip(choices, limits, strict=True):
        if limit <= max_drop:
            return choice
    raise GateError(
        f"some schedule of the front must be expected to pass a gate of {max_drop:g}, with 95 % probability",
        actual=f"{min(limits):.4f} at least",
        remedy="nothing was measured or written; allow more, or validate on more samples",
    )


def _choices(domain: FrontierDomain, front: Front, candidates: Iterable[Candidate]) -> list[Choice]:
    """With their predictions, in order of cost, then of k; of those with equal keep counts the first."""
    distinct: dict[bytes, Candidate] = {}
    for candidate in sorted(candidates, key=lambda one: (one.flops, one.features[1])):
        distinct.setdefault(domain.counts(candidate.keep_rates), candidate)
    chosen = list(distinct.values())
    predictions = front.predictions([candidate.features for candidate in chosen])
    return [
        Choice(candidate, domain.steepness(candidate), prediction)
        for candidate, prediction in zip(chosen, predictions, strict=True)
    ]


def summary(domain: FrontierDomain, front: Front, observed: Sequence[Candidate]) -> tuple[tuple[Choice, bool], ...]:
    """The best schedules of the search's grid at ``SHOWN`` budgets, and whether each is one of ``observed``."""
    seen = {domain.counts(candidate.keep_rates) for candidate in observed}
    grid = domain.axis.grid(STEEPNESSES)
    chosen = [best_at(domain, front, [domain.candidate(budget, k) for k in grid]) for budget in SHOWN]
    return tuple((choice, domain.counts(choice.candidate.keep_rates) in seen) for choice in chosen)
