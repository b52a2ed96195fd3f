"""LLaVA and VipLLaVA: a CLIP or SigLIP tower, an MLP projector, and a Llama, Qwen2 or Mistral decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from scheduler_search.reducers import Grid, image_runs
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.parts import decoder_shape, patch_grid, tower_shape
from scheduler_search.runtime.families.tower import Tower
from scheduler_search.schedule.cost import ModelShape, VisionShape

_TOWERS = ("clip_vision_model", "siglip_vision_model")


class Llava(Family):
    """``LlavaForConditionalGeneration``."""

    architecture = "LlavaForConditionalGeneration"
    model_type = "llava"
    decoders = ("llama", "mistral", "qwen2")

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """Equal square grids, image_size // patch_size on a side."""
        self._check_grid(config)
        return self.equal_grids(patch_grid(config.vision_config), vision_tokens)

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Runs of vision tokens, cut where images follow each other without text between them."""
        tower, full = config.vision_config, config.vision_feature_select_strategy == "full"
        if tower.model_type not in _TOWERS:
            rule = f"a quota per image needs a tower among {', '.join(_TOWERS)}"
            raise self.refuse(rule, actual=repr(tower.model_type), remedy="use a rule with quota 'pooled'")
        return image_runs(vision, clip_shape(tower, full).tokens_per_image)

    def vision_tower(self, model: nn.Module) -> Tower:
        """CLIP without its class token, or SigLIP, read at one of its layers."""
        config: Any = model.config
        kind, level = config.vision_config.model_type, feature_layers(config)
        if kind not in _TOWERS:
            raise self.no_tower(f"a tower of type {kind!r}")
        if not isinstance(level, int):
            raise self.no_tower("a projector that reads several tower layers at once")
        classes = 1 if kind == "clip_vision_model" else 0
        if (config.vision_feature_select_strategy == "default") != bool(classes):
            raise self.no_tower(f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} of {kind!r}")
        return clip_tower(model.base_model.vision_tower, model.base_model.multi_modal_projector, classes, level)  # type: ignore[union-attr,arg-type]

    def _check_grid(self, config: Any) -> None:
        tower, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
        if tower not in _TOWERS:
            rule = f"a patch grid needs a tower among {', '.join(_TOWERS)}"
            remedy = "use a rule that needs no patch grids"
            raise self.refuse(rule, actual=repr(tower), remedy=remedy)
        if strategy == "full" and tower == "clip_vision_model":
            actual = "vision_feature_select_strategy 'full'"
            remedy = "use a rule that needs no patch grids"
            raise self.refuse("a patch grid needs vision tokens that are patches only", actual=actual, remedy=remedy)

    def shape(self, config: Any) -> ModelShape:
        """Every tower layer is counted: those behind ``vision_feature_layer`` run too."""
        text = config.text_config
        width = int(text.hidden_size)
        projector = (feature_width(config), width, width)
        full = config.vision_feature_select_strategy == "full"
        vision = replace(clip_shape(config.vision_config, full), used_layers=used_layers(config))
        return ModelShape(decoder_shape(text), vision, projector, int(text.vocab_size))

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """Which tower layers are read, and whether their class token is."""
        return {
            "vision_feature_layer": feature_layers(config),
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        }


def feature_layers(config: Any) -> int | list[int]:
    """``vision_feature_layer`` as JSON."""
    levels = config.vision_feature_layer
    return levels if isinstance(levels, int) else list(levels)


def used_layers(config: Any) -> int:
    """How many tower layers there are in front of the projector; of several that are read, the last counts."""
    levels, states = feature_layers(config), int(config.vision_config.num_hidden_layers) + 1
    return max(level % states for level in ([levels] if isinstance(levels, int) else levels))


def clip_tower(tower: Any, projector: nn.Module, class_tokens: int, level: int) -> Tower:
    """A CLIP or SigLIP tower whose hidden states ``level`` go to the projector."""
    layers = tuple(tower.encoder.layers)
    return Tower(tower, layers, projector, patch_grid(tower.config), class_tokens, level % (len(layers) + 1))


def feature_width(config: Any) -> int:
    """Width of what the projector reads: the features of all chosen tower layers side by side."""
    levels = feature_layers(config)
    return int(config.vision_config.hidden_size) * (1 if isinstance(levels, int) else len(levels))


def clip_shape(vision: Any, full: bool) -> VisionShape:
    """A CLIP or SigLIP tower over one image; ``full`` makes the class token, where there is one, a vision token."""
    clip = vision.model_type == "clip_vision_model"
    return tower_shape(
        vision,
        patch_grid(vision).tokens + (1 if clip and full else 0),
        class_tokens=1 if clip else 0,
        pooling_head=bool(getattr(vision, "vision_use_head", not clip)),
    )
