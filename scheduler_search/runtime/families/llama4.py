"""Llama 4: tiles of one size, a decoder with experts, layers with chunked attention and layers without rotary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import nn

from scheduler_search.reducers import Grid
from scheduler_search.runtime.families.family import MASKED, Family
from scheduler_search.runtime.families.packed import active_decoder, plain_fields
from scheduler_search.runtime.families.parts import decoder_fields, tower_fields, tower_shape
from scheduler_search.schedule.cost import ModelShape


class Llama4(Family):
    """``Llama4ForConditionalGeneration``."""

    architecture = "Llama4ForConditionalGeneration"
    model_type = "llama4"
    merges = "tower merges patches two by two"
    attention = MASKED  # chunks of attention are in the masks alone
    decoders = ("llama4_text",)

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:  # noqa: ARG002
        """Refused: an image is any number of tiles."""
        raise self.no_grid(f"{vision_tokens} tokens of tiles")

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """Refused: runs of vision tokens are tiles."""
        rule = "a quota per image needs images that are one run of vision tokens each"
        raise self.refuse(rule, actual="runs that are tiles", remedy="use a rule with quota 'pooled'")

    def check_prompt(self, config: Any, slots: int) -> None:
        """Refuse prompts so long that layers without rotary scale queries by their index.

        The model takes the index in what the layer is given, not the position in the prompt. Below ``floor_scale``
        tokens the factor is 1 everywhere.
        """
        text = config.text_config
        if text.attn_temperature_tuning and slots >= int(text.floor_scale):
            rule = (
                f"a prompt must be shorter than {text.floor_scale} tokens, where queries are not scaled by their index"
            )
            raise self.refuse(rule, actual=f"{slots} tokens", remedy="shorten it, or use fewer image tiles")

    def input_module(self, model: nn.Module) -> nn.Module:
        """The model itself: it calls tower and decoder."""
        return model

    def decoder(self, model: nn.Module) -> nn.Module:
        """The text model below its own lm head."""
        return cast(nn.Module, model.language_model.model)  # type: ignore[union-attr]

    def shape(self, config: Any) -> ModelShape:
        """The class token runs through the tower and is dropped; see ``active_decoder`` for the experts."""
        text, vision = config.text_config, config.vision_config
        ratio = float(vision.pixel_shuffle_ratio)
        side = int(vision.image_size) // int(vision.patch_size)
        tower = tower_shape(vision, round(side**2 * ratio**2), class_tokens=1)
        shuffled, inner = int(vision.intermediate_size), int(vision.projector_output_dim)
        projector = (shuffled, inner, inner, int(text.hidden_size))
        decoder = active_decoder(text, self._widths(text))
        return ModelShape(decoder, tower, projector, int(text.vocab_size))

    def _widths(self, text: Any) -> list[int]:
        """Dense layers have their own width; the others run the shared expert beside the chosen ones."""
        experts, sparse = 1 + int(text.num_experts_per_tok), set(text.moe_layers)
        return [
            experts * int(text.intermediate_size) if layer in sparse else int(text.intermediate_size_mlp)
            for layer in range(int(text.num_hidden_layers))
        ]

    def own_fields(self, config: Any) -> Mapping[str, object]:  # noqa: ARG002
        """None: what shuffles patches is in the tower's configuration."""
        return {}

    def text_fields(self, text: Any) -> Mapping[str, object]:
        """With the experts."""
        experts = ("intermediate_size_mlp", "num_local_experts", "num_experts_per_tok", "moe_layers")
        return {**decoder_fields(text), **plain_fields(text, *experts)}

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """With the widths of the projector."""
        projector = ("pixel_shuffle_ratio", "projector_input_dim", "projector_output_dim", "vision_output_dim")
        return {**tower_fields(vision), **plain_fields(vision, *projector)}
