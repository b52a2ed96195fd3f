"""DeepSeek-VL and Janus (its text side): a SigLIP-like tower of one image size, an MLP, and a Llama decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler_search.reducers import Grid, image_runs
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.llava import clip_shape
from scheduler_search.runtime.families.packed import plain_fields
from scheduler_search.runtime.families.parts import decoder_shape, pair, patch_grid
from scheduler_search.schedule.cost import ModelShape, VisionShape


class DeepseekVL(Family):
    """``DeepseekVLForConditionalGeneration``."""

    architecture = "DeepseekVLForConditionalGeneration"
    model_type = "deepseek_vl"
    decoders = ("llama",)

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """Equal square grids, image_size // patch_size on a side."""
        return self.equal_grids(patch_grid(config.vision_config), vision_tokens)

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Runs of vision tokens, cut where images follow each other without text between them."""
        return image_runs(vision, patch_grid(config.vision_config).tokens)

    def shape(self, config: Any) -> ModelShape:
        """Widths of tower, projector and decoder."""
        text, vision = config.text_config, config.vision_config
        width = int(text.hidden_size)
        projector = (int(vision.hidden_size), width, width)
        return ModelShape(decoder_shape(text), clip_shape(vision, full=False), projector, int(text.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:  # noqa: ARG002
        """None: an image has the tower's patches."""
        return {}


class Janus(DeepseekVL):
    """``JanusForConditionalGeneration``, as it reads images. The images that it can write are not served."""

    architecture = "JanusForConditionalGeneration"
    model_type = "janus"

    def shape(self, config: Any) -> ModelShape:
        """The projector has ``depth`` layers; the tower's MLP is ``mlp_ratio`` times as wide as the tower."""
        text, vision = config.text_config, config.vision_config
        projector = (int(vision.hidden_size), *[int(vision.projection_dim)] * int(vision.depth))
        return ModelShape(decoder_shape(text), _janus_tower(vision), projector, int(text.vocab_size))

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """The tower's part of ``shape_fields``."""
        widths = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "projection_dim", "depth")
        return plain_fields(vision, "model_type", *widths, "image_size", "patch_size")


def _janus_tower(vision: Any) -> VisionShape:
    height, width = pair(vision.patch_size)
    patches = patch_grid(vision).tokens
    return VisionShape(
        layers=int(vision.num_hidden_layers),
        hidden=int(vision.hidden_size),
        heads=int(vision.num_attention_heads),
        intermediate=int(vision.hidden_size * vision.mlp_ratio),
        patches=patches,
        patch_values=int(vision.num_channels) * height * width,
        tokens_per_image=patches,
        class_tokens=0,
    )
