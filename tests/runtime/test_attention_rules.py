"""Rules that rank by attention: dropping equals masking, and what each of them reads.

The reference reads the unmodified eager model: of a rule that reads the layer behind the drop, that layer is run whole.
"""

from fractions import Fraction
from functools import cache
from itertools import count
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime import PrefixRun, apply_prefix, apply_reduction
from tests.runtime.families import BUILDERS
from tests.runtime.flash import emulated_kernels, use_flash
from tests.runtime.reference_mask import MaskedReference, masked_forward, masked_generate
from tests.runtime.test_prefix import check_stages
from tests.runtime.tiny import IMAGE, LAYERS, RATES, SIDE, batch, build, generate, quick_first, reduction

TOLERANCE = 1e-5


def least_attended(score: torch.Tensor, _hidden: torch.Tensor, left: list[int]) -> list[int]:
    return sorted(left, key=lambda slot: (float(score[slot]), slot))


def balanced(score: torch.Tensor, hidden: torch.Tensor, left: list[int]) -> list[int]:
    """Equation 6 of seed 001 with alpha 0.2; prompts here end with their last token."""
    alike = F.cosine_similarity(hidden, hidden[-1:], dim=-1)

    def scaled(values: torch.Tensor) -> dict[int, float]:
        low, high = float(values[left].min()), float(values[left].max())
        return {slot: (float(values[slot]) - low) / (high - low) for slot in left}

    important, common = scaled(score), scaled(alike)
    return sorted(left, key=lambda slot: -(0.2 * important[slot] + 0.8 * (1 - common[slot])))


def by_windows(slots: list[list[int]]) -> Any:
    """Each window in turn gives its best, larger ones more often; ``slots`` of each window before any drop."""

    def order(score: torch.Tensor, _hidden: torch.Tensor, left: list[int]) -> list[int]:
        seats = []
        for window in slots:
            ranked = sorted((slot for slot in window if slot in left), key=lambda slot: -float(score[slot]))
            seats += [
                (Fraction(2 * seat + 1, 2 * len(window)), -float(score[slot]), slot) for seat, slot in enumerate(ranked)
            ]
        return [slot for _, _, slot in sorted(seats)]

    return order


def windows(ids: torch.Tensor, side: int, square: bool) -> list[list[int]]:
    found: dict[Any, list[int]] = {}
    for number, slot in zip(count(), (ids == IMAGE).nonzero()[:, 0].tolist(), strict=False):
        image, patch = divmod(number, SIDE * SIDE)
        key = (image, patch // SIDE // side, patch % SIDE // side) if square else number // side**2
        found.setdefault(key, []).append(slot)
    return list(found.values())


RULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pyramid-drop": ({}, {"rows": "last", "ahead": True}),
    "fastv-every": ({"rule": "fastv", "query_rows": "every"}, {"rows": "every"}),
    "fastv-vision": ({}, {"rows": "last-vision"}),
    "fastv-reverse": ({}, {"rows": "last", "order": least_attended}),
    "importance-redundancy": ({}, {"rows": "last", "order": balanced}),
    "vtw": ({}, {"ranking": lambda _sample, left: left}),
    "pyramid-drop-max": (
        {"rule": "pyramid-drop", "head_reduction": "max"},
        {"rows": "last", "ahead": True, "heads": "max"},
    ),
}


def of(name: str, rates: Any = RATES) -> Any:
    return reduction(rates, **{"rule": name, **RULES[name][0]})


