"""What follows a reduced prefill on its cache: more turns, beams, crops, manual loops."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime import apply_reduction
from scheduler_search.runtime.cache import LogicalDynamicLayer
from scheduler_search.runtime.layout import Kept
from tests.runtime.reference_mask import MaskedReference
from tests.runtime.tiny import DECODERS, RATES, batch, generate, reduction

TURN = torch.arange(10, 15).expand(3, 5)


def two_turns(model: Any, inputs: dict[str, torch.Tensor], cache: Any) -> torch.Tensor:
    """Logits of a second turn of five new tokens at once, on the cache of the first."""
    first = model(**inputs, past_key_values=cache).logits[:, -1].argmax(-1)[:, None]
    new = torch.cat([first, TURN[: len(first)]], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
    logits: torch.Tensor = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits
    return logits


@pytest.mark.parametrize("name", ["padded", "varying"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_second_turn(model_of, decoder, attention, name):
    model, eager, inputs = model_of(decoder, attention), model_of(decoder, "eager"), batch(name)
    with apply_reduction(model, reduction()):
        logits = two_turns(model, inputs, DynamicCache(config=model.config))
    with MaskedReference(eager, RATES, inputs):
        expected = two_turns(eager, inputs, DynamicCache())
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_new_image_in_a_second_turn_is_kept_whole(model_of, attention):
    model, eager, inputs = model_of("llama", attention), model_of("llama", "eager"), batch("equal")
    new = torch.cat([torch.full((2, 36), 90), TURN[:2]], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
    later = {"input_ids": new, "attention_mask": mask, "pixel_values": inputs["pixel_values"].flip(0)}

    def talk(model: Any, cache: Any) -> torch.Tensor:
        model(**inputs, past_key_values=cache)
        logits: torch.Tensor = model(**later, past_key_values=cache).logits
        return logits

    with apply_reduction(model, reduction()):
        found = talk(model, DynamicCache(config=model.config))
    with MaskedReference(eager, RATES, inputs):
        expected = talk(eager, DynamicCache())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_manual_loop_without_positions(model_of, attention):
    """The logical length gives the right positions even where the first layer is short."""
    model, eager, inputs = model_of("llama", attention), model_of("llama", "eager"), batch("equal")
    applied = reduction((0.5, 0.5, 0.5, 0.2), rule="random", entry="random")

    def loop(model: Any, cache: Any) -> torch.Tensor:
        steps = [model(**inputs, past_key_values=cache).logits[:, -1]]
        for _ in range(4):
            steps.append(model(input_ids=steps[-1].argmax(-1)[:, None], past_key_values=cache).logits[:, -1])
        return torch.stack(steps, dim=1)

    from tests.runtime.test_law_masking import ranked_at_random

    with apply_reduction(model, applied):
        logits = loop(model, DynamicCache(config=model.config))
    with MaskedReference(eager, applied.keep_rates, inputs, ranking=ranked_at_random(inputs)):
        expected = loop(eager, DynamicCache())
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_beam_search(model_of):
    model, eager, inputs = model_of("llama", "sdpa"), model_of("llama", "eager"), batch()
    settings = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    with apply_reduction(model, reduction()):
        found = model.generate(**inputs, **settings)
    beams = {name: inputs[name].repeat_interleave(3, 0) for name in ("input_ids", "attention_mask")}
    with MaskedReference(eager, RATES, beams):
        expected = eager.generate(**inputs, **settings, past_key_values=DynamicCache())
    assert torch.equal(found, expected)


def test_prompt_lookup_crops(model_of):
    """Candidates that are refused are cropped off the cache; the tokens must be the greedy ones."""
    model = model_of("llama", "sdpa")
    inputs = {name: value[:1] for name, value in batch("equal").items()}
    with apply_reduction(model, reduction(rule="random")):
        expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        found = model.generate(**inputs, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(found, expected)


def test_a_cache_can_be_used_again_after_reset(model_of):
    model, inputs = model_of("mistral", "sdpa"), batch()
    cache = DynamicCache(config=model.config)
    with apply_reduction(model, reduction()):
        expected = two_turns(model, inputs, cache)
        cache.reset()
        assert torch.equal(two_turns(model, inputs, cache), expected)


def test_samples_of_a_cache_can_be_selected_and_repeated(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    cache = DynamicCache(config=model.config)
    order = torch.tensor([2, 0, 0])
    new = torch.tensor([[11], [12], [13]])
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
    with apply_reduction(model, reduction()):
        model(**inputs, past_key_values=cache)
        straight = generate_one(model, new[order], mask[order], cache, lambda cache: cache.reorder_cache(order))
        cache = DynamicCache(config=model.config)
        model(**inputs, past_key_values=cache)
        rows = order.tolist()
        parts = []
        for row in rows:
            single = DynamicCache(config=model.config)
            model(**inputs, past_key_values=single)
            chosen = torch.tensor([row])
            parts.append(generate_one(model, new[chosen], mask[chosen], single, _select(chosen)))
    torch.testing.assert_close(straight, torch.cat(parts), atol=1e-5, rtol=0)


def generate_one(model: Any, new: torch.Tensor, mask: torch.Tensor, cache: Any, change: Any) -> torch.Tensor:
    change(cache)
    logits: torch.Tensor = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits
    return logits


def _select(rows: torch.Tensor) -> Any:
    return lambda cache: cache.batch_select_indices(rows)


def test_a_batch_that_is_not_the_caches_is_refused(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    cache = DynamicCache(config=model.config)
    with apply_reduction(model, reduction((0.5,), rule="random", entry="random")):
        model(**inputs, past_key_values=cache)
        with pytest.raises(UnsupportedError, match="must be the one the cache was filled with"):
            model(input_ids=torch.full((1, 1), 7), past_key_values=cache)


def test_a_crop_into_the_prompt_is_refused(model_of):
    model, inputs = model_of("llama", "sdpa"), batch()
    cache = DynamicCache(config=model.config)
    with apply_reduction(model, reduction()):
        model(**inputs, past_key_values=cache)
    with pytest.raises(UnsupportedError, match="cropped into its reduced prompt"):
        cache.crop(-3)


def test_a_layer_reports_what_the_model_has_seen():
    layer = LogicalDynamicLayer()
    assert layer.get_seq_length() == 0
    layer.kept = Kept(torch.arange(4)[None], None, prompt=10)
    assert layer.get_seq_length() == 0
    layer.update(torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8))
    assert layer.get_seq_length() == 10
    assert layer.get_mask_sizes(3) == (13, 0)
    layer.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8))
    assert layer.get_seq_length() == 11
    layer.batch_repeat_interleave(2)
    assert layer.kept.position.shape == (2, 4)
    layer.reset()
    assert (layer.get_seq_length(), layer.kept) == (0, None)


@pytest.mark.parametrize(("decoder", "most"), [("llama", 99), ("mistral", 23)])
def test_each_layer_holds_only_its_tokens(model_of, decoder, most):
    """And no more than the window, less the token that is to come, where a window of 24 slides."""
    model = model_of(decoder, "sdpa")
    with apply_reduction(model, reduction()) as handle:
        _, _, cache = generate(model, batch("equal"), 3)
        report = handle.report()
    tokens = [46, 46, 35, 28, 28, 17]
    assert [layer.keys.shape[-2] for layer in cache.layers] == [min(count + 2, most) for count in tokens]
    assert {layer.get_seq_length() for layer in cache.layers} == {48}
    assert [layer.tokens for layer in report.layers] == tokens
    per_token = 2 * 2 * 2 * 16 * 4  # samples, keys and values, heads, width, bytes
    assert [layer.kv_bytes for layer in report.layers] == [min(count, most) * per_token for count in tokens]
