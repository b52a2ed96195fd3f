"""LLaVA-NeXT and LLaVA-OneVision: a picture as one small image and a mosaic of tiles with newline tokens (anyres).

What the mosaic's padding covers is cut away again, so that the number of vision tokens does not tell tiles or grids.
Pictures without text between them are one run of vision tokens, which a quota per image takes for one picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scheduler_search.reducers import Grid
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.llava import clip_shape, feature_layers, feature_width
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid
from scheduler_search.schedule.cost import ModelShape, VisionShape


class LlavaNext(Family):
    """``LlavaNextForConditionalGeneration``."""

    architecture = "LlavaNextForConditionalGeneration"
    model_type = "llava_next"
    merges = "images are tiles, joined and cut behind the tower"
    decoders = ("llama", "mistral", "qwen2")

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:  # noqa: ARG002
        """Refused: a mosaic of any size, cut to the picture, with newline tokens."""
        raise self.no_grid(f"{vision_tokens} tokens of tiles cut to the picture, with newline tokens")

    def shape(self, config: Any) -> ModelShape:
        """An approximation: tiles are counted by their mean share of the vision tokens of a square picture.

        Of a square picture in two by two tiles the FLOPs are within 1 %. Where padding is cut away, more tiles run than
        are counted: nearly twice as wide as high, two fifths of the tower's FLOPs are missing. So they are where
        LLaVA-OneVision scales a mosaic down to ``anyres_max_n`` tiles: of 37 tiles, ten are counted. No keep rate
        changes what is missing.
        """
        width = int(config.text_config.hidden_size)
        return ModelShape(
            decoder_shape(config.text_config),
            _tile_shape(config),
            (feature_width(config), width, width),
            int(config.text_config.vocab_size),
        )

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """Which tower layers are read, and what decides the number of vision tokens of a picture."""
        return {
            "vision_feature_layer": feature_layers(config),
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "image_grid_pinpoints": [plain_pinpoint(point) for point in config.image_grid_pinpoints],
        }


class LlavaOnevision(LlavaNext):
    """``LlavaOnevisionForConditionalGeneration``: also videos, whose frames are pooled."""

    architecture = "LlavaOnevisionForConditionalGeneration"
    model_type = "llava_onevision"

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """As LLaVA-NeXT, and how large a mosaic may get."""
        return {**super().own_fields(config), "vision_aspect_ratio": config.vision_aspect_ratio}


def plain_pinpoint(point: Any) -> list[int]:
    """Height and width of a possible resolution, as JSON."""
    height, width = point
    return [int(height), int(width)]


def _tile_shape(config: Any) -> VisionShape:
    """The tower over one tile, which is a fifth of the small image and two by two tiles with a newline in each row."""
    full = config.vision_feature_select_strategy == "full"
    tile, grid = clip_shape(config.vision_config, full), patch_grid(config.vision_config)
    picture = grid.tokens + 2 * grid.height * (2 * grid.width + 1)
    return replace(tile, tokens_per_image=round(picture / 5))