def assert_equal_to_reference(model: Any, eager: Any, inputs: dict[str, Any], applied: Any, **choice: Any) -> None:
    with apply_reduction(model, applied):
        tokens, steps, _ = generate(model, inputs, 3)
    expected_tokens, expected = masked_generate(eager, applied.keep_rates, inputs, 3, **choice)
    torch.testing.assert_close(steps, expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(tokens, expected_tokens)


@pytest.mark.parametrize("name", quick_first(["varying", "mixed"]))
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", RULES)
def test_dropping_is_masking(model_of, rule, attention, name):
    model, eager = model_of("llama", attention), model_of("llama", "eager")
    assert_equal_to_reference(model, eager, batch(name), of(rule), **RULES[rule][1])


@pytest.mark.parametrize("shape", ["square", "run"])
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_windows(model_of, attention, shape):
    """Of 4 x 4 patches, which the grid of 6 x 6 cuts off; one sample at a time, since each has its own windows."""
    model, eager, applied = (
        model_of("llama", attention),
        model_of("llama", "eager"),
        reduction(rule="fastv-window", window=4, shape=shape),
    )
    inputs = batch("single")
    order = by_windows(windows(inputs["input_ids"][0], 4, square=shape == "square"))
    assert_equal_to_reference(model, eager, inputs, applied, rows="last", order=order)


@pytest.mark.parametrize("decoder", quick_first(["mistral", "qwen2"]))
@pytest.mark.parametrize("rates", [(1.0, 0.3), (1.0, 0.9, 0.7, 0.5, 0.3, 0.1)])
def test_the_layer_behind_wherever_the_drops_are(model_of, decoder, rates):
    """Windows of the decoder, and layers whose input was reduced before."""
    applied, inputs = reduction(rates, rule="pyramid-drop"), batch("varying")
    with apply_reduction(model_of(decoder, "sdpa"), applied):
        logits = model_of(decoder, "sdpa")(**inputs).logits[:, -4:]
    expected = masked_forward(model_of(decoder, "eager"), applied.keep_rates, inputs, 4, rows="last", ahead=True)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("rule", quick_first(["pyramid-drop", "fastv-every", "fastv-vision"]))
@pytest.mark.parametrize("name", quick_first(["varying", "single"]))
def test_flash_attention(model_of, rule, name):
    inputs = batch(name)
    with emulated_kernels():
        assert_equal_to_reference(use_flash(build()), model_of("llama", "eager"), inputs, of(rule), **RULES[rule][1])


@pytest.mark.parametrize("use_cache", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["prefill", "generate"])
@pytest.mark.parametrize("rule", quick_first(["pyramid-drop", "importance-redundancy", "fastv-window"]))
def test_resuming_changes_no_bit(model_of, rule, use_cache):
    parameters = dict(RULES.get(rule, ({}, {}))[0])
    check_stages(model_of("llama"), batch("padded"), parameters.pop("rule", rule), parameters, use_cache)


def test_a_prefix_needs_no_attention_of_the_layer_before(model_of):
    model, run = model_of("llama"), PrefixRun(of("pyramid-drop"), capture=3)
    with apply_prefix(model, run):
        model(**batch(), use_cache=False)
    assert run.captured is not None
    assert run.captured.seen is None


def test_only_projections_are_run_again(model_of):
    """In each layer with a reduction in front of it: no second output, no second MLP, nothing in the cache."""
    model, calls = model_of("llama"), {"q_proj": 0, "o_proj": 0, "mlp": 0}
    hooks = []
    for layer in model.get_decoder().layers:
        for name, part in (("q_proj", layer.self_attn.q_proj), ("o_proj", layer.self_attn.o_proj), ("mlp", layer.mlp)):
            hooks.append(part.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1})))
    with apply_reduction(model, of("pyramid-drop")):
        cache = model(**batch()).past_key_values
    for hook in hooks:
        hook.remove()
    assert calls == {"q_proj": LAYERS + 3, "o_proj": LAYERS, "mlp": LAYERS}
    assert [layer.keys.shape[-2] for layer in cache.layers] == [46, 46, 35, 28, 28, 17]


def test_a_look_ahead_that_nobody_sees_is_refused():
    """Somebody has put another attention function in the place of the tap."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, inputs = build(), batch("single")
    with apply_reduction(model, of("pyramid-drop")):
        tap = ALL_ATTENTION_FUNCTIONS["sdpa"]
        ALL_ATTENTION_FUNCTIONS["sdpa"] = tap.function
        try:
            with pytest.raises(UnsupportedError, match="must pass through the tap"):
                model(**inputs)
        finally:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = tap


@pytest.fixture(scope="module")
def family_model() -> Any:
    return cache(lambda name, attention: BUILDERS[name].build(attention))


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_families(family_model, name):
    """Whatever a layer does in front of its attention: it is the layer's own code that runs."""
    builder, inputs = BUILDERS[name], BUILDERS[name].batch(BUILDERS[name].samples("varying"))
    model, eager = family_model(name, builder.attention[0]), family_model(name, "eager")
    applied, choice = of("pyramid-drop"), RULES["pyramid-drop"][1]
    with apply_reduction(model, applied):
        logits = model(**inputs).logits[:, -2:]
    with MaskedReference(eager, applied.keep_rates, inputs, **choice):
        expected = eager(**inputs).logits[:, -2:]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
