"""KV-cache layers that hold fewer tokens than the model has seen.

Knows: which prompt tokens each layer still holds, and how that follows the cache through beams, repeats and crops. Does
not know: schedules, or when tokens are dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime.layout import Kept


class LogicalDynamicLayer(DynamicLayer):
    """Holds the kept tokens, but reports the length that the model has seen.

    Masks and positions are derived from the reported length, so they stay those of the unreduced sequence. ``kept`` is
    None for a layer that holds all its tokens.
    """

    kept: Kept | None = None
    evicted: int = 0  # tokens that were held and let go of, see LogicalSlidingLayer

    @property
    def held(self) -> int:
        """Tokens that the layer holds."""
        return int(super().get_seq_length())

    def get_seq_length(self) -> int:
        """Tokens the model has seen; 0 for an empty layer."""
        if not self.held:
            return 0
        return self.held + self.evicted + (0 if self.kept is None else self.kept.prompt - self.kept.slots)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kept, self.evicted = None, 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Follow the beams."""
        super().reorder_cache(beam_idx)
        if self.kept is not None:
            self.kept = self.kept.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        super().batch_repeat_interleave(repeats)
        if self.kept is not None:
            self.kept = self.kept.repeat(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some samples."""
        super().batch_select_indices(indices)
        if self.kept is not None:
            self.kept = self.kept.select(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; UnsupportedError if that reaches into the reduced prompt."""
        super().crop(tokens_to_remove)
        if self.kept is None or not self.is_initialized:
            return
        missing = self.kept.slots - self.held - self.evicted
        if missing > self.kept.candidates:
            raise UnsupportedError(
                "a cache must not be cropped into its reduced prompt",
                place="KV cache",
                remedy="start a new cache, or crop only generated tokens",
            )
        if missing > 0:
            self.kept = self.kept.without_last(missing)


class LogicalSlidingLayer(LogicalDynamicLayer):
    """One whose attention sees the last ``sliding_window`` tokens and lets go of what no later token can see.

    In the prompt, the tokens that are held lie at least as far apart as here. So all that a later token can see is
    among the last ``sliding_window - 1`` that are held, whatever was dropped; the window itself is in the mask.
    """

    def __init__(self, sliding_window: int, record_past: bool = False) -> None:
        super().__init__()
        self.keys: torch.Tensor
        self.values: torch.Tensor
        self.sliding_window, self.record_past = sliding_window, record_past

    def activate_past_recording(self) -> None:
        """Hold everything until the next crop, which may take tokens back."""
        self.record_past = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens; returns the keys and values of all that were held, and theirs."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if not self.record_past:
            self._evict()
        return keys, values

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; UnsupportedError if older ones that would be seen again are gone."""
        if tokens_to_remove and self.evicted and not self.record_past:
            raise UnsupportedError(
                "a cache that is to be cropped must record its past where a window slides",
                place="KV cache",
                remedy="call activate_past_recording() on it before the tokens that may be taken back",
            )
        super().crop(tokens_to_remove)
        self._evict()

    def _evict(self) -> None:
        surplus = self.held - max(self.sliding_window - 1, 1)
        if surplus <= 0:
            return
        self.evicted += surplus
        keys, values = self.keys[:, :, surplus:], self.values[:, :, surplus:]
        if surplus > 1:  # after a prefill; a slice would keep all of its memory
            keys, values = keys.contiguous(), values.contiguous()
        self.keys, self.values = keys, values


_SERVED_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, LogicalDynamicLayer, LogicalSlidingLayer)


def check_cache(cache: Any) -> None:
    """UnsupportedError for a cache that cannot hold a different number of tokens in each layer; None is no cache."""
    if cache is None:
        return
    served = type(cache) is DynamicCache and not cache.offloading
    if served and all(type(layer) in _SERVED_LAYERS for layer in cache.layers):
        return
    kind = "offloaded" if getattr(cache, "offloading", False) else type(cache).__name__
    raise UnsupportedError(
        "the KV cache must be a plain DynamicCache, since layers hold different numbers of tokens",
        actual=kind,
        remedy="do not pass cache_implementation, or pass past_key_values=DynamicCache(config=model.config)",
    )


def sliding_layers(config: Any) -> tuple[int, ...]:
    """Decoder layers (0-based) whose cache lets go of what is behind a window."""
    layers = DynamicCache(config=config).layers
    return tuple(index for index, layer in enumerate(layers) if isinstance(layer, DynamicSlidingWindowLayer))


def prepare_cache(cache: Cache | None, layers: int) -> None:
    """Give an empty cache layers that can hold fewer tokens than they report.

    Sliding layers are replaced too: they report a window's length, and masks are then made for that many tokens.
    """
    if cache is not None:
        old = [*cache.layers, *[None] * (layers - len(cache.layers))]
        cache.layers = [_logical(layer) for layer in old]


def _logical(layer: Any) -> LogicalDynamicLayer:
    if isinstance(layer, DynamicSlidingWindowLayer | LogicalSlidingLayer):
        return LogicalSlidingLayer(layer.sliding_window, layer.record_past)
    return LogicalDynamicLayer()


def cache_bytes(cache: Cache | None, layers: int) -> tuple[int, ...]:
    """Bytes of keys and values that each layer holds, 0 without a cache."""
    if cache is None:
        return (0,) * layers
    return tuple(_layer_bytes(layer) for layer in cache.layers)


def _layer_bytes(layer: Any) -> int:
    if not layer.is_initialized:
        return 0
    return sum(int(states.numel() * states.element_size()) for states in (layer.keys, layer.values))
