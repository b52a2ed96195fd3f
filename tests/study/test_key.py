"""The evaluation key: everything that can change a score changes it, nothing else does."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.rule import make_rule
from scheduler_search.schedule.counts import keep_counts
from scheduler_search.schedule.values import Reduction, VisionReduction
from scheduler_search.study.key import evaluation_key

N = (64, 64, 100)
BASE = Reduction((1.0, 0.5, 0.25), make_rule("attention-rank"))
ENTRY = Reduction((0.5, 0.5, 0.25), make_rule("attention-rank"), make_rule("pooling"))


def key(reduction: Reduction, context: str = "sha256:context", vision_tokens: tuple[int, ...] = N) -> str:
    return evaluation_key(context, reduction, vision_tokens)


@pytest.fixture
def tower(tower_rule: str) -> Reduction:
    """A reduction in the tower."""
    return Reduction((0.5, 0.5, 0.25), BASE.rule, None, VisionReduction((1.0, 0.5), make_rule(tower_rule)))


def test_the_key_is_a_digest() -> None:
    assert key(BASE).startswith("sha256:")
    assert len(key(BASE)) == 71
    assert key(BASE) == key(dataclasses.replace(BASE))


def test_the_context_counts() -> None:
    assert key(BASE, "sha256:other") != key(BASE)


@pytest.mark.parametrize("rates", [(1.0, 0.5, 0.125), (1.0, 1.0, 0.25), (1.0, 0.5), (1.0, 0.5, 0.25, 0.25)])
def test_keep_counts_count(rates: tuple[float, ...]) -> None:
    assert key(dataclasses.replace(BASE, keep_rates=rates)) != key(BASE)


@pytest.mark.parametrize("vision_tokens", [(64,), (64, 100, 101)])
def test_the_numbers_of_vision_tokens_count(vision_tokens: tuple[int, ...]) -> None:
    assert key(BASE, vision_tokens=vision_tokens) != key(BASE)


def test_the_rule_counts() -> None:
    assert key(dataclasses.replace(BASE, rule=make_rule("fastv"))) != key(BASE)


def test_a_parameter_of_the_rule_counts() -> None:
    assert key(dataclasses.replace(BASE, rule=make_rule("attention-rank", {"query_rows": "last"}))) != key(BASE)


def test_the_version_of_the_rule_counts() -> None:
    newer = Reduction(BASE.keep_rates, BASE.rule)
    # Version 2 is not declared, so it cannot be constructed; the key must tell it apart all the same.
    object.__setattr__(newer, "rule", dataclasses.replace(BASE.rule, version=2))
    assert key(newer) != key(BASE)


def test_the_entry_rule_counts() -> None:
    assert key(dataclasses.replace(ENTRY, entry_rule=make_rule("random"))) != key(ENTRY)


def test_the_tower_counts(tower: Reduction) -> None:
    assert tower.vision is not None
    rates = dataclasses.replace(tower.vision, keep_rates=(0.5, 0.5))
    rule = dataclasses.replace(tower.vision, rule=make_rule(tower.vision.rule.name, {"seed": 1}))
    keys = {key(tower), key(dataclasses.replace(tower, vision=rates)), key(dataclasses.replace(tower, vision=rule))}
    assert len(keys) == 3


def test_the_unreduced_evaluation_is_shared_by_all_rules() -> None:
    ones = (1.0, 1.0, 1.0)
    unreduced = [
        Reduction(ones, make_rule(name), entry) for name in ("fastv", "random") for entry in (None, ENTRY.entry_rule)
    ]
    assert len({key(reduction) for reduction in unreduced}) == 1
    assert key(unreduced[0]) == key(Reduction((1.0, 1.0, 0.999), BASE.rule))
    assert key(unreduced[0]) != key(BASE)
    assert key(unreduced[0], "sha256:other") != key(unreduced[0])


def test_one_reduced_sample_makes_it_reduced() -> None:
    nearly = Reduction((1.0, 1.0, 0.993), BASE.rule)
    assert keep_counts(nearly.keep_rates, 64)[-1] == 64
    assert keep_counts(nearly.keep_rates, 100)[-1] == 99
    assert key(nearly) != key(dataclasses.replace(nearly, rule=make_rule("fastv")))


RATES = st.lists(st.floats(0, 1), min_size=2, max_size=6).map(lambda rates: (1.0, *sorted(rates, reverse=True)))


@given(first=RATES, second=RATES, vision_tokens=st.lists(st.integers(0, 700), min_size=1, max_size=5))
def test_keys_are_equal_exactly_where_the_counts_are(
    first: tuple[float, ...], second: tuple[float, ...], vision_tokens: list[int]
) -> None:
    counts = [[keep_counts(rates, n) for n in vision_tokens] for rates in (first, second)]
    unreduced = [all(set(row) == {n} for row, n in zip(rows, vision_tokens, strict=True)) for rows in counts]
    keys = [key(Reduction(rates, BASE.rule), vision_tokens=tuple(vision_tokens)) for rates in (first, second)]
    assert (keys[0] == keys[1]) == (counts[0] == counts[1] or all(unreduced))


@given(rates=RATES, vision_tokens=st.integers(1, 700))
def test_rates_with_equal_counts_share_a_key(rates: tuple[float, ...], vision_tokens: int) -> None:
    snapped = tuple(count / vision_tokens for count in keep_counts(rates, vision_tokens))
    pair = [key(Reduction(each, BASE.rule), vision_tokens=(vision_tokens,)) for each in (rates, snapped)]
    assert pair[0] == pair[1]


@given(st.permutations(N))
def test_the_order_of_the_samples_is_the_contexts_affair(order: list[int]) -> None:
    assert key(BASE, vision_tokens=tuple(order)) == key(BASE)
