"""First law: a schedule that keeps everything leaves every bit of the output as it was."""

import pytest
import torch

from scheduler_search.runtime import apply_reduction
from tests.runtime.tiny import BATCHES, DECODERS, batch, generate, quick_first, reduction

# 0.995 of 36 or 72 tokens rounds to all of them: everything is hooked and planned, nothing is dropped.
KEEP_ALL = {"one": (1.0,), "rounds-to-all": (1.0, 1.0, 0.995)}


@pytest.mark.parametrize("rates", KEEP_ALL.values(), ids=KEEP_ALL)
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
@pytest.mark.parametrize("decoder", quick_first(DECODERS))
def test_keeping_all_is_bit_identical(model_of, decoder, attention, name, rates):
    model, inputs = model_of(decoder, attention), batch(name)
    logits = model(**inputs).logits
    tokens, steps, _ = generate(model, inputs, 4)
    with apply_reduction(model, reduction(rates)):
        assert torch.equal(model(**inputs).logits, logits)
        hooked_tokens, hooked_steps, _ = generate(model, inputs, 4)
    assert torch.equal(hooked_tokens, tokens)
    assert torch.equal(hooked_steps, steps)


def test_a_prompt_without_images_is_untouched(model_of):
    model = model_of("llama", "sdpa")
    inputs = {"input_ids": torch.arange(3, 20)[None], "attention_mask": torch.ones(1, 17, dtype=torch.long)}
    logits = model(**inputs).logits
    with apply_reduction(model, reduction()) as handle:
        assert torch.equal(model(**inputs).logits, logits)
        assert {layer.vision_tokens for layer in handle.report().layers} == {(0,)}
