"""Prefixes: what the first decoder layers made of a prompt, kept so that they need not run again.

A prefix is all that the layers behind it read: hidden states in front of one layer, before its reduction, the attention
that ranks them, which prompt tokens they are, and the keys and values of the layers before. A pass that starts from one
is the model's own forward, masks, rotary embeddings, norm and head included; only the layers in front of it are passed
over. It gives, bit for bit, what the whole pass gives. Knows: tensors, and when a prefix fits a pass. Does not know:
hooks (``handle``), or how long prefixes are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Prompt
from scheduler_search.runtime.layout import Kept, to_device
from scheduler_search.runtime.placement import execution_device
from scheduler_search.runtime.plan import Plan
from scheduler_search.runtime.seen import Seen
from scheduler_search.schedule.values import Reduction


@dataclass(frozen=True)
class HeldLayer:
    """What the cache of one layer holds: keys and values [B, Hkv, M, E], the prompt tokens they are of, and losses."""

    keys: torch.Tensor
    values: torch.Tensor
    kept: Kept | None
    evicted: int


@dataclass(frozen=True)
class Prefix:
    """The input of one decoder layer, before its reduction. Tensors are shared, never written to.

    Args:
        layer: 0-based.
        reduction: what it was made under; only its rules and what it kept before ``layer`` matter.
        counts: ``counts[l][sample]`` vision tokens at the input of each layer before ``layer``.
        prompt: the batch.
        hidden: [B, M, D].
        seen: what the rule reads of the layer before; None for rules that read nothing of it.
        vision: [B, M] bool, vision tokens that are left; None while nothing was dropped.
        kept: the prompt tokens that are left; None while nothing was dropped.
        slots: M at each layer before ``layer``.
        cache: of the layers before, if there was a cache.
    """

    layer: int
    reduction: Reduction
    counts: tuple[tuple[int, ...], ...]
    prompt: Prompt
    hidden: torch.Tensor
    seen: Seen | None
    vision: torch.Tensor | None
    kept: Kept | None
    slots: tuple[int, ...]
    cache: tuple[HeldLayer, ...] | None

    def fits(self, reduction: Reduction, plan: Plan) -> bool:
        """Whether a pass over the same prompt under ``reduction`` does the same up to here."""
        return same_rules(self.reduction, reduction) and plan.counts[: self.layer] == self.counts

    def to(self, device: torch.device) -> Prefix:
        """The same on a device; tensors that are there already are shared."""
        return replace(
            self,
            hidden=self.hidden.to(device),
            seen=None if self.seen is None else self.seen.to(device),
            vision=to_device(self.vision, device),
            kept=kept_on(self.kept, device),
            cache=None if self.cache is None else tuple(_move_held(held, device) for held in self.cache),
        )

    @property
    def bytes(self) -> int:
        """Memory of its tensors and of the prompt."""
        seen = () if self.seen is None else self.seen.tensors
        tensors = [self.hidden, *seen, self.vision, *_parts(self.kept)]
        for held in self.cache or ():
            tensors += [held.keys, held.values]
        kept = {id(held.kept): held.kept for held in self.cache or () if held.kept is not self.kept}
        tensors += [part for one in kept.values() for part in _parts(one)]
        prompt = sum(array.nbytes for array in (self.prompt.input_ids, self.prompt.real, self.prompt.vision))
        return prompt + sum(one.numel() * one.element_size() for one in tensors if one is not None)


@dataclass
class PrefixRun:
    """One reduction to run from a prefix, and the prefix to keep of its first pass.

    Args:
        reduction: what is run.
        start: where passes start; None for the embeddings.
        capture: 0-based layer whose input is kept; None for none.
        captured: what was kept, once a pass has ended.
    """

    reduction: Reduction
    start: Prefix | None = None
    capture: int | None = None
    captured: Prefix | None = None

    def __post_init__(self) -> None:
        """Refuse to keep the input of a layer that does not run."""
        if self.capture is not None and not self.first < self.capture < len(self.reduction.keep_rates):
            raise UnsupportedError(
                "the layer whose input is kept must lie behind the prefix and inside the decoder", actual=self.capture
            )

    @property
    def first(self) -> int:
        """First layer (0-based) that runs."""
        return 0 if self.start is None else self.start.layer

    def check(self, prompt: Prompt, plan: Plan, *, cached: bool) -> None:
        """UnsupportedError for a pass that cannot start from, or give, a prefix that is exact."""
        if cached and not plan.reduces:  # such a pass keeps the model's own cache layers
            raise UnsupportedError(
                "with a cache, only a prompt that is reduced has prefixes", remedy="run it whole, with apply_reduction"
            )
        start = self.start
        if start is None:
            return
        if not (start.fits(self.reduction, plan) and same_prompt(start.prompt, prompt)):
            raise UnsupportedError(
                "a prefix must be of the same prompt, the same rules and the same keep counts up to its layer",
                place=f"decoder layer {start.layer + 1}",
            )
        if cached and start.cache is None:
            raise UnsupportedError("a pass with a cache must start from a prefix that was kept with one")


def same_rules(first: Reduction, second: Reduction) -> bool:
    """Whether two reductions choose alike where they keep alike."""
    return (first.entry_rule, first.rule, first.vision) == (second.entry_rule, second.rule, second.vision)


def same_prompt(first: Prompt, second: Prompt) -> bool:
    """Whether two batches have the same ids, padding and vision tokens, and the same of them are given."""
    pairs = [(getattr(first, name), getattr(second, name)) for name in ("input_ids", "real", "vision")]
    return first.given == second.given and all(np.array_equal(one, other) for one, other in pairs)


def held_layers(cache: Any, layers: int) -> tuple[HeldLayer, ...] | None:
    """What the first ``layers`` layers of a cache hold; None without a cache."""
    if cache is None:
        return None
    return tuple(HeldLayer(one.keys, one.values, one.kept, one.evicted) for one in cache.layers[:layers])


class Shortcut:
    """Passes over the layers in front of a prefix, by a ``forward`` on the layer objects.

    The layers' own hooks still run. ``active`` says whether this thread is in a pass that starts from the prefix; in
    all others the layers run as ever.
    """

    def __init__(self, layers: Sequence[nn.Module], start: Prefix, active: Callable[[], bool]) -> None:
        self._layers = layers[: start.layer]
        self._before = [vars(layer).get("forward") for layer in self._layers]
        for index, layer in enumerate(self._layers):
            layer.forward = _shortcut(layer, index, start, active)

    def remove(self) -> None:
        """Give the layers the ``forward`` they had."""
        for layer, before in zip(self._layers, self._before, strict=True):
            if before is None:
                del layer.forward
            else:
                layer.forward = before


def _shortcut(module: nn.Module, layer: int, start: Prefix, active: Callable[[], bool]) -> Callable[..., torch.Tensor]:
    forward = module.forward

    @functools.wraps(forward)
    def pass_over(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not active():
            output: torch.Tensor = forward(hidden_states, *args, **kwargs)
            return output
        device = execution_device(module, hidden_states.device)  # where the layer would have left both
        cache = kwargs.get("past_key_values")
        if cache is not None and start.cache is not None:
            _restore(cache.layers[layer], start.cache[layer], device)
        return start.hidden.to(device) if layer == start.layer - 1 else hidden_states

    return pass_over


def _restore(layer: Any, held: HeldLayer, device: torch.device) -> None:
    """Cache layers replace their tensors when they grow, so these can be shared."""
    keys, values = held.keys.to(device), held.values.to(device)
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    layer.kept, layer.evicted = kept_on(held.kept, device), held.evicted


def kept_on(kept: Kept | None, device: torch.device) -> Kept | None:
    """The same on a device; itself if it is there, so that layers go on sharing it."""
    if kept is None or kept.position.device == device:
        return kept
    return replace(kept, position=kept.position.to(device), valid=to_device(kept.valid, device))


def _move_held(held: HeldLayer, device: torch.device) -> HeldLayer:
    return HeldLayer(held.keys.to(device), held.values.to(device), kept_on(held.kept, device), held.evicted)


def _parts(kept: Kept | None) -> tuple[torch.Tensor | None, ...]:
    return () if kept is None else (kept.position, kept.valid)
