"""Measures a searched reduction and its baselines on the validation split, which the search never saw.

Knows: which comparisons a published schedule owes its readers, and how they are paired. Does not know: how a score is
computed, or whether the result is good enough (``publish``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from scheduler_search.export.paired import mean_score, paired_difference
from scheduler_search.schedule.cost import kv_cache_ratio, mean_prefill_flops, vision_kv_cache_ratio
from scheduler_search.schedule.record import (
    Baseline,
    Difference,
    Estimate,
    Measured,
    PrefillMilliseconds,
    PrefillTeraflops,
)
from scheduler_search.schedule.values import Reduction
from scheduler_search.search.baselines import baselines
from scheduler_search.study.values import Executor, ModelDescription, SplitDescription, SplitName

Scores = Callable[[SplitName, Reduction], tuple[float, ...]]

_TERA = 1e12


@dataclass(frozen=True)
class Comparison:
    """A reduction against the unreduced model over one split.

    ``difference`` is reduced minus unreduced; FLOPs are means over the samples, milliseconds are those of one
    chunk, None where the executor has none.
    """

    samples: int
    reduced: Estimate
    unreduced: Estimate
    difference: Difference
    tflops: PrefillTeraflops
    kv_cache_ratio: float
    vision_kv_cache_ratio: float
    prefill_milliseconds: PrefillMilliseconds | None


def unreduced(reduction: Reduction) -> Reduction:
    """The reduction that reduces nothing, for a decoder of the same depth."""
    return reduction.unreduced


def compare(reduction: Reduction, split: SplitName, executor: Executor, scores: Scores) -> Comparison:
    """Score, cost and time of a reduction beside the unreduced model, on the same samples and in the same run."""
    description = executor.split(split)
    full = unreduced(reduction)
    reduced_scores, full_scores = scores(split, reduction), scores(split, full)
    milliseconds = executor.prefill_milliseconds(split, (reduction, full))
    return Comparison(
        samples=description.samples,
        reduced=_estimate(reduced_scores),
        unreduced=_estimate(full_scores),
        difference=difference(reduced_scores, full_scores),
        tflops=_teraflops(executor.model(), description, reduction, full),
        kv_cache_ratio=_mean_kv_cache_ratio(reduction, description),
        vision_kv_cache_ratio=fmean(vision_kv_cache_ratio(reduction.keep_rates, n) for n in description.vision_tokens),
        prefill_milliseconds=_times(executor.model(), milliseconds),
    )


def measure(
    searched: Reduction, *, metric: str, first_layer: int, seed: int, executor: Executor, scores: Scores
) -> Measured:
    """The measured block of a schedule document: the comparison and all baselines on the validation split.

    Args:
        metric: name of the metric behind the scores.
        first_layer: first layer that the study searched; the uniform baselines reduce from there on.
        seed: of the study, for the random baselines.
    """
    comparison = compare(searched, "validation", executor, scores)
    split, shape = executor.split("validation"), executor.model().shape
    searched_scores = scores("validation", searched)
    rows = []
    for baseline in baselines(searched, shape, split.vision_tokens, split.text_tokens, first_layer, seed):
        baseline_scores = scores("validation", baseline.reduction)
        gain = difference(searched_scores, baseline_scores)
        rows.append(
            Baseline(
                name=baseline.name,
                rule=_rule_name(baseline.reduction),
                score=mean_score(baseline_scores).value,
                difference=gain,
                flops_ratio=baseline.flops_ratio,
                beaten=gain.interval[0] > 0.0,
            )
        )
    return Measured(metric=metric, baselines=tuple(rows), **vars(comparison))


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Paired ``first - second`` as it is published."""
    paired = paired_difference(first, second)
    return Difference(mean=paired.mean, interval=(paired.low, paired.high))


def _estimate(scores: Sequence[float]) -> Estimate:
    mean = mean_score(scores)
    return Estimate(score=mean.value, standard_error=mean.standard_error)


def _times(model: ModelDescription, milliseconds: Sequence[float]) -> PrefillMilliseconds | None:
    if not milliseconds:
        return None
    reduced, full = milliseconds
    return PrefillMilliseconds(device=dict(model.environment)["device"], reduced=reduced, unreduced=full)


def _teraflops(
    model: ModelDescription, split: SplitDescription, reduction: Reduction, full: Reduction
) -> PrefillTeraflops:
    reduced_flops, full_flops = (
        mean_prefill_flops(
            model.shape, one.keep_rates, split.vision_tokens, split.text_tokens, one.tower_rates, one.image_rate
        )
        for one in (reduction, full)
    )
    return PrefillTeraflops(
        formula="schedule.cost.prefill_flops", reduced=reduced_flops / _TERA, unreduced=full_flops / _TERA
    )


def _mean_kv_cache_ratio(reduction: Reduction, split: SplitDescription) -> float:
    pairs = zip(split.vision_tokens, split.text_tokens, strict=True)
    return fmean(kv_cache_ratio(reduction.keep_rates, vision, text) for vision, text in pairs)


def _rule_name(reduction: Reduction) -> str:
    acting = reduction.entry_rule or reduction.rule
    return acting.name
