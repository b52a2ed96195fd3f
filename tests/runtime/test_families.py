"""The three laws for every served family x attention implementation x shape of the batch.

* Keep rate 1.0: forward and generate are bit-identical to the unhooked model.
* Dropping equals masking: logits, kept sets and four greedy tokens are those of the unmodified full-length eager model
  in which the columns of dropped tokens are masked (``reference_mask``).
* A batch gives what its samples give alone.

Tolerance 1e-5 in float32, as in ``test_law_masking``: two orders above the rounding that is seen, three below a fault.
A new family is a builder in ``tests/runtime/families``; nothing is added here.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from scheduler_search.runtime import apply_reduction
from scheduler_search.schedule.counts import keep_count
from tests.runtime.families import BUILDERS, SHAPES
from tests.runtime.reference_mask import MaskedReference, masked_generate
from tests.runtime.test_law_masking import ranked_at_random
from tests.runtime.tiny import LAYERS, RATES, generate, reduction

TOLERANCE = 1e-5
QUICK = ("llava-llama", "sdpa")  # all that `make test-fast` runs
KEEP_ALL = {"one": (1.0,), "rounds-to-all": (1.0, 1.0, 0.9999)}
CASES = [
    pytest.param(
        name,
        attention,
        shape,
        id=f"{name}-{attention}-{shape}",
        marks=() if (name, attention) == QUICK else pytest.mark.slow,
    )
    for name, builder in BUILDERS.items()
    for attention in builder.attention
    for shape in builder.shapes
]

every_case = pytest.mark.parametrize(("name", "attention", "shape"), CASES)


@pytest.fixture(scope="module")
def family_model() -> Callable[[str, str], Any]:
    return cache(lambda name, attention: BUILDERS[name].build(attention))


def inputs_of(name: str, shape: str) -> dict[str, torch.Tensor]:
    builder = BUILDERS[name]
    return builder.batch(builder.samples(shape))


def kept_sets(cache: Any, real: torch.Tensor) -> list[list[list[int]]]:
    """Prompt slots that each layer's cache holds, for each sample."""
    return [
        [row.nonzero()[:, 0].tolist() for row in (real if layer.kept is None else _marked(layer.kept, real.shape[1]))]
        for layer in cache.layers
    ]


def _marked(kept: Any, slots: int) -> torch.Tensor:
    marked = torch.zeros(len(kept.position), slots, dtype=torch.bool)
    valid = torch.ones_like(kept.position, dtype=torch.bool) if kept.valid is None else kept.valid
    return marked.scatter(1, kept.position, valid)


@every_case
def test_keeping_all_is_bit_identical(family_model, name, attention, shape):
    model, inputs = family_model(name, attention), inputs_of(name, shape)
    logits = model(**inputs).logits
    for rates in KEEP_ALL.values():
        with apply_reduction(model, reduction(rates)):
            assert torch.equal(model(**inputs).logits, logits)
    tokens, steps, _ = generate(model, inputs, 3)
    with apply_reduction(model, reduction(KEEP_ALL["rounds-to-all"])):
        hooked_tokens, hooked_steps, _ = generate(model, inputs, 3)
    assert torch.equal(hooked_tokens, tokens)
    assert torch.equal(hooked_steps, steps)


@every_case
def test_dropping_is_masking(family_model, name, attention, shape):
    model, eager, inputs = family_model(name, attention), family_model(name, "eager"), inputs_of(name, shape)
    real = inputs["attention_mask"].bool()
    with apply_reduction(model, reduction()):
        output = model(**inputs)
        tokens, steps, _ = generate(model, inputs, 4)
    with MaskedReference(eager, RATES, inputs) as reference:
        expected = eager(**inputs).logits[:, -4:]
    torch.testing.assert_close(output.logits[:, -4:], expected, atol=TOLERANCE, rtol=0)
    alive = [
        [(row & ~dead).nonzero()[:, 0].tolist() for row, dead in zip(real, layer, strict=True)]
        for layer in reference.dead_at
    ]
    assert kept_sets(output.past_key_values, real) == alive
    expected_tokens, expected_steps = masked_generate(eager, RATES, inputs, 4)
    torch.testing.assert_close(steps, expected_steps, atol=TOLERANCE, rtol=0)
    assert torch.equal(tokens, expected_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_from_the_first_layer_to_none(family_model, name):
    """Random tokens go in front of the first layer, ranked ones in front of most others, the last in front of the last.

    What families do in their first layers (DeepStack, sliding windows) meets a prompt that is short from the start.
    """
    model = family_model(name, BUILDERS[name].attention[0])
    eager, inputs = family_model(name, "eager"), inputs_of(name, "varying")
    applied = reduction((0.8, 0.6, 0.6, 0.5, 0.3, 0.0), entry="random")
    with apply_reduction(model, applied):
        tokens, steps, _ = generate(model, inputs, 4)
    ranking = ranked_at_random(inputs)

    def entry(_hidden: torch.Tensor, sample: int, left: list[int]) -> list[int]:
        return ranking(sample, left)[: keep_count(applied.keep_rates[0], len(left))]

    expected_tokens, expected_steps = masked_generate(eager, applied.keep_rates, inputs, 4, entry=entry)
    torch.testing.assert_close(steps, expected_steps, atol=TOLERANCE, rtol=0)
    assert torch.equal(tokens, expected_tokens)


@every_case
def test_a_batch_is_its_samples(family_model, name, attention, shape):
    model, builder = family_model(name, attention), BUILDERS[name]
    samples = builder.samples(shape)
    samples = samples if len(samples) > 1 else samples * 2
    with apply_reduction(model, reduction()) as handle:
        tokens, steps, _ = generate(model, builder.batch(samples), 2)
        counts = [layer.vision_tokens for layer in handle.report().layers]
        for row, sample in enumerate(samples):
            alone_tokens, alone, _ = generate(model, builder.batch([sample]), 2)
            torch.testing.assert_close(steps[row], alone[0], atol=TOLERANCE, rtol=0)
            assert torch.equal(tokens[row], alone_tokens[0])
            assert [layer.vision_tokens for layer in handle.report().layers] == [(count[row],) for count in counts]


@pytest.mark.parametrize("name", BUILDERS)
def test_the_builders_serve_their_purpose(name):
    """N differs in "varying" and nowhere else, the padded batch is padded, and logits are not nearly constant."""
    builder = BUILDERS[name]
    sizes = {shape: [sum(i.tokens for i in s.images) for s in builder.samples(shape)] for shape in SHAPES}
    assert len(set(sizes["varying"])) > 1
    assert len(set(sizes["padded"])) == 1
    assert (builder.batch(builder.samples("padded"))["attention_mask"] == 0).any()
    assert all(round(0.9999 * n) == n and n < 5000 for counts in sizes.values() for n in counts)
    assert len(RATES) == LAYERS
