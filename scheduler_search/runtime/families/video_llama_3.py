"""VideoLLaMA 3: a SigLIP-like tower for images of any size, an MLP projector, and a Qwen2 decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler_search.runtime.families.packed import PackedFamily, packed_tower, plain_fields
from scheduler_search.runtime.families.parts import decoder_shape
from scheduler_search.schedule.cost import ModelShape


class VideoLlama3(PackedFamily):
    """``VideoLlama3ForConditionalGeneration``."""

    architecture = "VideoLlama3ForConditionalGeneration"
    model_type = "video_llama_3"
    decoders = ("qwen2",)

    def shape(self, config: Any) -> ModelShape:
        """Of images, whose patches are not merged; frames of a video are pooled 2 x 2, so that four times as many run.

        Exact for one image per sample; of several, the tower's attention is counted as if they were one.
        """
        text, vision = config.text_config, config.vision_config
        width = int(text.hidden_size)
        hidden, intermediate = int(vision.hidden_size), int(vision.intermediate_size)
        tower = packed_tower(vision, hidden=hidden, intermediate=intermediate, merge=1)
        return ModelShape(decoder_shape(text), tower, (hidden, width, width), int(text.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:  # noqa: ARG002
        """None: how patches are merged is an argument of the forward pass."""
        return {}

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """The tower's part of ``shape_fields``."""
        widths = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
        return plain_fields(vision, "model_type", *widths)
