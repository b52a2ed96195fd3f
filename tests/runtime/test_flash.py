"""flash_attention_2: a padding mask or none, causal by itself, windows in tokens that are left.

The kernels are emulated wherever they are not (``tests/runtime/flash.py``); ``kernel`` appears among the parameters on
a machine with a GPU and the package flash_attn. It was not there when this was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime import apply_reduction
from scheduler_search.runtime.families import family_of
from tests.runtime.families import BUILDERS
from tests.runtime.flash import KERNELS, NAME, Calls, emulated_kernels, use_flash
from tests.runtime.reference_mask import MaskedReference, masked_generate
from tests.runtime.test_cache import two_turns
from tests.runtime.tiny import BATCHES, RATES, batch, build, generate, reduction, single_of

# Families whose tiny models have a window shorter than their prompts in every layer, or in one that is reduced.
BINDING_WINDOWS = ("llava-mistral", "aya-vision", "cohere2-vision", "exaone4.5")
OTHER_RULES = ("fastv", "random-entry")
every_batch = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "varying" else pytest.mark.slow) for name in BATCHES]
)


@pytest.fixture
def calls() -> Iterator[Calls]:
    with emulated_kernels() as calls:
        yield calls


def flash(decoder: str = "llama", **text: Any) -> Any:
    model = build(decoder)
    for name, value in text.items():
        setattr(model.config.text_config, name, value)
    return use_flash(model)


def kept_of(cache: Any) -> list[Any]:
    return [None if layer.kept is None else layer.kept.position.tolist() for layer in cache.layers]


@every_batch
@pytest.mark.parametrize("decoder", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_keeping_all_is_bit_identical(calls, decoder, name):
    model, inputs = flash(decoder), batch(name)
    base = generate(model, inputs, 4)
    for rates in ((1.0,), (1.0, 1.0, 0.995)):
        with apply_reduction(model, reduction(rates)):
            found = generate(model, inputs, 4)
        assert torch.equal(found[0], base[0])
        assert torch.equal(found[1], base[1])
    assert calls.padded or calls.plain


@pytest.mark.parametrize("rule", ["attention-rank", *(pytest.param(r, marks=pytest.mark.slow) for r in OTHER_RULES)])
@every_batch
@pytest.mark.usefixtures("calls")
def test_dropping_is_masking(model_of, name, rule):
    """The reference is the eager model, which knows nothing of this kernel: masks, scaling and scores are the same."""
    applied = reduction(rule=rule) if rule != "random-entry" else reduction((0.6, 0.6, 0.3), "random", "random")
    choice: dict[str, Any] = {"rows": "last"} if rule == "fastv" else {}
    model, eager, inputs = flash(), model_of("llama", "eager"), batch(name)
    if rule == "random-entry":
        from tests.runtime.test_law_masking import ranked_at_random

        choice = {"ranking": ranked_at_random(inputs)}
    with apply_reduction(model, applied):
        tokens, steps, _ = generate(model, inputs)
    expected_tokens, expected = masked_generate(eager, applied.keep_rates, inputs, **choice)
    torch.testing.assert_close(steps, expected, atol=1e-5, rtol=0)
    assert torch.equal(tokens, expected_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["padded", "mixed"])
@pytest.mark.usefixtures("calls")
def test_a_batch_is_its_samples(name):
    model, inputs = flash(), batch(name)
    with apply_reduction(model, reduction()):
        tokens, logits, _ = generate(model, inputs, 3)
        for row in range(len(logits)):
            alone_tokens, alone, _ = generate(model, single_of(inputs, row), 3)
            torch.testing.assert_close(logits[row], alone[0], atol=1e-5, rtol=0)
            assert torch.equal(tokens[row], alone_tokens[0])


@pytest.mark.parametrize("name", [pytest.param("padded", marks=pytest.mark.slow), "varying"])
@pytest.mark.usefixtures("calls")
def test_a_second_turn(model_of, name):
    model, eager, inputs = flash(), model_of("llama", "eager"), batch(name)
    with apply_reduction(model, reduction()):
        logits = two_turns(model, inputs, DynamicCache(config=model.config))
    with MaskedReference(eager, RATES, inputs):
        expected = two_turns(eager, inputs, DynamicCache())
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_gathered_positions_are_no_packed_sequences(calls):
    """Positions with gaps look like packed sequences to transformers, which then asks the device in every layer."""
    model, inputs = flash(), batch("single")
    with apply_reduction(model, reduction()):
        generate(model, inputs, 3)
        two_turns(model, inputs, DynamicCache(config=model.config))
    assert calls.plain
    assert not calls.padded


def test_squeezed_out_padding_takes_the_faster_path(calls):
    """Equal counts and different text: from the first reduction on nothing is padding but what evens out the text."""
    model, inputs = flash(), batch("padded")
    text = inputs["attention_mask"].sum(1)
    assert len(set(text.tolist())) > 1
    inputs["attention_mask"][:, :] = 1
    inputs["input_ids"][inputs["input_ids"] == 0] = 5
    inputs["attention_mask"][:, :2] = 0  # two slots of padding in every row
    with apply_reduction(model, reduction()):
        generate(model, inputs, 2)
    length = inputs["input_ids"].shape[1]
    assert all(total == 3 * (length - 2) for total, _ in calls.padded[:2])
    assert len(calls.padded) == 2 * 2  # layers 1 and 2, which are whole, of the prefill and of one more step
    assert len(calls.plain) == 4 * 2


@pytest.mark.usefixtures("calls")
def test_a_sliding_window_that_does_not_bind():
    model, inputs, eager = flash("mistral", sliding_window=200), batch("varying"), build("mistral", "eager")
    eager.config.text_config.sliding_window = 200
    with apply_reduction(model, reduction()):
        _, steps, _ = generate(model, inputs)
    torch.testing.assert_close(steps, masked_generate(eager, RATES, inputs)[1], atol=1e-5, rtol=0)


@pytest.mark.usefixtures("calls")
def test_a_sliding_window_that_binds():
    """The kernel counts the tokens that are left, so that it would see too far: refused, in the prompt and later."""
    model, inputs = flash("mistral", sliding_window=80), batch("varying")  # the longest prompt has 82 tokens
    with apply_reduction(model, reduction()):
        with pytest.raises(UnsupportedError, match=r"sliding window of 80 tokens.*but got 82 tokens.*sdpa"):
            model(**inputs)
        model.config.text_config.sliding_window = 84
        generate(model, inputs, 3)  # the last step reads 84 tokens
        with pytest.raises(UnsupportedError, match="but got 85 tokens"):
            generate(model, inputs, 4)
    model.config.text_config.sliding_window = 24
    base = model(**inputs).logits
    with apply_reduction(model, reduction((1.0, 1.0, 0.995))):
        assert torch.equal(model(**inputs).logits, base)


@pytest.mark.usefixtures("calls")
def test_ranking_within_a_window_that_binds():
    """The layers in front of the first drop are whole: there the kernel's window is right, and scores must have it."""
    model, inputs, eager = flash("mistral"), batch("single"), build("mistral", "eager")
    rates = (1.0, 1.0, 1.0, 1.0, 1.0, 0.3)
    with apply_reduction(model, reduction(rates)), pytest.raises(UnsupportedError, match="sliding window"):
        model(**inputs)
    # The last layer's window is lifted, so that something can be dropped in front of it.
    last = model.get_decoder().layers[-1].self_attn
    last.config = type(last.config)(**{**last.config.to_dict(), "sliding_window": 200})
    last.config._attn_implementation_internal = NAME
    with apply_reduction(model, reduction(rates)):
        kept = kept_of(model(**inputs).past_key_values)[-1]
    with MaskedReference(eager, rates, inputs) as reference:
        eager(**inputs)
    assert kept == [(~reference.dead_at[-1][0]).nonzero()[:, 0].tolist()]


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_half_precision(kernel):
    """Against sdpa in the same dtype. On a GPU this is the real kernel."""
    if kernel == "kernel":
        _half_precision_against_sdpa("cuda")  # pragma: no cover
    else:
        with emulated_kernels():
            _half_precision_against_sdpa("cpu")


