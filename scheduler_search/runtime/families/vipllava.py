"""VipLLaVA: LLaVA whose projector reads several layers of its CLIP tower at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler_search.reducers import Grid, image_runs
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.llava import clip_shape, feature_layers, feature_width
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid
from scheduler_search.schedule.cost import ModelShape


class VipLlava(Family):
    """``VipLlavaForConditionalGeneration``."""

    architecture = "VipLlavaForConditionalGeneration"
    model_type = "vipllava"
    merges = "projector reads several tower layers at once"
    decoders = ("llama", "mistral", "qwen2")

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """Equal grids; the first token of the tower, CLIP's class token, is always left out."""
        tower = config.vision_config.model_type
        if tower != "clip_vision_model":
            raise self.no_grid(f"tower {tower!r}, whose first patch is left out in place of a class token")
        return self.equal_grids(patch_grid(config.vision_config), vision_tokens)

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Runs of vision tokens, cut where images follow each other without text between them."""
        return image_runs(vision, patch_grid(config.vision_config).tokens)

    def shape(self, config: Any) -> ModelShape:
        """Every tower layer is counted: those behind the last one that is read run too."""
        width = int(config.text_config.hidden_size)
        return ModelShape(
            decoder_shape(config.text_config),
            clip_shape(config.vision_config, full=False),
            (feature_width(config), width, width),
            int(config.text_config.vocab_size),
        )

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """Which tower layers are read."""
        return {"vision_feature_layer": feature_layers(config)}
