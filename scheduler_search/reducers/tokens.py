"""What a rule may look at: the prompts of a batch on the host, and the tokens of one layer's input on the device.

Shapes: B samples, S0 slots of the unreduced (padded) prompt, S slots at the present layer, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Grid:
    """The patches of one image, in row-major order."""

    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of vision tokens of the image."""
        return self.height * self.width


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts before any reduction, on the host: counts can be planned without asking the device.

    Args:
        input_ids: [B, S0] int64.
        real: [B, S0] bool, False for padding.
        vision: [B, S0] bool, slots that carry image features.
        grids: the images of each sample, in order; empty unless a rule asked for them.
        images: [B, S0] int64, which image of its sample a vision slot belongs to, from 0; -1 for all other slots. None
            unless a rule asked for it.
        given: leading slots that rules may look at; None for all. Slots behind them were generated, or are candidates
            of assisted decoding: they must not change what is kept of the prompt.
    """

    input_ids: npt.NDArray[np.int64]
    real: npt.NDArray[np.bool_]
    vision: npt.NDArray[np.bool_]
    grids: tuple[tuple[Grid, ...], ...] = ()
    images: npt.NDArray[np.int64] | None = None
    given: int | None = None
    _memo: dict[object, object] = field(default_factory=dict, repr=False, compare=False)

    @property
    def samples(self) -> int:
        """B."""
        return int(self.vision.shape[0])

    @property
    def slots(self) -> int:
        """S0, padding included."""
        return int(self.vision.shape[1])

    @cached_property
    def asking(self) -> npt.NDArray[np.bool_]:
        """[B, S0] bool, the real slots of the prompt as it was given."""
        given = self.slots if self.given is None else self.given
        asking: npt.NDArray[np.bool_] = self.real & (np.arange(self.slots) < given)
        return asking

    @cached_property
    def vision_tokens(self) -> tuple[int, ...]:
        """N of each sample: the vision tokens of all its images."""
        return tuple(int(count) for count in self.vision.sum(axis=1))

    @cached_property
    def text_tokens(self) -> tuple[int, ...]:
        """Tokens of each sample that are neither vision tokens nor padding."""
        return tuple(int(count) for count in (self.real & ~self.vision).sum(axis=1))

    def once(self, key: object, compute: Callable[[], T]) -> T:
        """``compute()``, remembered under ``key`` for as long as this prompt lives, which is one forward pass."""
        if key not in self._memo:
            self._memo[key] = compute()
        value: T = self._memo[key]  # type: ignore[assignment]  # one key is only ever used with one type
        return value


@dataclass(frozen=True)
class Tokens:
    """The input of one decoder layer, before its reduction.

    Args:
        hidden: [B, S, D].
        vision: [B, S] bool, the vision tokens that are left; never a filler slot.
        position: [B, S] int64, the slot of each token in the prompt.
        attention: [B, S] attention that the rule asked for, of the layer before; None for rules that did not ask.
        keep: [B] int64, vision tokens that each sample keeps, at most its ``vision`` ones.
        counts: ``keep`` on the host.
        prompt: the batch before any reduction.
    """

    hidden: torch.Tensor
    vision: torch.Tensor
    position: torch.Tensor
    attention: torch.Tensor | None
    keep: torch.Tensor
    counts: tuple[int, ...]
    prompt: Prompt
