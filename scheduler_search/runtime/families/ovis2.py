"""Ovis 2: a tower that gives each patch a distribution over visual words, embedded by a table; a Qwen2 decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler_search.reducers import Grid
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.packed import plain_fields
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid, tower_fields, tower_shape
from scheduler_search.schedule.cost import ModelShape


class Ovis2(Family):
    """``Ovis2ForConditionalGeneration``."""

    architecture = "Ovis2ForConditionalGeneration"
    model_type = "ovis2"
    merges = "tower merges patches two by two"
    decoders = ("llama", "qwen2")

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:  # noqa: ARG002
        """Refused: an image is any number of tiles."""
        raise self.no_grid(f"{vision_tokens} tokens of tiles")

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """Refused: runs of vision tokens are tiles."""
        rule = "a quota per image needs images that are one run of vision tokens each"
        raise self.refuse(rule, actual="runs that are tiles", remedy="use a rule with quota 'pooled'")

    def shape(self, config: Any) -> ModelShape:
        """The head that scores visual words and the product with their table are the projector."""
        text, vision, stride = config.text_config, config.vision_config, int(config.vision_config.hidden_stride)
        tower = tower_shape(vision, patch_grid(vision).tokens // stride**2, gated=True)
        projector = (int(vision.hidden_size) * stride**2, int(vision.vocab_size), int(text.hidden_size))
        return ModelShape(decoder_shape(text), tower, projector, int(text.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:  # noqa: ARG002
        """None: what merges patches is in the tower's configuration."""
        return {}

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """With the visual words."""
        return {**tower_fields(vision), **plain_fields(vision, "vocab_size", "hidden_stride")}
