"""What the runtime must know about one model family, and nothing more.

A new family is one file that subclasses ``Family`` and one line in the registry. Does not know: schedules, or hooks.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from torch import nn

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Grid
from scheduler_search.schedule.cost import ModelShape


class Family(abc.ABC):
    """One architecture of Hugging Face transformers.

    Attributes:
        architecture: class name of the model, as in ``config.architectures``.
        model_type: ``config.model_type``.
        attention: attention implementations whose masks and scores are served.
    """

    architecture: str
    model_type: str
    attention: frozenset[str] = frozenset({"sdpa", "eager"})

    @abc.abstractmethod
    def check(self, config: Any) -> None:
        """UnsupportedError if a model of this configuration cannot be served."""

    @abc.abstractmethod
    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:
        """The patch grids of the images of a sample with N = ``vision_tokens``; UnsupportedError if it has none."""

    @abc.abstractmethod
    def shape(self, config: Any) -> ModelShape:
        """Widths of tower, projector and decoder, for the cost arithmetic."""

    @abc.abstractmethod
    def shape_fields(self, config: Any) -> Mapping[str, object]:
        """Every configuration value that fixes a tensor shape or the number of vision tokens, defaults resolved."""

    @abc.abstractmethod
    def layers(self, config: Any) -> tuple[int, int]:
        """Number of decoder and of vision-tower layers."""

    def vision_token_ids(self, config: Any) -> tuple[int, ...]:
        """Input ids that stand for vision tokens."""
        return (int(config.image_token_id),)

    def input_module(self, model: nn.Module) -> nn.Module:
        """The module whose forward receives ``input_ids`` and calls tower and decoder."""
        module: nn.Module = model.base_model  # type: ignore[assignment]
        return module

    def decoder(self, model: nn.Module) -> nn.Module:
        """The module with ``layers``."""
        module: nn.Module = model.get_decoder()  # type: ignore[operator]
        return module

    def refuse(self, rule: str, *, actual: object, remedy: str) -> UnsupportedError:
        """An UnsupportedError about a model of this family."""
        return UnsupportedError(rule, actual=actual, place=self.architecture, remedy=remedy)
