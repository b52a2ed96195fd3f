"""InternVL: a picture as tiles of one size, whose patches are merged by pixel shuffle before an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler_search.reducers import Grid
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.llava import feature_layers
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid, tower_shape
from scheduler_search.schedule.cost import ModelShape


class InternVL(Family):
    """``InternVLForConditionalGeneration``."""

    architecture = "InternVLForConditionalGeneration"
    model_type = "internvl"
    merges = "projector merges patches two by two"
    decoders = ("llama", "qwen2", "qwen3")

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """One grid for each tile: how tiles lie in the picture is not known, nor needed to pool within them."""
        return self.equal_grids(_merged_grid(config), vision_tokens)

    def shape(self, config: Any) -> ModelShape:
        """The tower has a class token, which is left out; the projector reads merged patches."""
        vision, width = config.vision_config, int(config.text_config.hidden_size)
        merged = int(vision.hidden_size) * _merge(config) ** 2
        tower = tower_shape(vision, _merged_grid(config).tokens, class_tokens=1)
        vocabulary = int(config.text_config.vocab_size)
        return ModelShape(decoder_shape(config.text_config), tower, (merged, width, width), vocabulary)

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """Which tower layer is read, and how patches are merged."""
        return {
            "vision_feature_layer": feature_layers(config),
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "downsample_ratio": float(config.downsample_ratio),
        }


def _merge(config: Any) -> int:
    """Patches that are merged, on a side."""
    return int(1 / config.downsample_ratio)


def _merged_grid(config: Any) -> Grid:
    grid = patch_grid(config.vision_config)
    return Grid(grid.height // _merge(config), grid.width // _merge(config))
