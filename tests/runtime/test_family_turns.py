"""What follows a reduced prefill in families whose positions, masks or caches are unlike LLaVA's.

Rotary positions of several axes (a prompt of 46 tokens ends at a smaller position than 45), sliding windows of 24 and
chunks of 32 tokens, DeepStack. The reference is the unmodified model with columns masked, as everywhere.
"""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from scheduler_search.runtime import apply_reduction
from scheduler_search.runtime.cache import LogicalSlidingLayer
from tests.runtime.families import BUILDERS
from tests.runtime.reference_mask import MaskedReference, masked_generate
from tests.runtime.test_cache import two_turns
from tests.runtime.tiny import RATES, generate, reduction

THREE_AXES = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "glm4v-moe"]
WINDOWS = ["gemma3", "gemma4", "llama4", "cohere2-vision", "exaone4.5"]
TOLERANCE = 1e-5

every_family = pytest.mark.parametrize("name", [*THREE_AXES, *WINDOWS])
every_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def inputs_of(name: str, shape: str = "varying") -> dict[str, torch.Tensor]:
    builder = BUILDERS[name]
    return builder.batch(builder.samples(shape))


@pytest.mark.slow
@every_attention
@pytest.mark.parametrize("name", WINDOWS)
def test_a_second_turn(name, attention):
    """Five new tokens at once."""
    model, eager, inputs = BUILDERS[name].build(attention), BUILDERS[name].build("eager"), inputs_of(name)
    with apply_reduction(model, reduction()):
        logits = two_turns(model, inputs, DynamicCache(config=model.config))
    with MaskedReference(eager, RATES, inputs):
        expected = two_turns(eager, inputs, DynamicCache())
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@every_attention
@pytest.mark.parametrize("name", THREE_AXES)
def test_a_second_turn_goes_on_where_the_prompt_ended(name, attention):
    """Without a mask, with which these models take no second turn, hooked or not: positions follow from the cache."""
    model, eager, inputs = BUILDERS[name].build(attention), BUILDERS[name].build("eager"), inputs_of(name, "single")
    turn = torch.arange(10, 16)[None]

    def talk(model: Any, cache: Any) -> torch.Tensor:
        model(**inputs, past_key_values=cache)
        logits: torch.Tensor = model(input_ids=turn, past_key_values=cache).logits
        return logits

    with apply_reduction(model, reduction()):
        logits = talk(model, DynamicCache(config=model.config))
    with MaskedReference(eager, RATES, inputs):
        expected = talk(eager, DynamicCache())
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@every_family
def test_a_long_answer(name):
    """Forty tokens: windows slide past the prompt, and further tokens start a second and third chunk."""
    model, eager, inputs = BUILDERS[name].build("sdpa"), BUILDERS[name].build("eager"), inputs_of(name)
    with apply_reduction(model, reduction()):
        tokens, logits, cache = generate(model, inputs, 40)
    expected_tokens, expected = masked_generate(eager, RATES, inputs, 40)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(tokens, expected_tokens)
    for layer in cache.layers:
        if isinstance(layer, LogicalSlidingLayer):
            assert layer.keys.shape[-2] <= layer.sliding_window - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-vl", "gemma3"])
def test_three_beams(name):
    model, eager, inputs = BUILDERS[name].build("sdpa"), BUILDERS[name].build("eager"), inputs_of(name)
    settings: dict[str, Any] = {"max_new_tokens": 30, "num_beams": 3, "do_sample": False}
    with apply_reduction(model, reduction()):
        found = model.generate(**inputs, **settings)
    beams = {key: inputs[key].repeat_interleave(3, 0) for key in ("input_ids", "attention_mask")}
    with MaskedReference(eager, RATES, beams):
        expected = eager.generate(**inputs, **settings, past_key_values=DynamicCache())
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "llama4"])
def test_prompt_lookup_with_a_window(name):
    """Candidates that are taken back leave a sliding layer as it was before them."""
    model, builder = BUILDERS[name].build("sdpa"), BUILDERS[name]
    inputs = builder.batch(builder.samples("single"))
    with apply_reduction(model, reduction()):
        plain = model.generate(**inputs, max_new_tokens=30, do_sample=False)
        looked_up = model.generate(**inputs, max_new_tokens=30, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, looked_up)
