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


class Remembers:
    """What is worked out of a value by several who look at it, worked out once."""

    _memo: dict[object, object]

    def once(self, key: object, compute: Callable[[], T]) -> T:
        """``compute()``, remembered under ``key`` for as long as this value lives."""
        if key not in self._memo:
            self._memo[key] = compute()
        value: T = self._memo[key]  # type: ignore[assignment]  # one key is only ever used with one type
        return value


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
class Prompt(Remembers):
    """A batch of prompts before any reduction, on the host: counts can be planned without asking the device.

    It lives for one forward pass, and so does what is remembered of it.

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


@dataclass(frozen=True)
class AttentionRows:
    """Attention of each query row by itself.

    Args:
        values: [B, R, S] attention of each row to each slot, heads combined.
        slots: [B, R] int64, the slot of each row.
        weights: [B, R], summing to 1 per sample; 0 for rows that only fill up.
    """

    values: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor

    def square(self) -> torch.Tensor:
        """[B, S, S]: row s is the attention of slot s, zero where no row is of it."""
        B, _, S = self.values.shape
        rows = self.values * (self.weights > 0)[..., None]  # rows that fill up stand for a slot that is there already
        square = torch.zeros(B, S, S, dtype=rows.dtype, device=rows.device)
        return square.scatter_add_(1, self.slots.to(rows.device)[..., None].expand_as(rows), rows)


@dataclass(frozen=True)
class Text:
    """Features of the question's tokens, in the space of ``Tokens.features``: [B, T, E], and which are real [B, T]."""

    values: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True)
class Tokens(Remembers):
    """What stands in front of one layer, before its reduction. Of a tower, samples are images.

    What a rule did not ask for (``Reads``) is None. It lives for one round of a reduction: what its filter works out
    ``once``, its correlate finds there.

    Args:
        hidden: [B, S, D].
        vision: [B, S] bool, the vision tokens that are left; never a filler slot, nor the tower's class token.
        position: [B, S] int64, the slot of each token in the prompt.
        attention: [B, S] attention that each slot receives, averaged over the query rows.
        keep: [B] int64, vision tokens that each sample keeps, at most its ``vision`` ones.
        counts: ``keep`` on the host.
        prompt: the batch before any reduction.
        rows: the attention of each query row.
        keys: [B, S, H, E] keys of the layer, their heads apart.
        sizes: [B, S] float, patches that each token stands for.
        text: what the question says; of a prompt without text no row is real.
        features: [B, S, E] what ``text`` is compared with; None where that is ``hidden``.
        present: vision tokens of each sample before the reduction, where the host knows them.
    """

    hidden: torch.Tensor
    vision: torch.Tensor
    position: torch.Tensor
    attention: torch.Tensor | None
    keep: torch.Tensor
    counts: tuple[int, ...]
    prompt: Prompt
    rows: AttentionRows | None = None
    keys: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    text: Text | None = None
    features: torch.Tensor | None = None
    present: tuple[int, ...] | None = None
    # Not copied by dataclasses.replace: other tokens are other values.
    _memo: dict[object, object] = field(default_factory=dict, init=False, repr=False, compare=False)


def required(view: T | None, name: str) -> T:
    """A view that the rule's ``Reads`` asked for; ValueError where the caller did not fill it."""
    if view is None:
        raise ValueError(f"this rule needs Tokens.{name}")
    return view
