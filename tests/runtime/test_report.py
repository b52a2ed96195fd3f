"""What ``report`` says, against the tensors that the layers hold."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from scheduler_search.runtime import apply_reduction
from tests.runtime.flash import emulated_kernels, use_flash
from tests.runtime.tiny import batch, build, generate, quick_first, reduction

RULES = {
    "attention-rank": reduction(),
    "per-image": reduction(quota="per-image"),
    "entry": reduction((0.61, 0.61, 0.3, 0.1), entry="pooling"),
    "none": reduction((1.0, 0.5, 0.0)),
    "nothing": reduction((1.0,)),
}


def assert_true(report: Any, cache: Any, inputs: dict[str, torch.Tensor], rates: tuple[float, ...]) -> None:
    real = inputs["attention_mask"].sum(1)
    vision = (inputs["input_ids"] == 90).sum(1)
    for layer, (entry, held) in enumerate(zip(report.layers, cache.layers, strict=True)):
        assert entry.layer == layer + 1
        assert entry.tokens == held.keys.shape[-2] == held.values.shape[-2]
        assert entry.kv_bytes == held.keys.nbytes + held.values.nbytes
        assert held.keys.untyped_storage().nbytes() == held.keys.nbytes  # nothing of what was dropped is still there
        counts = torch.tensor([int(rates[layer] * int(size) + 0.5) for size in vision])
        assert entry.vision_tokens == tuple(counts.tolist())
        if (counts < vision).any():
            assert entry.tokens == int((real - vision + counts).max())
    assert report.kv_bytes == sum(entry.kv_bytes for entry in report.layers)
    assert report.vision_tokens == tuple(vision.tolist())


@pytest.mark.parametrize("applied", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", ["varying", "mixed"])
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager", "flash_attention_2"]))
def test_tokens_and_bytes(attention, name, applied):
    model, inputs = build(attention="sdpa" if "flash" in attention else attention), batch(name)
    if "flash" in attention:
        use_flash(model)
    with emulated_kernels(), apply_reduction(model, applied) as handle:
        cache = model(**inputs).past_key_values
        assert_true(handle.report(), cache, inputs, applied.keep_rates)


def test_a_cache_that_was_passed_in(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    cache = DynamicCache(config=model.config)
    with apply_reduction(model, reduction()) as handle:
        model(**inputs, past_key_values=cache)
        assert_true(handle.report(), cache, inputs, reduction().keep_rates)


def test_generated_tokens_and_later_turns_are_not_the_prefills(model_of):
    """The report stays that of the prefill: a step adds one token to every layer alike."""
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    with apply_reduction(model, reduction()) as handle:
        model(**inputs)
        expected = handle.report()
        _, _, cache = generate(model, inputs, 5)
        assert handle.report() == expected
    assert [layer.keys.shape[-2] for layer in cache.layers] == [entry.tokens + 4 for entry in expected.layers]


def test_without_a_cache_no_bytes(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    with apply_reduction(model, reduction()) as handle:
        expected = [entry.tokens for entry in (model(**inputs), handle.report())[1].layers]
        model(**inputs, use_cache=False)
        assert handle.report().kv_bytes == 0
        assert [entry.tokens for entry in handle.report().layers] == expected


def test_beams_share_nothing(model_of):
    """Three beams of three samples: nine rows of keys and values in every layer, each with its own tokens."""
    model, inputs = model_of("llama", "sdpa"), batch("varying")
    with apply_reduction(model, reduction()) as handle:
        output = model.generate(**inputs, max_new_tokens=2, num_beams=3, do_sample=False, return_dict_in_generate=True)
        report = handle.report()
    assert [len(entry.vision_tokens) for entry in report.layers] == [9] * 6
    assert [layer.keys.shape[0] for layer in output.past_key_values.layers] == [9] * 6
