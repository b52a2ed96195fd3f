"""Idefics3 and SmolVLM: a picture as tiles of one size and itself, whose patches are merged by pixel shuffle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler_search.reducers import Grid
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid, tower_shape
from scheduler_search.schedule.cost import ModelShape


class Idefics3(Family):
    """``Idefics3ForConditionalGeneration``."""

    architecture = "Idefics3ForConditionalGeneration"
    model_type = "idefics3"
    merges = "projector merges neighbouring patches"
    decoders = ("llama",)

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """One grid for each tile: how tiles lie in the picture is not known, nor needed to pool within them."""
        return self.equal_grids(_merged_grid(config), vision_tokens)

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """Refused: the processor names row and column of each tile in front of it."""
        raise self.no_images("runs that are tiles of a picture")

    def shape(self, config: Any) -> ModelShape:
        """The tower has neither class token nor head; the projector is one matrix over merged patches."""
        vision = config.vision_config
        projector = (int(vision.hidden_size) * int(config.scale_factor) ** 2, int(config.text_config.hidden_size))
        tower = tower_shape(vision, _merged_grid(config).tokens)
        return ModelShape(decoder_shape(config.text_config), tower, projector, int(config.text_config.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """How patches are merged."""
        return {"scale_factor": int(config.scale_factor)}


class SmolVLM(Idefics3):
    """``SmolVLMForConditionalGeneration``: the frames of a video are images."""

    architecture = "SmolVLMForConditionalGeneration"
    model_type = "smolvlm"


def _merged_grid(config: Any) -> Grid:
    grid, scale = patch_grid(config.vision_config), int(config.scale_factor)
    return Grid(grid.height // scale, grid.width // scale)
