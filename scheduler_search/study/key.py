"""The key of an evaluation: equal keys mean equal scores.

Knows: which parts of a reduction can change a score. Does not know: what else can (weights, data, metric, software);
the executor digests all of that into the split's ``context_digest``.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler_search.rule import Rule
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.schedule.counts import keep_counts
from scheduler_search.schedule.values import Reduction


def evaluation_key(context_digest: str, reduction: Reduction, vision_tokens: Sequence[int]) -> str:
    """Key of running one split with ``reduction``.

    Keep rates enter as keep *counts* per distinct N, so different rates with equal counts share one evaluation; those
    of the tower enter as they are, since it counts the patches of each image. Where no sample is reduced the rules are
    left out: the unreduced evaluation is the same for all rules.

    Args:
        context_digest: of the split, see ``SplitDescription``.
        vision_tokens: N of every sample of the split.
    """
    return digest_of(
        {"format": 1, "context": context_digest, "reduction": _reduction_document(reduction, vision_tokens)}
    )


def _reduction_document(reduction: Reduction, vision_tokens: Sequence[int]) -> dict[str, object] | None:
    decoder = [(n, keep_counts(reduction.keep_rates, n)) for n in sorted(set(vision_tokens))]
    tower = list(reduction.tower_rates)
    if all(count == n for n, counts in decoder for count in counts) and all(rate == 1.0 for rate in tower):
        return None
    return {
        "decoder": decoder,
        "rule": reduction.rule.to_document(),
        "entry_rule": _rule_document(reduction.entry_rule),
        "vision": tower,
        "vision_rule": _rule_document(reduction.vision.rule if reduction.vision else None),
    }


def _rule_document(rule: Rule | None) -> dict[str, object] | None:
    return None if rule is None else rule.to_document()
