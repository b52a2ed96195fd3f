"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL (dense and with experts): images of any size, 2 x 2 patches to a vision token.

Rotary positions have three axes; the model derives them from ``image_grid_thw`` before the first layer, so that the
tokens that are left keep theirs. Qwen3-VL adds features of lower tower layers behind its first decoder layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from scheduler_search.runtime.families.packed import PackedFamily, active_decoder, packed_tower, plain_fields
from scheduler_search.runtime.families.parts import decoder_fields, decoder_shape
from scheduler_search.runtime.families.tower import ScalableTower
from scheduler_search.runtime.injection import Injection
from scheduler_search.schedule.cost import DecoderShape, ModelShape, VisionShape

_TOWER = ("model_type", "depth", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size", "in_channels")


class Qwen2VL(PackedFamily):
    """``Qwen2VLForConditionalGeneration``."""

    architecture = "Qwen2VLForConditionalGeneration"
    model_type = "qwen2_vl"
    decoders = ("qwen2_vl_text",)

    def shape(self, config: Any) -> ModelShape:
        """Exact for one image per sample; of several, the tower's attention is counted as if they were one."""
        vision, text = config.vision_config, config.text_config
        tower = self.tower(vision)
        merged = tower.hidden * int(vision.spatial_merge_size) ** 2
        projectors = 1 + self.injected_layers(config)
        projector = (merged, merged, int(text.hidden_size))
        return ModelShape(self.decoder_shape(text), tower, projector, int(text.vocab_size), projectors)

    def tower(self, vision: Any) -> VisionShape:
        """Widths of the tower."""
        width, ratio = int(vision.embed_dim), int(vision.mlp_ratio)
        return packed_tower(
            vision,
            hidden=width,
            intermediate=width * ratio,
            merge=int(vision.spatial_merge_size),
            frames=int(vision.temporal_patch_size),
        )

    def scalable_tower(self, model: nn.Module) -> ScalableTower:
        """All of them pack patches alike."""
        visual: Any = self.input_module(model).visual
        return ScalableTower(visual, int(visual.config.patch_size), int(visual.config.spatial_merge_size))

    def decoder_shape(self, text: Any) -> DecoderShape:
        """Widths of the decoder."""
        return decoder_shape(text)

    def own_fields(self, config: Any) -> Mapping[str, object]:  # noqa: ARG002
        """None: what merges patches is in the tower's configuration."""
        return {}

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """The tower's part of ``shape_fields``."""
        return plain_fields(vision, *_TOWER, "embed_dim", "mlp_ratio", "hidden_size")


class Qwen25VL(Qwen2VL):
    """``Qwen2_5_VLForConditionalGeneration``: most tower layers attend within windows."""

    architecture = "Qwen2_5_VLForConditionalGeneration"
    model_type = "qwen2_5_vl"
    decoders = ("qwen2_5_vl_text",)

    def tower(self, vision: Any) -> VisionShape:
        """Windows are counted full; those at the right and lower border of an image are smaller."""
        window = (int(vision.window_size) // int(vision.patch_size)) ** 2
        full = set(vision.fullatt_block_indexes)
        return packed_tower(
            vision,
            hidden=int(vision.hidden_size),
            intermediate=int(vision.intermediate_size),
            merge=int(vision.spatial_merge_size),
            frames=int(vision.temporal_patch_size),
            gated=True,
            windows=tuple(None if layer in full else window for layer in range(int(vision.depth))),
        )

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """The tower's part of ``shape_fields``."""
        widths = ("hidden_size", "intermediate_size", "out_hidden_size", "window_size", "fullatt_block_indexes")
        return plain_fields(vision, *_TOWER, *widths)


class Qwen3VL(Qwen2VL):
    """``Qwen3VLForConditionalGeneration``."""

    architecture = "Qwen3VLForConditionalGeneration"
    model_type = "qwen3_vl"
    decoders = ("qwen3_vl_text",)

    def injected_layers(self, config: Any) -> int:
        """One for each tower layer whose features are added (DeepStack)."""
        return len(config.vision_config.deepstack_visual_indexes)

    def take_injection(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Injection | None]:
        """Take ``deepstack_visual_embeds`` away: the decoder would index a full-length mask into what is left."""
        features = arguments.get("deepstack_visual_embeds")
        if features is None:
            return dict(arguments), None
        rest = {**arguments, "visual_pos_masks": None, "deepstack_visual_embeds": None}
        return rest, Injection(arguments["visual_pos_masks"], dict(enumerate(features)))

    def tower(self, vision: Any) -> VisionShape:
        """Widths of the tower."""
        return packed_tower(
            vision,
            hidden=int(vision.hidden_size),
            intermediate=int(vision.intermediate_size),
            merge=int(vision.spatial_merge_size),
            frames=int(vision.temporal_patch_size),
        )

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """The tower's part of ``shape_fields``."""
        widths = ("hidden_size", "intermediate_size", "out_hidden_size")
        more = ("num_position_embeddings", "deepstack_visual_indexes")
        return plain_fields(vision, *_TOWER, *widths, *more)


class Qwen3VLMoe(Qwen3VL):
    """``Qwen3VLMoeForConditionalGeneration``: a decoder with experts."""

    architecture = "Qwen3VLMoeForConditionalGeneration"
    model_type = "qwen3_vl_moe"
    decoders = ("qwen3_vl_moe_text",)

    def decoder_shape(self, text: Any) -> DecoderShape:
        """The experts that one token passes, see ``active_decoder``."""
        sparse = int(text.num_experts_per_tok) * int(text.moe_intermediate_size)
        dense, step = set(text.mlp_only_layers or ()), int(text.decoder_sparse_step)
        widths = [
            int(text.intermediate_size) if layer in dense or (layer + 1) % step else sparse
            for layer in range(int(text.num_hidden_layers))
        ]
        return active_decoder(text, widths)

    def text_fields(self, text: Any) -> Mapping[str, object]:
        """With the number of experts and their width."""
        experts = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
        return {**decoder_fields(text), **plain_fields(text, *experts), "mlp_only_layers": text.mlp_only_layers or []}
