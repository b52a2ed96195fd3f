"""Images made smaller in front of the tower: pixels against the processor, the rest against unmodified models."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Grid
from scheduler_search.rule import make_rule
from scheduler_search.runtime import apply_reduction, compute_smaller_features, model_shape, smaller_images
from scheduler_search.runtime.families.tower import ScalableTower
from scheduler_search.runtime.smaller_images import pack, scaled, unpack
from scheduler_search.schedule.cost import prefill_flops
from scheduler_search.schedule.counts import keep_count
from scheduler_search.schedule.values import Reduction, VisionReduction
from tests.runtime.families import BUILDERS
from tests.runtime.families.builder import Sample, Tensors
from tests.runtime.reference_mask import masked_forward, masked_generate
from tests.runtime.test_threads import answers, together
from tests.runtime.tiny import IMAGE, LAYERS, generate, quick_first

FAMILIES = quick_first(["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe", "exaone4.5"])
IMAGES = make_rule("downsample", {"level": "image"})
RULE = make_rule("attention-rank")
RATES = (0.25, 0.25, 0.25, 0.1, 0.1, 0.1)
TOWER = ScalableTower(torch.nn.Identity(), patch=4, merge=2)

every_family = pytest.mark.parametrize("name", FAMILIES)


@cache
def model_of(name: str, attention: str = "sdpa") -> Any:
    return BUILDERS[name].build(attention)


def samples_of(name: str, shape: str = "varying") -> list[Sample]:
    return BUILDERS[name].samples(shape)


def inputs_of(name: str, shape: str = "varying") -> Tensors:
    return BUILDERS[name].batch(samples_of(name, shape))


def reducing(*rates: float, rule: Any = IMAGES) -> Reduction:
    return Reduction((*rates, *[rates[-1]] * (LAYERS - len(rates))), RULE, rule)


# -- pixels


def processor() -> Any:
    size = {"shortest_edge": 8 * 8, "longest_edge": 512 * 512}
    return Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size)


def picture(height: int, width: int) -> Image.Image:
    """Waves that are long enough to be seen in a smaller picture."""
    row, column = np.mgrid[:height, :width]
    colours = [np.sin(row / 9 + shift) + np.cos(column / 7 - shift) for shift in range(3)]
    return Image.fromarray((np.stack(colours, -1) * 40 + 128).astype(np.uint8))


def pixels(image: Image.Image) -> torch.Tensor:
    """[3, height, width] as the processor normalises them."""
    values = torch.from_numpy(np.array(image)).double().permute(2, 0, 1) / 255
    mean, deviation = (
        torch.tensor(part).double()[:, None, None] for part in (processor().image_mean, processor().image_std)
    )
    return ((values - mean) / deviation).float()


def test_what_the_processor_packed_is_unpacked() -> None:
    packed = processor()(picture(48, 64), return_tensors="pt")
    assert packed["image_grid_thw"].tolist() == [[1, 12, 16]]
    image = unpack(packed["pixel_values"], Grid(6, 8), TOWER)
    frames = pixels(picture(48, 64))[:, None].expand(-1, 2, -1, -1).flatten(0, 1)
    torch.testing.assert_close(image, frames, atol=1e-5, rtol=0)
    assert torch.equal(pack(image, TOWER), packed["pixel_values"])


def test_a_scaled_image_is_what_the_processor_makes_of_a_smaller_one() -> None:
    """But for the rounding of colours to 256 steps, once in each direction."""
    packed = processor()(picture(48, 64), return_tensors="pt")
    found = scaled(packed["pixel_values"], Grid(6, 8), Grid(3, 4), TOWER)
    small = picture(48, 64).resize((32, 24), Image.Resampling.BICUBIC)
    expected = processor()(small, return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [[1, 6, 8]]
    step = 1 / 255 / min(processor().image_std)
    torch.testing.assert_close(found, expected["pixel_values"], atol=2 * step, rtol=0)


@every_family
def test_tokens_are_those_of_the_model_on_the_smaller_picture(name: str) -> None:
    """From picture to features, as processor and unmodified model make them of a picture half as high and wide."""
    model = model_of(name)
    whole = processor()(picture(48, 64), return_tensors="pt")
    small = processor()(picture(48, 64).resize((32, 24), Image.Resampling.BICUBIC), return_tensors="pt")
    expected = model.base_model.get_image_features(**small).pooler_output[0]
    asked = smaller_images(reducing(0.25))
    assert asked is not None
    compute = lambda: model.base_model.get_image_features(**whole)  # noqa: E731
    output, left = compute_smaller_features(model, compute, asked, [48])
    assert left is not None
    kept = torch.from_numpy(left.kept[0])
    assert kept.view(6, 8).nonzero().tolist() == [[row, column] for row in (0, 2, 4) for column in (0, 2, 4, 6)]
    found = output.pooler_output[0]
    assert torch.equal(found.isnan().all(1), ~kept)
    spread = expected.std()
    assert (found[kept] - expected).abs().mean() < 0.02 * spread
    assert not model.base_model.visual._forward_pre_hooks


# -- the whole pass


def by_hand(name: str, inputs: Tensors) -> tuple[Tensors, Any]:
    """The batch with features of images half as high and wide, from the unmodified model, and which slots are left.

    Features stand at the upper left of four tokens, whose other three are masked by the reference.
    """
    model, rows, patches = model_of(name, "eager").base_model, [], inputs["pixel_values"]
    grids = [Grid(height // 2, width // 2) for _, height, width in inputs["image_grid_thw"].tolist()]
    for own, grid in zip(patches.split([4 * grid.tokens for grid in grids]), grids, strict=True):
        rows.append(scaled(own, grid, Grid(grid.height // 2, grid.width // 2), TOWER))
    sizes = inputs["image_grid_thw"] // torch.tensor([1, 2, 2])
    output = model.get_image_features(torch.cat(rows), sizes, return_dict=True)
    kept = [torch.zeros(grid.height, grid.width, dtype=torch.bool) for grid in grids]
    for one in kept:
        one[::2, ::2] = True

    def spread(features: Any) -> list[torch.Tensor]:
        found = [one.new_zeros(grid.tokens, one.shape[1]) for one, grid in zip(features, grids, strict=True)]
        for whole, mask, one in zip(found, kept, features, strict=True):
            whole[mask.flatten()] = one
        return found

    output.pooler_output = spread(output.pooler_output)
    if output.get("deepstack_features") is not None:
        output.deepstack_features = [spread(features) for features in output.deepstack_features]
    flat = iter(torch.cat([mask.flatten() for mask in kept]).tolist())
    left = [[bool(token == IMAGE) and next(flat) for token in row] for row in inputs["input_ids"]]

    def entry(_hidden: torch.Tensor, sample: int, slots: list[int]) -> list[int]:
        return [slot for slot in slots if left[sample][slot]]

    arguments = {key: value for key, value in inputs.items() if key != "pixel_values"}
    return {**arguments, "mm_encoder_outputs": {"image": output}}, entry


@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
@every_family
def test_dropping_equals_masking_on_features_of_smaller_images(name: str, attention: str) -> None:
    inputs, eager = inputs_of(name), model_of(name, "eager")
    reference, entry = by_hand(name, inputs)
    expected = masked_forward(eager, RATES, reference, 3, entry=entry)
    model = model_of(name, attention)
    with apply_reduction(model, reducing(*RATES)) as handle:
        found = model(**inputs).logits[:, -3:]
        assert handle.report().layers[0].vision_tokens == (9, 10, 4)
        assert handle.report().layers[3].vision_tokens == tuple(keep_count(0.1, tokens) for tokens in (36, 40, 16))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every_family
def test_generation_is_that_of_the_masked_model(name: str) -> None:
    inputs, model = inputs_of(name), model_of(name)
    reference, entry = by_hand(name, inputs)
    text, logits = masked_generate(model_of(name, "eager"), RATES, reference, 3, entry=entry)
    with apply_reduction(model, reducing(*RATES)):
        found = generate(model, inputs, 3)
        beams = model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2, length_penalty=0.0)
        first = model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=2)
    assert torch.equal(found[0], text)
    torch.testing.assert_close(found[1], logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(first[:, -1], text[:, 0])
    assert beams.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("rate", quick_first([0.3, 0.0, 0.1, 0.5, 0.9]))
@pytest.mark.parametrize("interpolation", quick_first(["bilinear", "nearest"]))
def test_counts_are_exact_and_samples_are_the_same_alone(rate: float, interpolation: str) -> None:
    builder, samples = BUILDERS["qwen2.5-vl"], samples_of("qwen2.5-vl")
    model, inputs = model_of("qwen2.5-vl"), builder.batch(samples)
    rule = make_rule("downsample", {"level": "image", "interpolation": interpolation})
    with apply_reduction(model, reducing(rate, rule=rule)) as handle:
        together = model(**inputs).logits[:, -1]
        assert handle.report().layers[0].vision_tokens == tuple(keep_count(rate, tokens) for tokens in (36, 40, 16))
        for row, sample in enumerate(samples):
            alone = model(**builder.batch([sample])).logits[:, -1]
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"prompt_lookup_num_tokens": 2}])
def test_other_ways_to_generate_keep_the_same(settings: dict[str, Any]) -> None:
    model, inputs = model_of("qwen2-vl"), inputs_of("qwen2-vl", "single")
    with apply_reduction(model, reducing(*RATES)):
        expected = generate(model, inputs, 4)[0]
        found = model.generate(**inputs, max_new_tokens=4, do_sample=False, **settings)
    assert torch.equal(found[:, -4:], expected)


def test_threads_do_not_mix() -> None:
    model = model_of("qwen2-vl")
    batches = [inputs_of("qwen2-vl", shape) for shape in ("varying", "single", "padded")]
    with apply_reduction(model, reducing(*RATES)):
        jobs = [answers(model, one, model(**one).logits, "forward") for one in batches]
        assert together(*jobs) == []


def test_prompts_that_come_as_embeddings_are_refused() -> None:
    model, inputs = model_of("qwen2-vl"), inputs_of("qwen2-vl", "single")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with (
        apply_reduction(model, reducing(0.5)) as handle,
        handle.vision_mask(inputs["input_ids"] == IMAGE),
        pytest.raises(UnsupportedError, match="those of the smaller images"),
    ):
        model(inputs_embeds=embeddings)


@every_family
@pytest.mark.parametrize("rates", quick_first([(0.9999,), (1.0,), (1.0, 1.0, 0.9999)]))
def test_nothing_less_is_the_same_bits(name: str, rates: tuple[float, ...]) -> None:
    model, inputs = model_of(name), inputs_of(name)
    expected, text = model(**inputs).logits, generate(model, inputs, 2)[0]
    with apply_reduction(model, reducing(*rates)):
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(generate(model, inputs, 2)[0], text)


def test_removal_restores_the_model() -> None:
    model, inputs = model_of("qwen2-vl"), inputs_of("qwen2-vl")
    expected = model(**inputs).logits
    with apply_reduction(model, reducing(0.5)):
        assert model(**inputs).logits.shape != expected.shape
    assert torch.equal(model(**inputs).logits, expected)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_prompt_without_images_is_read_as_it_is() -> None:
    model = model_of("qwen2-vl")
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(input_ids=ids).logits
    with apply_reduction(model, reducing(0.5)):
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_an_image_of_a_later_turn_is_kept_whole() -> None:
    model, builder = model_of("qwen2-vl"), BUILDERS["qwen2-vl"]
    first, second = (builder.batch([sample]) for sample in samples_of("qwen2-vl", "padded")[:2])
    seen: list[int] = []
    hook = model.base_model.visual.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(len(args[0])))
    try:
        with apply_reduction(model, reducing(0.25)) as handle:
            cache = model(**first, use_cache=True).past_key_values
            left = handle.report().layers[0].vision_tokens
            mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
            length = second["input_ids"].shape[1]
            positions = torch.arange(mask.shape[1] - length, mask.shape[1]).expand(3, 1, -1)
            model(**{**second, "attention_mask": mask}, position_ids=positions, past_key_values=cache, use_cache=True)
    finally:
        hook.remove()
    assert left == (9,)
    assert seen == [36, 144]
    assert cache.layers[0].held == 9 + len(first["input_ids"][0]) - 36 + length


# -- features that were computed before


def features_of(model: Any, inputs: Tensors, *rates: float) -> tuple[Tensors, Any]:
    asked = smaller_images(reducing(*rates))
    assert asked is not None
    sizes = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
    compute = lambda: model.base_model.get_image_features(**sizes, return_dict=True)  # noqa: E731
    output, left = compute_smaller_features(model, compute, asked, (inputs["input_ids"] == IMAGE).sum(1).tolist())
    arguments = {key: value for key, value in inputs.items() if key != "pixel_values"}
    return {**arguments, "mm_encoder_outputs": {"image": output}}, left


def test_features_computed_before_give_the_same_bits() -> None:
    model, inputs = model_of("qwen3-vl"), inputs_of("qwen3-vl")
    stored, left = features_of(model, inputs, 0.3)
    with apply_reduction(model, reducing(0.3, 0.2)) as handle:
        expected = model(**inputs).logits
        with handle.tower_views(left):
            assert torch.equal(model(**stored).logits, expected)


def test_other_features_are_refused() -> None:
    model, inputs = model_of("qwen2-vl"), inputs_of("qwen2-vl")
    stored, left = features_of(model, inputs, 0.3)
    single = inputs_of("qwen2-vl", "single")
    other, _ = features_of(model, single, 0.3)
    with apply_reduction(model, reducing(0.3)) as handle:
        with pytest.raises(UnsupportedError, match="those of the smaller images"):
            model(**stored)
        with handle.tower_views(left), pytest.raises(UnsupportedError, match="all that stands in the prompts"):
            model(**other)
    with (
        apply_reduction(model, reducing(0.2)) as handle,
        handle.tower_views(left),
        pytest.raises(UnsupportedError, match="must be left"),
    ):
        model(**stored)


def test_features_are_not_computed_under_a_schedule() -> None:
    model, inputs = model_of("qwen2-vl"), inputs_of("qwen2-vl")
    with apply_reduction(model, reducing(0.3)), pytest.raises(UnsupportedError, match="under no schedule"):
        features_of(model, inputs, 0.3)


# -- refusals


@pytest.mark.parametrize("name", ["llava-llama", "glm4v", "internvl-qwen2"])
def test_families_without_it_are_refused_by_name(name: str) -> None:
    model = model_of(name)
    with pytest.raises(UnsupportedError, match="follows their size") as error:
        apply_reduction(model, reducing(0.5))
    assert type(model).__name__ in str(error.value)
    assert "'grid'" in str(error.value.remedy)


def test_videos_are_refused() -> None:
    inputs = inputs_of("qwen2-vl", "video")
    for only in (False, True):
        sample = BUILDERS["qwen2-vl"].sample(0, 3, 4, ("video",))
        asked = BUILDERS["qwen2-vl"].batch([sample]) if only else inputs
        model = model_of("qwen2-vl")
        with apply_reduction(model, reducing(0.5)), pytest.raises(UnsupportedError, match="video"):
            model(**asked)


def test_a_reduction_inside_the_tower_beside_it_is_refused() -> None:
    vision = VisionReduction((1.0, 0.5), make_rule("evit"))
    with pytest.raises(UnsupportedError, match="one by one"):
        apply_reduction(model_of("qwen2-vl"), Reduction((0.5,) * LAYERS, RULE, IMAGES, vision))


# -- costs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_costs_agree_with_the_counter_of_torch(name: str) -> None:
    """Where the grid of the smaller image has just the promised tokens."""
    model, inputs = model_of(name, "eager"), inputs_of(name, "single")
    text = inputs["input_ids"].shape[1] - 36
    reduction = reducing(*RATES)
    with apply_reduction(model, reduction), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    flops = prefill_flops(model_shape(model), RATES, 36, text, image_rate=reduction.image_rate)
    assert abs(flops / counter.get_total_flops() - 1) < BUILDERS[name].flops
