"""What a family says beside the hooks: identity, costs, grids, vision tokens."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime import apply_reduction, identify, model_shape, vision_tokens
from scheduler_search.runtime.families import family_of_config
from scheduler_search.schedule.cost import prefill_flops
from tests.runtime.families import BUILDERS, SHAPES
from tests.runtime.families.builder import VIDEO
from tests.runtime.reference_mask import masked_forward
from tests.runtime.test_law_masking import TOLERANCE, pooled_by_two
from tests.runtime.tiny import IMAGE, LAYERS, reduction

every_family = pytest.mark.parametrize("name", BUILDERS)
WITH_GRID = [name for name, builder in BUILDERS.items() if builder.grid]


@pytest.mark.slow
@every_family
def test_a_configuration_has_its_models_identity(name):
    model = BUILDERS[name].build(BUILDERS[name].attention[0])
    identity = identify(model)
    assert identity.architecture == type(model).__name__
    assert identity.decoder_layers == LAYERS == len(family_of_config(model.config).decoder(model).layers)
    assert identity.vision_layers >= 2
    saved = type(model.config).from_dict(model.config.to_diff_dict())
    for config in (model.config, saved):
        assert identify(config).config_digest == identity.config_digest


@every_family
def test_the_digest_covers_decoder_tower_and_own_fields(name):
    """It is over plain JSON, the family's own fields among it; another width of decoder or tower is another model."""
    config = BUILDERS[name].config()
    family = family_of_config(config)
    fields = family.shape_fields(config)
    assert _is_plain(fields)
    for field, value in family.own_fields(config).items():
        assert fields[field] == value
    for part in ("text_config", "vision_config"):
        other = BUILDERS[name].config()
        getattr(other, part).hidden_size *= 2
        assert identify(other).config_digest != identify(config).config_digest


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


@pytest.mark.slow
@every_family
def test_the_shape_agrees_with_the_counter_of_torch(name):
    builder = BUILDERS[name]
    model, samples = builder.build("eager"), builder.samples("single")
    inputs = builder.batch(samples)
    vision = sum(image.tokens for image in samples[0].images)
    with FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    text = inputs["input_ids"].shape[1] - vision
    flops = prefill_flops(model_shape(model), (1.0,) * LAYERS, vision, text)
    assert abs(flops / counter.get_total_flops() - 1) < builder.flops


@every_family
def test_vision_tokens_of_images_and_videos(name):
    builder = BUILDERS[name]
    config = builder.config()
    for shape in SHAPES:
        ids = builder.batch(builder.samples(shape))["input_ids"]
        assert torch.equal(vision_tokens(config, ids), ids == IMAGE)
    video = getattr(config, "video_token_id", None)
    assert video in (None, VIDEO)
    if video is not None:
        assert vision_tokens(config, torch.tensor([[5, VIDEO]])).tolist() == [[False, True]]


@every_family
def test_grids(name):
    builder = BUILDERS[name]
    config = builder.config()
    family = family_of_config(config)
    for sample in builder.samples("varying"):
        tokens = sum(image.tokens for image in sample.images)
        if builder.grid is None:
            with pytest.raises(UnsupportedError, match="grid") as error:
                family.grids(config, tokens)
            assert error.value.remedy
        else:
            found = [(grid.height, grid.width) for grid in family.grids(config, tokens)]
            assert found == [builder.grid] * len(sample.images)
    if builder.grid is not None:
        with pytest.raises(UnsupportedError, match="whole images"):
            family.grids(config, builder.grid[0] * builder.grid[1] + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_GRID)
def test_pooling_at_the_entry_and_ranking_later(name):
    builder = BUILDERS[name]
    model, eager = builder.build(builder.attention[0]), builder.build("eager")
    inputs = builder.batch(builder.samples("varying"))
    applied = reduction((0.25, 0.25, 0.25, 0.1), entry="pooling")
    with apply_reduction(model, applied):
        logits = model(**inputs).logits[:, -4:]
    expected = masked_forward(eager, applied.keep_rates, inputs, 4, entry=pooled_by_two)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["internvl-qwen2", "idefics3", "smolvlm"])
def test_merged_patches_are_row_by_row(name):
    """What ``grids`` means: patch (i, j) of 12 x 12 goes into token (i // 2, j // 2) of 6 x 6."""
    side = torch.arange(12) // 2
    marks = (side[:, None] * 6 + side[None, :]).float()[None, :, :, None].repeat(1, 1, 1, 8)
    model = BUILDERS[name].build().model
    if name.startswith("internvl"):
        merged = model.pixel_shuffle(marks, scale_factor=0.5)
    else:
        merged = model.connector.pixel_shuffle(marks.reshape(1, 144, 8), 2)
    assert torch.equal(merged.reshape(36, 32), torch.arange(36.0)[:, None].expand(36, 32))


def test_ministral_under_flash_attention_is_refused():
    """Its queries are scaled by positions, which flash kernels must not see."""
    model = BUILDERS["mistral3-ministral3"].build()
    model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedError, match="must be 'eager' or 'sdpa'"):
        apply_reduction(model, reduction())
