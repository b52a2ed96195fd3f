"""A quota per image, in the model: against the masked reference, alone and in a batch, nested over layers."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime import apply_reduction
from tests.runtime.families import BUILDERS
from tests.runtime.reference_mask import MaskedReference, masked_generate
from tests.runtime.test_law_masking import ranked_at_random
from tests.runtime.tiny import IMAGE, TOKENS, VIDEO, batch, generate, reduction, single_of

RATES = (1.0, 0.9, 0.71, 0.53, 0.3, 0.13)
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "attention-rank": (reduction(RATES, quota="per-image"), {}),
    "fastv": (reduction(RATES, rule="fastv", quota="per-image"), {"rows": "last"}),
    "random": (reduction(RATES, rule="random", quota="per-image"), {}),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def images_of(inputs: dict[str, torch.Tensor]) -> list[list[list[int]]]:
    """Slots of the images of each sample; they have TOKENS each."""
    slots = [(row == IMAGE).nonzero()[:, 0].tolist() for row in inputs["input_ids"]]
    return [[row[start : start + TOKENS] for start in range(0, len(row), TOKENS)] for row in slots]


def three_images() -> dict[str, torch.Tensor]:
    """Three images in one sample, two of them without text between, beside a sample of one; left-padded."""
    generator = torch.Generator().manual_seed(5)
    image = [IMAGE] * TOKENS
    rows = [[7, 8, *image, *image, 9, *image, 10, 11, 12], [20, *image, 21, 22, 23, 24]]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    pixels = torch.randn(4, 3, 48, 48, generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


INPUTS = {"three": three_images(), "varying": batch("varying"), "mixed": batch("mixed")}


def kept_slots(cache: Any, sample: int, slots: int) -> list[set[int]]:
    marks = []
    for layer in cache.layers:
        if layer.kept is None:
            marks.append(set(range(slots)))
            continue
        row = layer.kept.position[sample]
        valid = row if layer.kept.valid is None else row[layer.kept.valid[sample]]
        marks.append(set(valid.tolist()))
    return marks


@every_rule
@pytest.mark.parametrize("name", ["three", pytest.param("mixed", marks=pytest.mark.slow)])
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_dropping_is_masking(model_of, attention, name, rule):
    applied, choice = RULES[rule]
    model, eager, inputs = model_of("llama", attention), model_of("llama", "eager"), INPUTS[name]
    choice = choice | {"images": images_of(inputs)}
    if rule == "random":
        choice["ranking"] = ranked_at_random(inputs)
    with apply_reduction(model, applied):
        tokens, steps, _ = generate(model, inputs)
    expected_tokens, expected = masked_generate(eager, applied.keep_rates, inputs, **choice)
    torch.testing.assert_close(steps, expected, atol=1e-5, rtol=0)
    assert torch.equal(tokens, expected_tokens)


@every_rule
def test_counts_are_promised_shared_and_nested(model_of, rule):
    model, inputs, images = model_of("llama", "sdpa"), INPUTS["three"], images_of(INPUTS["three"])
    with apply_reduction(model, RULES[rule][0]) as handle:
        cache = model(**inputs).past_key_values
        report = handle.report()
    assert len(images[0]) == 3
    for sample, its_images in enumerate(images):
        layers = kept_slots(cache, sample, inputs["input_ids"].shape[1])
        assert all(later <= earlier for earlier, later in pairwise(layers))
        for layer, held in enumerate(layers):
            counts = [len(held & set(image)) for image in its_images]
            assert sum(counts) == report.layers[layer].vision_tokens[sample]
            assert max(counts) - min(counts) <= 1
            assert counts == sorted(counts, reverse=True)


@every_rule
def test_pooled_is_something_else(model_of, rule):
    """Otherwise the other tests would say nothing."""
    model, inputs = model_of("llama", "sdpa"), INPUTS["three"]
    pooled = reduction(RATES, rule="random" if rule == "random" else rule)
    with apply_reduction(model, pooled):
        cache = model(**inputs).past_key_values
    held = kept_slots(cache, 0, inputs["input_ids"].shape[1])[-1]
    counts = [len(held & set(image)) for image in images_of(inputs)[0]]
    assert max(counts) - min(counts) > 1


def test_one_image_makes_no_difference(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("padded")
    results = []
    for quota in ("pooled", "per-image"):
        with apply_reduction(model, reduction(quota=quota)):
            results.append(model(**inputs).logits)
    assert torch.equal(*results)


@every_rule
@pytest.mark.parametrize("name", ["varying", pytest.param("mixed", marks=pytest.mark.slow)])
def test_a_batch_is_its_samples(model_of, name, rule):
    model, inputs = model_of("llama", "sdpa"), INPUTS[name]
    with apply_reduction(model, RULES[rule][0]):
        tokens, logits, _ = generate(model, inputs, 3)
        for row in range(len(logits)):
            alone_tokens, alone, _ = generate(model, single_of(inputs, row), 3)
            torch.testing.assert_close(logits[row], alone[0], atol=1e-5, rtol=0)
            assert torch.equal(tokens[row], alone_tokens[0])


def test_behind_an_entry_rule_that_pools_all(model_of):
    """An image may have less than its share left: the others fill up, and the count is exact."""
    model, inputs = model_of("llama", "sdpa"), INPUTS["three"]
    applied = reduction((0.2, 0.2, 0.19, 0.1), rule="attention-rank", entry="random", quota="per-image")
    with apply_reduction(model, applied) as handle:
        cache = model(**inputs).past_key_values
        counts = [layer.vision_tokens for layer in handle.report().layers]
    for layer, promised in enumerate(counts):
        for sample, images in enumerate(images_of(inputs)):
            held = kept_slots(cache, sample, inputs["input_ids"].shape[1])[layer]
            assert len(held & {slot for image in images for slot in image}) == promised[sample]


def test_rows_of_a_pixtral_tower_are_refused(model_of):
    model, inputs = model_of("llama", "sdpa"), batch("single")
    model.config.vision_config.model_type = "pixtral"
    try:
        refusal = pytest.raises(UnsupportedError, match="quota per image needs a tower")
        with apply_reduction(model, reduction(quota="per-image")), refusal:
            model(**inputs)
    finally:
        model.config.vision_config.model_type = "clip_vision_model"


def test_the_reference_can_tell_images_apart(model_of):
    """Two images taken for one, as the reference sees it, are noticed."""
    model, eager, inputs = model_of("llama", "sdpa"), model_of("llama", "eager"), INPUTS["three"]
    images = images_of(inputs)
    images[0] = [images[0][0] + images[0][1], images[0][2]]
    with apply_reduction(model, RULES["attention-rank"][0]):
        found = model(**inputs).logits[:, -4:]
    with MaskedReference(eager, RATES, inputs, images=images):
        expected = eager(**inputs).logits[:, -4:]
    assert (found - expected).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_video_is_one_image(name, attention):
    """Pictures and videos of one sample keep their shares, in proportion to their tokens."""
    builder = BUILDERS[name]
    model, eager, inputs = builder.build(attention), builder.build("eager"), builder.batch(builder.samples("video"))
    images = [
        [group.nonzero()[:, 0].tolist() for group in (row == IMAGE, row == VIDEO) if group.any()]
        for row in inputs["input_ids"]
    ]
    assert any(len(its) == 2 and len(its[0]) != len(its[1]) for its in images)
    applied = reduction(RATES, quota="per-image")
    with apply_reduction(model, applied):
        tokens, steps, _ = generate(model, inputs)
    expected_tokens, expected = masked_generate(eager, RATES, inputs, images=images)
    torch.testing.assert_close(steps, expected, atol=1e-5, rtol=0)
    assert torch.equal(tokens, expected_tokens)
