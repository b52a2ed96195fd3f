"""LLaVA: a CLIP or SigLIP tower, an MLP projector, and a Llama, Qwen2 or Mistral decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler_search.reducers import Grid
from scheduler_search.runtime.families.family import Family
from scheduler_search.schedule.cost import DecoderShape, ModelShape, VisionShape

_DECODERS = ("llama", "mistral", "qwen2")
_TOWERS = ("clip_vision_model", "siglip_vision_model")


class Llava(Family):
    """``LlavaForConditionalGeneration``."""

    architecture = "LlavaForConditionalGeneration"
    model_type = "llava"

    def check(self, config: Any) -> None:
        """Refuse decoders whose layers were not tested with the hooks."""
        decoder = config.text_config.model_type
        if decoder not in _DECODERS:
            remedy = "use a model with one of these, or run it without a schedule"
            raise self.refuse(f"the decoder must be one of {', '.join(_DECODERS)}", actual=repr(decoder), remedy=remedy)

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """Equal square grids, image_size // patch_size on a side."""
        self._check_grid(config)
        grid = _grid(config.vision_config)
        if vision_tokens % grid.tokens:
            rule = f"the vision tokens of a sample must be whole images of {grid.height} x {grid.width} patches"
            remedy = "use a rule that does not pool, or images of the size the model was trained on"
            raise self.refuse(rule, actual=f"{vision_tokens} tokens", remedy=remedy)
        return (grid,) * (vision_tokens // grid.tokens)

    def _check_grid(self, config: Any) -> None:
        tower, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
        if tower not in _TOWERS:
            remedy = "use a rule that does not pool"
            raise self.refuse(f"pooling needs a tower among {', '.join(_TOWERS)}", actual=repr(tower), remedy=remedy)
        if strategy == "full" and tower == "clip_vision_model":
            actual = "vision_feature_select_strategy 'full'"
            remedy = "use a rule that does not pool"
            raise self.refuse("pooling needs vision tokens that are patches only", actual=actual, remedy=remedy)

    def layers(self, config: Any) -> tuple[int, int]:
        """Decoder and tower layers."""
        return int(config.text_config.num_hidden_layers), int(config.vision_config.num_hidden_layers)

    def shape(self, config: Any) -> ModelShape:
        """Every tower layer is counted: those behind ``vision_feature_layer`` run too."""
        text, vision = config.text_config, config.vision_config
        levels = config.vision_feature_layer
        features = int(vision.hidden_size) * (1 if isinstance(levels, int) else len(levels))
        width = int(text.hidden_size)
        return ModelShape(_decoder_shape(text), _tower_shape(config), (features, width, width), int(text.vocab_size))

    def shape_fields(self, config: Any) -> Mapping[str, object]:
        """Fields of both configurations, with head counts and head width resolved."""
        text, vision = config.text_config, config.vision_config
        levels = config.vision_feature_layer
        decoder = _decoder_shape(text)
        return {
            "model_type": config.model_type,
            "vision_feature_layer": levels if isinstance(levels, int) else list(levels),
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "text": {
                "model_type": text.model_type,
                "hidden_size": decoder.hidden,
                "intermediate_size": decoder.intermediate,
                "num_hidden_layers": decoder.layers,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.key_value_heads,
                "head_dim": decoder.head_dimension,
                "vocab_size": int(text.vocab_size),
            },
            "vision": {
                "model_type": vision.model_type,
                "hidden_size": int(vision.hidden_size),
                "intermediate_size": int(vision.intermediate_size),
                "num_hidden_layers": int(vision.num_hidden_layers),
                "num_attention_heads": int(vision.num_attention_heads),
                "image_size": int(vision.image_size),
                "patch_size": int(vision.patch_size),
            },
        }


def _grid(vision: Any) -> Grid:
    side = int(vision.image_size) // int(vision.patch_size)
    return Grid(side, side)


def _decoder_shape(text: Any) -> DecoderShape:
    heads = int(text.num_attention_heads)
    return DecoderShape(
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        heads=heads,
        key_value_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dimension=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        intermediate=int(text.intermediate_size),
    )


def _tower_shape(config: Any) -> VisionShape:
    vision = config.vision_config
    clip = vision.model_type == "clip_vision_model"
    patches = _grid(vision).tokens
    return VisionShape(
        layers=int(vision.num_hidden_layers),
        hidden=int(vision.hidden_size),
        heads=int(vision.num_attention_heads),
        intermediate=int(vision.intermediate_size),
        patches=patches,
        patch_values=int(vision.num_channels) * int(vision.patch_size) ** 2,
        tokens_per_image=patches + (1 if clip and config.vision_feature_select_strategy == "full" else 0),
        class_tokens=1 if clip else 0,
        pooling_head=bool(getattr(vision, "vision_use_head", not clip)),
    )
