"""Aya Vision and Command A Vision: SigLIP tiles, pixel shuffle, a gated projector, and a Cohere 2 decoder.

Three of four decoder layers have a sliding window; the others have no rotary embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler_search.reducers import Grid
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.llava import clip_shape, feature_layers
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid
from scheduler_search.schedule.cost import ModelShape


class Cohere2Vision(Family):
    """``Cohere2VisionForConditionalGeneration``."""

    architecture = "Cohere2VisionForConditionalGeneration"
    model_type = "cohere2_vision"
    merges = "projector merges patches two by two"
    decoders = ("cohere2",)

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:  # noqa: ARG002
        """Refused: an image is any number of tiles."""
        raise self.no_grid(f"{vision_tokens} tokens of tiles")

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """Refused: runs of vision tokens are tiles."""
        rule = "a quota per image needs images that are one run of vision tokens each"
        raise self.refuse(rule, actual="runs that are tiles", remedy="use a rule with quota 'pooled'")

    def shape(self, config: Any) -> ModelShape:
        """The projector's second layer reads the gated half of the first; the chain of widths counts it whole."""
        text, vision, factor = config.text_config, config.vision_config, int(config.downsample_factor)
        tokens = patch_grid(vision).tokens // factor**2
        tower = replace(clip_shape(vision, full=False), tokens_per_image=tokens)
        projector = (int(vision.hidden_size) * factor**2, self.projector_width(config), int(text.hidden_size))
        return ModelShape(decoder_shape(text), tower, projector, int(text.vocab_size))

    def projector_width(self, config: Any) -> int:
        """Width of the projector's first layer."""
        return int(config.alignment_intermediate_size)

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """How patches are merged, and the projector's width."""
        return {
            "downsample_factor": int(config.downsample_factor),
            "alignment_intermediate_size": self.projector_width(config),
        }


class AyaVision(Cohere2Vision):
    """``AyaVisionForConditionalGeneration``."""

    architecture = "AyaVisionForConditionalGeneration"
    model_type = "aya_vision"

    def projector_width(self, config: Any) -> int:
        """The decoder's width, if the configuration does not say."""
        return int(getattr(config, "alignment_intermediate_size", config.text_config.hidden_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """Also which tower layer is read."""
        return {**super().own_fields(config), "vision_feature_layer": feature_layers(config)}
