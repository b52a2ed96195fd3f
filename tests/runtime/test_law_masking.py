"""Second law: dropping a token equals masking its column in the unmodified full-length model.

Tolerance 1e-5 in float32, against logits of standard deviation about 0.3: two orders above the rounding that is seen
(7e-7), three below what any single wrong token, position or mask column makes (fault injection: 1e-2 and more).
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scheduler_search.reducers.random import random_ranking
from scheduler_search.runtime import apply_reduction
from tests.runtime.reference_by_hand import HandLlava
from tests.runtime.reference_mask import masked_forward, masked_generate
from tests.runtime.tiny import BATCHES, DECODERS, RATES, SIDE, batch, build, generate, quick_first, reduction, single_of

TOLERANCE = 1e-5
SCHEDULES = {
    "from-layer-2": (1.0, 0.3),
    "to-none": (1.0, 1.0, 0.5, 0.0),
    "none-from-layer-2": (1.0, 0.0),
    "last-layer": (1.0, 1.0, 1.0, 1.0, 1.0, 0.1),
    "every-layer": (1.0, 0.9, 0.7, 0.5, 0.3, 0.1),
}


def assert_equal_to_reference(model: Any, eager: Any, inputs: dict[str, Any], applied: Any, **choice: Any) -> None:
    with apply_reduction(model, applied):
        logits = model(**inputs).logits[:, -4:]
        tokens, steps, _ = generate(model, inputs, 4)
    expected = masked_forward(eager, applied.keep_rates, inputs, 4, **choice)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    expected_tokens, expected_steps = masked_generate(eager, applied.keep_rates, inputs, 4, **choice)
    torch.testing.assert_close(steps, expected_steps, atol=TOLERANCE, rtol=0)
    assert torch.equal(tokens, expected_tokens)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
@pytest.mark.parametrize("decoder", quick_first(DECODERS))
def test_dropping_is_masking(model_of, decoder, attention, name):
    assert_equal_to_reference(model_of(decoder, attention), model_of(decoder, "eager"), batch(name), reduction())


@pytest.mark.parametrize("rates", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
@pytest.mark.parametrize("decoder", quick_first(["mistral", "llama"]))
def test_wherever_the_drops_are(model_of, decoder, attention, rates):
    model, eager = model_of(decoder, attention), model_of(decoder, "eager")
    assert_equal_to_reference(model, eager, batch("varying"), reduction(rates))


@pytest.mark.parametrize("heads", ["mean", "max", "sum"])
@pytest.mark.parametrize("rows", ["instruction", "last", "all"])
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_query_rows_and_heads(model_of, attention, rows, heads):
    applied = reduction(rule="attention-rank", query_rows=rows, head_reduction=heads)
    model, eager = model_of("llama", attention), model_of("llama", "eager")
    assert_equal_to_reference(model, eager, batch("mixed"), applied, rows=rows, heads=heads)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fastv_reads_the_last_row(model_of, attention):
    model, eager = model_of("llama", attention), model_of("llama", "eager")
    assert_equal_to_reference(model, eager, batch(), reduction(rule="fastv"), rows="last")


@pytest.mark.parametrize("rows", ["instruction", "all"])
def test_an_image_that_ends_the_prompt(model_of, rows):
    """No text after the image: the last token asks."""
    ids = torch.cat([torch.arange(3, 9), torch.full((36,), 90)])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": batch("single")["pixel_values"]}
    model, eager = model_of("llama", "sdpa"), model_of("llama", "eager")
    applied = reduction((1.0, 1.0, 0.5), query_rows=rows)
    with apply_reduction(model, applied):
        logits = model(**inputs).logits[:, :6]
    expected = masked_forward(eager, applied.keep_rates, inputs, 42, rows=rows)[:, :6]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def ranked_at_random(inputs: dict[str, torch.Tensor]) -> Any:
    def ranking(sample: int, left: list[int]) -> list[int]:
        real = inputs["attention_mask"][sample].bool()
        slots = (inputs["input_ids"][sample] == 90).nonzero()[:, 0].tolist()
        ids = inputs["input_ids"][sample][real].numpy()
        rank = dict(zip(slots, random_ranking(0, ids, len(slots)).tolist(), strict=True))
        return sorted(left, key=rank.__getitem__)

    return ranking


@pytest.mark.parametrize("name", ["padded", "mixed"])
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_random_in_the_decoder(model_of, attention, name):
    model, eager, inputs = model_of("llama", attention), model_of("llama", "eager"), batch(name)
    assert_equal_to_reference(model, eager, inputs, reduction(rule="random"), ranking=ranked_at_random(inputs))


@pytest.mark.parametrize("decoder", DECODERS)
def test_random_at_the_entry(model_of, decoder):
    model, eager, inputs = model_of(decoder, "sdpa"), model_of(decoder, "eager"), batch("varying")
    applied = reduction((0.6, 0.6, 0.3), rule="random", entry="random")
    assert_equal_to_reference(model, eager, inputs, applied, ranking=ranked_at_random(inputs))


def pooled_by_two(hidden: torch.Tensor, _sample: int, slots: list[int]) -> list[int]:
    """2 x 2 average pooling of each image by torch; the pooled token stands at the upper left of its four."""
    images = np.array(slots).reshape(-1, SIDE, SIDE)
    kept: list[int] = []
    for image in images:
        grid = hidden[torch.from_numpy(image)].permute(2, 0, 1)
        upper_left = image[::2, ::2].ravel().tolist()
        hidden[upper_left] = F.avg_pool2d(grid, 2).flatten(1).T
        kept += upper_left
    return kept


@pytest.mark.parametrize("name", ["padded", "varying", "mixed"])
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_pooling_at_the_entry_and_ranking_later(model_of, attention, name):
    model, eager, inputs = model_of("llama", attention), model_of("llama", "eager"), batch(name)
    applied = reduction((0.25, 0.25, 0.25, 0.1), entry="pooling")
    assert_equal_to_reference(model, eager, inputs, applied, entry=pooled_by_two)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_a_cache(model_of, attention):
    model, eager, inputs = model_of("mistral", attention), model_of("mistral", "eager"), batch("varying")
    with apply_reduction(model, reduction()):
        logits = model(**inputs, use_cache=False).logits[:, -4:]
    torch.testing.assert_close(logits, masked_forward(eager, RATES, inputs, 4), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("seed", quick_first(range(3)))
@pytest.mark.parametrize("rates", [RATES, (1.0, 0.3, 0.3, 0.0), (1.0, 1.0, 1.0, 0.5)])
def test_by_hand_in_float64(seed, rates):
    """A left-padded batch against each of its samples: twelve greedy steps, tokens, logits and cache lengths."""
    model, inputs, applied = build(seed=seed), batch(seed=seed), reduction(rates)
    with apply_reduction(model, applied):
        tokens, logits, _ = generate(model, inputs, 12)
    for row in range(3):
        alone = single_of(inputs, row)
        expected_tokens, expected, lengths = HandLlava(model).generate(
            alone["input_ids"][0], alone["pixel_values"], applied.keep_rates, 12
        )
        torch.testing.assert_close(logits[row].double(), expected, atol=TOLERANCE, rtol=0)
        assert tokens[row].tolist() == expected_tokens
        with apply_reduction(model, applied):
            cache = model(**alone).past_key_values
        assert [layer.keys.shape[-2] for layer in cache.layers] == lengths


def test_precomputed_vision_features(model_of):
    model, inputs = model_of("llama", "sdpa"), batch()
    features = model.model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with apply_reduction(model, reduction(entry="pooling", rates=(0.5, 0.5, 0.2))):
        expected = model(**inputs).logits
        assert torch.equal(model(**text, mm_encoder_outputs={"image": features}).logits, expected)
