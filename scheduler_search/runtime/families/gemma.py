"""PaliGemma and PaliGemma 2, Gemma 3, Gemma 4: SigLIP-like towers, decoders of the Gemma line.

The decoders of PaliGemma 2 (Gemma 2), Gemma 3 and Gemma 4 have layers with a sliding window, with masks, rotary
embeddings and cache layers of their own: all are gathered by position in the prompt, so that a window stays what it
was. The prompts of PaliGemma, and the images of Gemma 3 and 4, see themselves in both directions; that is in the masks,
and flash attention takes no such masks (transformers then runs Gemma 3 and 4 as if images were text), so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from scheduler_search.reducers import Grid, image_runs
from scheduler_search.runtime.families.family import MASKED, Family
from scheduler_search.runtime.families.llava import clip_shape, clip_tower
from scheduler_search.runtime.families.packed import PackedFamily, packed_tower, plain_fields
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid
from scheduler_search.runtime.families.tower import Tower
from scheduler_search.schedule.cost import DecoderShape, ModelShape


class PaliGemma(Family):
    """``PaliGemmaForConditionalGeneration``, versions 1 and 2.

    Gemma 2 has a softcap on its attention and therefore, in transformers, no sdpa: a schedule runs under eager there.
    """

    architecture = "PaliGemmaForConditionalGeneration"
    model_type = "paligemma"
    attention = MASKED
    decoders = ("gemma", "gemma2")

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """Equal square grids, image_size // patch_size on a side."""
        return self.equal_grids(patch_grid(config.vision_config), vision_tokens)

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Runs of vision tokens, cut where images follow each other without text between them, as they do here."""
        return image_runs(vision, patch_grid(config.vision_config).tokens)

    def vision_tower(self, model: nn.Module) -> Tower:
        """SigLIP, read at its end."""
        parts: Any = model.base_model
        tower = parts.vision_tower
        return clip_tower(tower, parts.multi_modal_projector, class_tokens=0, level=len(tower.encoder.layers))

    def shape(self, config: Any) -> ModelShape:
        """Widths of tower, projector and decoder."""
        text, vision = config.text_config, config.vision_config
        projector = (int(vision.hidden_size), int(text.hidden_size))
        return ModelShape(decoder_shape(text), clip_shape(vision, full=False), projector, int(text.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:  # noqa: ARG002
        """None: an image has the tower's patches."""
        return {}


class Gemma3(Family):
    """``Gemma3ForConditionalGeneration``."""

    architecture = "Gemma3ForConditionalGeneration"
    model_type = "gemma3"
    merges = "projector averages neighbouring patches"
    attention = MASKED
    decoders = ("gemma3_text",)

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """Equal square grids: patches are averaged to ``mm_tokens_per_image``."""
        side = round(int(config.mm_tokens_per_image) ** 0.5)
        return self.equal_grids(Grid(side, side), vision_tokens)

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Runs of vision tokens, cut where images follow each other without text between them."""
        return image_runs(vision, int(config.mm_tokens_per_image))

    def shape(self, config: Any) -> ModelShape:
        """Widths of tower, projector and decoder; a window is counted as full attention, which its kernels compute."""
        text, vision = config.text_config, config.vision_config
        tower = replace(clip_shape(vision, full=False), tokens_per_image=int(config.mm_tokens_per_image))
        projector = (int(vision.hidden_size), int(text.hidden_size))
        return ModelShape(decoder_shape(text), tower, projector, int(text.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """Vision tokens of an image."""
        return {"mm_tokens_per_image": int(config.mm_tokens_per_image)}


class Gemma4(PackedFamily):
    """``Gemma4ForConditionalGeneration`` without shared keys and without per-layer embeddings (26B-A4B, 31B)."""

    architecture = "Gemma4ForConditionalGeneration"
    model_type = "gemma4"
    attention = MASKED
    decoders = ("gemma4_text",)

    def check(self, config: Any) -> None:
        """Refuse decoders some of whose layers read what a layer before made for the unreduced prompt."""
        super().check(config)
        text, remedy = config.text_config, "use a model without them, or run it without a schedule"
        if text.num_kv_shared_layers:
            actual = f"{text.num_kv_shared_layers} layers that read the keys and values of an earlier one"
            raise self.refuse("each decoder layer must have its own keys and values", actual=actual, remedy=remedy)
        if text.hidden_size_per_layer_input:
            actual = f"embeddings of width {text.hidden_size_per_layer_input} for each layer"
            rule = "a decoder layer must read nothing for its tokens beside their hidden states"
            raise self.refuse(rule, actual=actual, remedy=remedy)

    def shape(self, config: Any) -> ModelShape:
        """An approximation: all layers have heads as they are in the mean of the layers; pooling is not counted."""
        text, vision = config.text_config, config.vision_config
        tower = packed_tower(
            vision,
            hidden=int(vision.hidden_size),
            intermediate=int(vision.intermediate_size),
            merge=int(vision.pooling_kernel_size),
            gated=True,
        )
        projector = (int(vision.hidden_size), int(text.hidden_size))
        return ModelShape(_active(text), tower, projector, int(text.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:  # noqa: ARG002
        """None: what pools patches is in the tower's configuration."""
        return {}

    def text_fields(self, text: Any) -> Mapping[str, object]:
        """With what differs between layers, and the experts."""
        layers = ("layer_types", "attention_k_eq_v", "enable_moe_block")
        experts = ("num_experts", "top_k_experts", "moe_intermediate_size")
        every = [text.per_layer_config[layer] for layer in range(int(text.num_hidden_layers))]
        heads = [[int(layer.head_dim), int(layer.num_key_value_heads)] for layer in every]
        shape = plain_fields(text, "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
        shape["num_attention_heads"] = int(text.num_attention_heads)
        return {**shape, **plain_fields(text, *layers, *experts), "layer_heads": heads}

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """The tower's part of ``shape_fields``."""
        widths = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
        return plain_fields(vision, "model_type", *widths, "patch_size", "pooling_kernel_size")


def _active(text: Any) -> DecoderShape:
    """Heads as they are in the mean of the layers; the MLP and, beside it, the experts that one token passes."""
    layers = int(text.num_hidden_layers)
    every = [text.per_layer_config[layer] for layer in range(layers)]
    width = sum(int(layer.head_dim) for layer in every) / layers
    shared = sum(int(layer.head_dim) * int(layer.num_key_value_heads) for layer in every) / layers
    experts = int(text.top_k_experts) * int(text.moe_intermediate_size) if text.enable_moe_block else 0
    return DecoderShape(
        layers=layers,
        hidden=int(text.hidden_size),
        heads=int(text.num_attention_heads),
        key_value_heads=round(shared / width),
        head_dimension=round(width),
        intermediate=int(text.intermediate_size) + experts,
    )
