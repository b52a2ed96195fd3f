from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.errors import ScheduleError
from scheduler_search.schedule.cost import (
    DecoderShape,
    ModelShape,
    VisionShape,
    kv_cache_bytes,
    kv_cache_ratio,
    mean_prefill_flops,
    prefill_flops,
    textbook_flops,
    vision_kv_cache_ratio,
)
from scheduler_search.schedule.families import step, uniform, withdraw

LAYERS = 6
DECODER = DecoderShape(LAYERS, hidden=64, heads=4, key_value_heads=2, head_dimension=16, intermediate=160)
VISION = VisionShape(2, 32, 4, 64, patches=36, patch_values=48, tokens_per_image=36)
SHAPE = ModelShape(DECODER, VISION, (32, 64, 64), vocabulary=500)

prompts = st.lists(st.tuples(st.sampled_from([0, 36, 72, 51]), st.integers(1, 9)), min_size=1, max_size=12)


@given(prompts, st.floats(0.0, 1.0))
def test_mean_over_a_split_is_the_mean_of_its_samples(pairs: list[tuple[int, int]], rate: float) -> None:
    rates = uniform(LAYERS, rate)
    vision, text = zip(*pairs, strict=True)
    expected = math.fsum(prefill_flops(SHAPE, rates, n, t) for n, t in pairs) / len(pairs)
    assert mean_prefill_flops(SHAPE, rates, vision, text) == pytest.approx(expected, rel=1e-12)


@given(prompts, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_what_a_reduction_inside_the_tower_saves_counts_too(
    pairs: list[tuple[int, int]], first: float, second: float
) -> None:
    tower, rates = (1.0, max(first, second)), uniform(LAYERS, min(first, second), first=1)
    vision, text = zip(*pairs, strict=True)
    expected = math.fsum(prefill_flops(SHAPE, rates, n, t, tower_keep_rates=tower) for n, t in pairs) / len(pairs)
    found = mean_prefill_flops(SHAPE, rates, vision, text, tower)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found <= mean_prefill_flops(SHAPE, rates, vision, text)


def test_smaller_images_cost_in_front_of_the_decoder_what_their_tokens_cost() -> None:
    """Half of 9 tokens are 5: tower and projector see those alone, the decoder what its own rates say."""
    rates = (0.5, 0.25, *(0.25,) * (LAYERS - 2))
    saved = SHAPE.vision_flops(9) - SHAPE.vision_flops(5)
    whole = prefill_flops(SHAPE, rates, 9, 4)
    assert prefill_flops(SHAPE, rates, 9, 4, image_rate=0.5) == whole - saved
    assert mean_prefill_flops(SHAPE, rates, [9, 9], [4, 4], image_rate=0.5) == pytest.approx(whole - saved)
    assert mean_prefill_flops(SHAPE, rates, [9, 0], [4, 4], image_rate=1.0) == mean_prefill_flops(
        SHAPE, rates, [9, 0], [4, 4]
    )


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 200))
def test_more_tokens_never_cost_less(one: float, other: float, vision_tokens: int) -> None:
    low, high = sorted((one, other))
    cheap, dear = (uniform(LAYERS, rate) for rate in (low, high))
    assert prefill_flops(SHAPE, cheap, vision_tokens, 5) <= prefill_flops(SHAPE, dear, vision_tokens, 5)
    assert kv_cache_bytes(SHAPE, cheap, vision_tokens, 5) <= kv_cache_bytes(SHAPE, dear, vision_tokens, 5)
    assert kv_cache_ratio(cheap, vision_tokens, 5) <= kv_cache_ratio(dear, vision_tokens, 5) <= 1.0


def test_withdrawn_layers_cost_what_text_costs() -> None:
    text_only = prefill_flops(SHAPE, (1.0,) * LAYERS, 0, 7)
    withdrawn = prefill_flops(SHAPE, withdraw(LAYERS, 0), 36, 7)
    assert withdrawn - text_only == SHAPE.vision_flops(36) > 0


def test_counts_follow_the_one_rounding_rule() -> None:
    """0.125 x 36 = 4.5 becomes 5 tokens."""
    tokens = [36 + 7] * 2 + [5 + 7] * 4
    layers = DECODER.linear_flops * sum(tokens) + DECODER.attention_flops * sum(n * n for n in tokens)
    expected = layers + SHAPE.vision_flops(36) + SHAPE.logit_flops(1)
    assert prefill_flops(SHAPE, step(LAYERS, 2, 0.125), 36, 7) == expected


def test_lm_head_over_all_positions_counts_those_that_are_left() -> None:
    rates = step(LAYERS, 2, 0.5)
    difference = prefill_flops(SHAPE, rates, 36, 7, logits="all") - prefill_flops(SHAPE, rates, 36, 7)
    assert difference == SHAPE.logit_flops(18 + 7 - 1)


def test_kv_cache() -> None:
    rates = step(LAYERS, 2, 0.5)
    tokens = 2 * 36 + 4 * 18 + LAYERS * 7
    assert kv_cache_bytes(SHAPE, rates, 36, 7) == tokens * 2 * 2 * 16 * 2
    assert kv_cache_bytes(SHAPE, rates, 36, 7, bytes_per_value=4) == tokens * 2 * 2 * 16 * 4
    assert kv_cache_ratio(rates, 36, 7) == tokens / (LAYERS * 43)
    assert vision_kv_cache_ratio(rates, 36) == (2 * 36 + 4 * 18) / (LAYERS * 36)
    assert kv_cache_ratio(rates, 0, 0) == 1.0


def test_textbook_formula_is_equation_4() -> None:
    n, d, m = 36 + 7, 64, 160
    assert textbook_flops(DECODER, (1.0,) * LAYERS, 36, 7) == LAYERS * (4 * n * d * d + 2 * n * n * d + 2 * n * d * m)


def test_reduced_tower_costs_less_and_leaves_fewer_tokens_to_the_projector() -> None:
    full = SHAPE.vision_flops(36)
    assert SHAPE.vision_flops(36, (1.0, 1.0)) == full
    saved = full - SHAPE.vision_flops(36, (1.0, 0.5))
    one_layer = VISION.linear_flops * 18 + 4 * 32 * (37**2 - 19**2)
    assert saved == one_layer + 18 * 2 * (32 * 64 + 64 * 64)


@pytest.mark.parametrize(
    ("rates", "vision", "text", "message"),
    [
        ((1.0,) * 5, 36, 7, "for all 6 decoder layers, but got 5 rates"),
        ((1.0,) * 6, -1, 7, "vision tokens must be at least 0, but got -1"),
        ((1.0,) * 6, 36, -7, "text tokens must be at least 0, but got -7"),
    ],
)
def test_impossible_prompts_are_refused(rates: tuple[float, ...], vision: int, text: int, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        prefill_flops(SHAPE, rates, vision, text)


def test_an_empty_or_uneven_split_is_refused() -> None:
    with pytest.raises(ScheduleError, match="a split needs samples"):
        mean_prefill_flops(SHAPE, (1.0,) * 6, [], [])
    with pytest.raises(ScheduleError, match="2 and 1"):
        mean_prefill_flops(SHAPE, (1.0,) * 6, [36, 36], [5])
    with pytest.raises(ScheduleError, match="but got 5 rates"):
        mean_prefill_flops(SHAPE, (1.0,) * 5, [36], [5])
