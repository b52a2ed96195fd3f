"""Mistral 3: a Pixtral tower that takes pictures of any size, a merger of neighbouring patches, and an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler_search.reducers import Grid
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.llava import feature_layers, feature_width
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid, tower_shape
from scheduler_search.schedule.cost import ModelShape


class Mistral3(Family):
    """``Mistral3ForConditionalGeneration``."""

    architecture = "Mistral3ForConditionalGeneration"
    model_type = "mistral3"
    merges = "images are packed into one sequence, and their patches merged"
    decoders: tuple[str, ...] = ("ministral3", "mistral")

    def served_attention(self, config: Any) -> frozenset[str]:
        """Not flash attention with Ministral 3.

        Its layers scale queries by ``position_ids``, which the kernels would take for packed sequences once they have
        gaps.
        """
        ministral = config.text_config.model_type == "ministral3"
        return self.attention - {"flash_attention_2"} if ministral else self.attention

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:  # noqa: ARG002
        """Refused: as many rows as the picture is high."""
        raise self.no_grid(f"{vision_tokens} tokens of pictures of any height and width")

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """Refused: the processor writes a break token behind each row."""
        raise self.no_images("runs that are rows of a picture")

    def shape(self, config: Any) -> ModelShape:
        """Exact for one picture per sample; of several, the attention of the tower is counted as if they were one.

        So does the tower's kernel: pictures of a batch run in one sequence, and a mask keeps them apart.
        """
        vision, merge = config.vision_config, int(config.spatial_merge_size)
        tower = tower_shape(vision, patch_grid(vision).tokens // merge**2, gated=True, native=True)
        features, width = feature_width(config), int(config.text_config.hidden_size)
        projector = (features * merge**2, features, width, width)
        return ModelShape(decoder_shape(config.text_config), tower, projector, int(config.text_config.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """Which tower layers are read, and how patches are merged."""
        return {
            "vision_feature_layer": feature_layers(config),
            "spatial_merge_size": int(config.spatial_merge_size),
        }
