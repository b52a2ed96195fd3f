"""LightOnOCR: the tower and merger of Mistral 3, and a Qwen3 decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler_search.runtime.families.mistral3 import Mistral3
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid, tower_shape
from scheduler_search.schedule.cost import ModelShape


class LightOnOcr(Mistral3):
    """``LightOnOcrForConditionalGeneration``."""

    architecture = "LightOnOcrForConditionalGeneration"
    model_type = "lighton_ocr"
    decoders = ("qwen3",)

    def shape(self, config: Any) -> ModelShape:
        """As Mistral 3, with the tower's last layer as the only one that is read."""
        vision, text, merge = config.vision_config, config.text_config, int(config.spatial_merge_size)
        tower = tower_shape(vision, patch_grid(vision).tokens // merge**2, gated=True, native=True)
        features, width = int(vision.hidden_size), int(text.hidden_size)
        projector = (features * merge**2, features, width, width)
        return ModelShape(decoder_shape(text), tower, projector, int(text.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """How patches are merged."""
        return {"spatial_merge_size": int(config.spatial_merge_size)}
