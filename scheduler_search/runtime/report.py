"""What a prefill did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One decoder layer of the last prefill.

    Args:
        layer: 1-based.
        tokens: slots at the layer's input, fillers and padding included: what the device computed on, per sample.
        vision_tokens: vision tokens of each sample among them.
        kv_bytes: bytes of keys and values the cache held for this layer, all samples; 0 without a cache.
    """

    layer: int
    tokens: int
    vision_tokens: tuple[int, ...]
    kv_bytes: int


@dataclass(frozen=True)
class TowerLayerReport:
    """One layer of the vision tower under a reduction inside it, for each image.

    Args:
        layer: 1-based.
        tokens: slots at the layer's input, class tokens included.
        vision_tokens: patches among them.
    """

    layer: int
    tokens: int
    vision_tokens: int


@dataclass(frozen=True)
class Report:
    """The last prefill under a schedule.

    Args:
        vision_tokens: N of each sample, before any reduction.
        tower: layers of the vision tower; empty where it is whole.
    """

    layers: tuple[LayerReport, ...]
    vision_tokens: tuple[int, ...]
    tower: tuple[TowerLayerReport, ...] = ()

    @property
    def kv_bytes(self) -> int:
        """Bytes of the whole cache."""
        return sum(layer.kv_bytes for layer in self.layers)
