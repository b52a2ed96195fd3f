"""What one prefill will do, decided on the host before it starts: how many vision tokens each layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler_search.schedule.counts import keep_counts


@dataclass(frozen=True)
class Plan:
    """Keep counts of a batch.

    Args:
        counts: ``counts[layer][sample]`` vision tokens at the input of each decoder layer, 0-based.
        vision_tokens: N of each sample.
    """

    counts: tuple[tuple[int, ...], ...]
    vision_tokens: tuple[int, ...]

    @classmethod
    def of(cls, keep_rates: Sequence[float], vision_tokens: tuple[int, ...]) -> Plan:
        """The plan for a batch whose samples have ``vision_tokens``."""
        per_size = {size: keep_counts(keep_rates, size) for size in set(vision_tokens)}
        counts = zip(*(per_size[size] for size in vision_tokens), strict=True)
        return cls(tuple(counts), vision_tokens)

    def before(self, layer: int) -> tuple[int, ...]:
        """Vision tokens that arrive at a layer, before its own reduction."""
        return self.counts[layer - 1] if layer else self.vision_tokens

    def reduces_at(self, layer: int) -> bool:
        """Whether any sample loses tokens in front of this layer."""
        return 0 <= layer < len(self.counts) and self.counts[layer] != self.before(layer)

    def chooses_at(self, layer: int) -> bool:
        """Whether some sample loses some but not all tokens there: only then does a ranking matter."""
        if not self.reduces_at(layer):
            return False
        return any(0 < kept < present for kept, present in zip(self.counts[layer], self.before(layer), strict=True))

    @property
    def reduces(self) -> bool:
        """Whether anything is dropped at all."""
        return bool(self.counts) and self.counts[-1] != self.vision_tokens
