"""PaddleOCR-VL: a SigLIP-like tower for images of any size, 2 x 2 patches to a vision token, an ERNIE 4.5 decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler_search.runtime.families.packed import PackedFamily, packed_tower, plain_fields
from scheduler_search.runtime.families.parts import decoder_shape, tower_fields
from scheduler_search.schedule.cost import ModelShape


class PaddleOCRVL(PackedFamily):
    """``PaddleOCRVLForConditionalGeneration``."""

    architecture = "PaddleOCRVLForConditionalGeneration"
    model_type = "paddleocr_vl"
    decoders = ("paddleocr_vl_text",)

    def shape(self, config: Any) -> ModelShape:
        """Exact for one image per sample; of several, the tower's attention is counted as if they were one."""
        text, vision, merge = config.text_config, config.vision_config, int(config.vision_config.spatial_merge_size)
        hidden, intermediate = int(vision.hidden_size), int(vision.intermediate_size)
        tower = packed_tower(vision, hidden=hidden, intermediate=intermediate, merge=merge)
        projector = (hidden * merge**2, hidden * merge**2, int(text.hidden_size))
        return ModelShape(decoder_shape(text), tower, projector, int(text.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:  # noqa: ARG002
        """None: what merges patches is in the tower's configuration."""
        return {}

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """With the merging of patches."""
        return {**tower_fields(vision), **plain_fields(vision, "spatial_merge_size")}
