"""GLM-4.1V, GLM-4.5V (with experts), GLM-4.6V and GLM-OCR: images of any size, 2 x 2 patches to a vision token.

A video is a run of vision tokens for each of its frames, with time stamps between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler_search.runtime.families.packed import PackedFamily, active_decoder, packed_tower, plain_fields
from scheduler_search.runtime.families.parts import decoder_fields, decoder_shape
from scheduler_search.schedule.cost import DecoderShape, ModelShape, VisionShape

_TOWER = (
    "model_type",
    "depth",
    "num_heads",
    "hidden_size",
    "intermediate_size",
    "out_hidden_size",
    "image_size",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "in_channels",
)


class Glm4v(PackedFamily):
    """``Glm4vForConditionalGeneration``."""

    architecture = "Glm4vForConditionalGeneration"
    model_type = "glm4v"
    decoders = ("glm4v_text",)

    def shape(self, config: Any) -> ModelShape:
        """Exact for one image per sample; of several, the tower's attention is counted as if they were one.

        The merger is a strided convolution, a square layer and a gated MLP; ``projector`` is a chain of the same FLOPs.
        """
        vision, text = config.vision_config, config.text_config
        merged = int(vision.hidden_size) * int(vision.spatial_merge_size) ** 2
        width, inner = int(vision.out_hidden_size), self.merger_width(vision)
        projector = (merged, width, width, inner, width, inner)
        return ModelShape(self.decoder_shape(text), self.tower(vision), projector, int(text.vocab_size))

    def tower(self, vision: Any) -> VisionShape:
        """The tower's MLP is as wide as its output; ``intermediate_size`` is the merger's."""
        return packed_tower(
            vision,
            hidden=int(vision.hidden_size),
            intermediate=int(vision.out_hidden_size),
            merge=int(vision.spatial_merge_size),
            frames=int(vision.temporal_patch_size),
            gated=True,
        )

    def merger_width(self, vision: Any) -> int:
        """Width of the merger's gated MLP."""
        return int(vision.intermediate_size)

    def decoder_shape(self, text: Any) -> DecoderShape:
        """Widths of the decoder."""
        return decoder_shape(text)

    def own_fields(self, config: Any) -> Mapping[str, object]:  # noqa: ARG002
        """None: what merges patches is in the tower's configuration."""
        return {}

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """The tower's part of ``shape_fields``."""
        return plain_fields(vision, *_TOWER)


class Glm46V(Glm4v):
    """``Glm46VForConditionalGeneration``: GLM-4.6V-Flash."""

    architecture = "Glm46VForConditionalGeneration"
    model_type = "glm46v"


class Glm4vMoe(Glm4v):
    """``Glm4vMoeForConditionalGeneration``: a decoder with experts."""

    architecture = "Glm4vMoeForConditionalGeneration"
    model_type = "glm4v_moe"
    decoders = ("glm4v_moe_text",)

    def decoder_shape(self, text: Any) -> DecoderShape:
        """The experts that one token passes, the shared ones among them; see ``active_decoder``."""
        experts = int(text.num_experts_per_tok) + int(text.n_shared_experts)
        dense, layers = int(text.first_k_dense_replace), int(text.num_hidden_layers)
        sparse = experts * int(text.moe_intermediate_size)
        return active_decoder(text, [int(text.intermediate_size)] * dense + [sparse] * (layers - dense))

    def text_fields(self, text: Any) -> Mapping[str, object]:
        """With the number of experts and their width."""
        experts = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size")
        return {**decoder_fields(text), **plain_fields(text, *experts, "first_k_dense_replace")}


class GlmOcr(Glm4v):
    """``GlmOcrForConditionalGeneration``."""

    architecture = "GlmOcrForConditionalGeneration"
    model_type = "glm_ocr"
    decoders = ("glm_ocr_text",)

    def tower(self, vision: Any) -> VisionShape:
        """Here the tower's MLP has ``intermediate_size``."""
        return packed_tower(
            vision,
            hidden=int(vision.hidden_size),
            intermediate=int(vision.intermediate_size),
            merge=int(vision.spatial_merge_size),
            frames=int(vision.temporal_patch_size),
            gated=True,
        )

    def merger_width(self, vision: Any) -> int:
        """The merger's gated MLP is wider than its input by the tower's channels."""
        return int(vision.out_hidden_size) * int(vision.in_channels)