def _half_precision_against_sdpa(device: str) -> None:
    model, inputs = (
        build().to(device, torch.bfloat16),
        {name: part.to(device) for name, part in batch("varying").items()},
    )
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    applied = reduction((1.0, 1.0, 0.5), rule="random")
    with apply_reduction(model, applied):
        tokens, expected, _ = generate(model, inputs, 3)
    use_flash(model)
    with apply_reduction(model, applied):
        _, found, cache = generate(model, inputs, 3)
    assert found.dtype == expected.dtype
    assert (found[:, 0].float() - expected[:, 0].float()).abs().max() < 0.05 * expected.float().std()
    assert [layer.keys.shape[-2] for layer in cache.layers][-1] < tokens.shape[1] + inputs["input_ids"].shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_every_family(name):
    """Flash attention is refused, or it gives what the masks of sdpa give; a window that binds is refused on the way.

    That the model alone must give the same is why families with masks of their own refuse it.
    """
    builder = BUILDERS[name]
    model = builder.build(builder.attention[0])
    inputs = builder.batch(builder.samples("varying"))
    base = generate(model, inputs, 3)
    with apply_reduction(model, reduction()):
        reduced = generate(model, inputs, 3)
    use_flash(model)
    if NAME not in family_of(model).served_attention(model.config):
        with pytest.raises(UnsupportedError, match="attention implementation must be"):
            apply_reduction(model, reduction())
        return
    with emulated_kernels():
        torch.testing.assert_close(generate(model, inputs, 3)[1], base[1], atol=1e-5, rtol=0)
        with apply_reduction(model, reduction()):
            if name in BINDING_WINDOWS:
                with pytest.raises(UnsupportedError, match="sliding window"):
                    generate(model, inputs, 3)
            else:
                torch.testing.assert_close(generate(model, inputs, 3)[1], reduced[1], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["single", "varying"])
def test_windows_of_layers_that_are_whole(shape):
    """Before the first drop the kernel's window is right, and the cache lets go of what is out of it."""
    builder = BUILDERS["exaone4.5"]  # its last layer has no window
    model, inputs, applied = builder.build(), builder.batch(builder.samples(shape)), reduction((1.0,) * 5 + (0.3,))
    with apply_reduction(model, applied):
        expected = generate(model, inputs, 8)[1]
    use_flash(model)
    with emulated_kernels(), apply_reduction(model, applied):
        found = generate(model, inputs, 8)[1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
