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

    def get_seq_length(self) -> int:
        """Tokens the model has seen; 0 for an empty layer."""
        held = int(super().get_seq_length())
        if not held or self.kept is None:
            return held
        return held + self.kept.prompt - self.kept.slots

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kept = None

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
        missing = self.kept.slots - int(self.keys.shape[-2])
        if missing > self.kept.candidates:
            raise UnsupportedError(
                "a cache must not be cropped into its reduced prompt",
                place="KV cache",
                remedy="start a new cache, or crop only generated tokens",
            )
        if missing > 0:
            self.kept = self.kept.without_last(missing)


_SERVED_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, LogicalDynamicLayer)


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


def prepare_cache(cache: Cache | None, layers: int) -> None:
    """Give an empty cache layers that can hold fewer tokens than they report.

    Sliding layers are replaced too: they evict by the number of tokens they hold, which after a reduction is no longer
    the distance that the window means. The window itself is in the mask, in original positions.
    """
    if cache is not None:
        cache.layers = [LogicalDynamicLayer() for _ in range(layers)]


def cache_bytes(cache: Cache | None, layers: int) -> tuple[int, ...]:
    """Bytes of keys and values that each layer holds, 0 without a cache."""
    if cache is None:
        return (0,) * layers
    return tuple(_layer_bytes(layer) for layer in cache.layers)


def _layer_bytes(layer: Any) -> int:
    if not layer.is_initialized:
        return 0
    return sum(int(states.numel() * states.element_size()) for states in (layer.keys, layer.values))
