"""What the runtime must know about one model family, and nothing more.

A new family is one file that subclasses ``Family`` and one line in the registry (``families/__init__.py``); its tests
are one builder in ``tests/runtime/families``. Does not know: schedules, or hooks.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Grid, image_runs
from scheduler_search.runtime.families.parts import decoder_fields, tower_fields
from scheduler_search.runtime.families.tower import ScalableTower, Tower
from scheduler_search.runtime.injection import Injection
from scheduler_search.schedule.cost import ModelShape

# Implementations that take the whole mask: what causal order and padding cannot say is in it.
MASKED = frozenset({"sdpa", "eager"})


class Family(abc.ABC):
    """One architecture of Hugging Face transformers.

    Attributes:
        architecture: class name of the model, as in ``config.architectures``.
        model_type: ``config.model_type``.
        decoders: ``config.text_config.model_type`` of the decoders whose layers were tested with the hooks.
        attention: attention implementations whose masks and scores are served.
        whole_layers: leading decoder layers that must see every vision token; nothing may be dropped in front of them.
        merges: why ``vision_tower`` is refused.
    """

    architecture: str
    model_type: str
    decoders: tuple[str, ...]
    attention: frozenset[str] = MASKED | {"flash_attention_2"}
    whole_layers: int = 0
    merges: str = "projector was not tested with fewer patches"

    # -- what each family says

    @abc.abstractmethod
    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """The patch grids of the images of a sample with N = ``vision_tokens``, in the order of the tokens.

        Raises:
            UnsupportedError: the number of vision tokens does not tell the grids (``no_grid``).
        """

    @abc.abstractmethod
    def shape(self, config: Any) -> ModelShape:
        """Widths of tower, projector and decoder, for the cost arithmetic."""

    @abc.abstractmethod
    def own_fields(self, config: Any) -> Mapping[str, object]:
        """Top-level configuration values that fix a tensor shape or the number of vision tokens, defaults resolved."""

    # -- what most families have in common

    def check(self, config: Any) -> None:
        """UnsupportedError if a model of this configuration cannot be served."""
        decoder = config.text_config.model_type
        if decoder not in self.decoders:
            rule = f"the decoder must be one of {', '.join(self.decoders)}"
            remedy = "use a model with one of these, or run it without a schedule"
            raise self.refuse(rule, actual=repr(decoder), remedy=remedy)

    def check_prompt(self, config: Any, slots: int) -> None:  # noqa: B027
        """UnsupportedError if a prompt of so many slots, padding included, cannot be reduced exactly."""

    def served_attention(self, config: Any) -> frozenset[str]:  # noqa: ARG002
        """``attention``, less what a model of this configuration cannot run with under a schedule."""
        return self.attention

    def layers(self, config: Any) -> tuple[int, int]:
        """Number of decoder and of vision-tower layers."""
        return int(config.text_config.num_hidden_layers), int(config.vision_config.num_hidden_layers)

    def injected_layers(self, config: Any) -> int:  # noqa: ARG002
        """Number of first decoder layers behind which the decoder may add features to vision tokens (DeepStack)."""
        return 0

    def resumable(self, config: Any) -> bool:
        """Whether a prefill can start from the input of a later layer: not where features are added behind layers."""
        return not self.injected_layers(config)

    def take_injection(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Injection | None]:
        """The decoder's arguments without the features that it would add behind layers, and these features."""
        return dict(arguments), None

    def shape_fields(self, config: Any) -> Mapping[str, object]:
        """Every configuration value that fixes a tensor shape or the number of vision tokens, defaults resolved.

        The config digest of published schedules is over these: a field that is added here breaks them.
        """
        return {
            "model_type": config.model_type,
            **self.own_fields(config),
            "text": self.text_fields(config.text_config),
            "vision": self.vision_fields(config.vision_config),
        }

    def text_fields(self, text: Any) -> Mapping[str, object]:
        """The decoder's part of ``shape_fields``."""
        return decoder_fields(text)

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """The tower's part of ``shape_fields``."""
        return tower_fields(vision)

    def vision_token_ids(self, config: Any) -> tuple[int, ...]:
        """Input ids that stand for vision tokens: of images and, where the family has them, of videos."""
        video = getattr(config, "video_token_id", None)
        return (int(config.image_token_id),) if video is None else (int(config.image_token_id), int(video))

    def images(self, config: Any, vision: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """Which image of its sample each slot of ``vision`` [B, S] belongs to, from 0; -1 for text.

        Here a maximal run of vision tokens; a video is one image. UnsupportedError where runs are no images.
        """
        return image_runs(vision)

    def input_module(self, model: nn.Module) -> nn.Module:
        """The module whose forward receives ``input_ids`` and calls tower and decoder."""
        module: nn.Module = model.base_model  # type: ignore[assignment]
        return module

    def decoder(self, model: nn.Module) -> nn.Module:
        """The module with ``layers``."""
        module: nn.Module = model.get_decoder()  # type: ignore[operator]
        return module

    def vision_tower(self, model: nn.Module) -> Tower:  # noqa: ARG002
        """The vision tower, for rules that read it or act inside it; UnsupportedError where it cannot be served."""
        raise self.no_tower(f"a family whose {self.merges}")

    def scalable_tower(self, model: nn.Module) -> ScalableTower:  # noqa: ARG002
        """The vision tower, for images that are made smaller in front of it; UnsupportedError where they cannot be."""
        raise self.refuse(
            "images can be made smaller only where the number of vision tokens follows their size (Qwen-VL)",
            actual="a family where it does not, or whose packing of patches was not tested",
            remedy="set the rule's level to 'grid', or use another entry rule",
        )

    # -- for the families' own use

    def no_tower(self, actual: str) -> UnsupportedError:
        """The refusal of ``vision_tower``; ``actual`` is the reason."""
        rule = "a rule in the vision tower, or one that reads it, needs patches that are the vision tokens one by one"
        remedy = "use a decoder rule, or an entry rule that reads nothing of the tower"
        return self.refuse(rule, actual=actual, remedy=remedy)

    def refuse(self, rule: str, *, actual: object, remedy: str) -> UnsupportedError:
        """An UnsupportedError about a model of this family."""
        return UnsupportedError(rule, actual=actual, place=self.architecture, remedy=remedy)

    def no_grid(self, actual: str) -> UnsupportedError:
        """The refusal of ``grids``; ``actual`` is the reason."""
        rule = "pooling and square windows need images whose patch grids follow from their number of vision tokens"
        return self.refuse(rule, actual=actual, remedy="use a rule that needs no patch grids")

    def no_images(self, actual: str) -> UnsupportedError:
        """The refusal of ``images``; ``actual`` is what the runs of vision tokens are instead."""
        rule = "a quota per image needs images that are one run of vision tokens each"
        return self.refuse(rule, actual=actual, remedy="use a rule with quota 'pooled'")

    def equal_grids(self, grid: Grid, vision_tokens: int) -> tuple[Grid, ...]:
        """As many images of ``grid`` as make ``vision_tokens``; UnsupportedError if they are not whole images."""
        if vision_tokens % grid.tokens:
            rule = f"the vision tokens of a sample must be whole images of {grid.height} x {grid.width} patches"
            remedy = "use a rule that needs no patch grids, or images of the size the model was trained on"
            raise self.refuse(rule, actual=f"{vision_tokens} tokens", remedy=remedy)
        return (grid,) * (vision_tokens // grid.tokens)
