"""What one prefill will do, decided on the host before it starts: how many vision tokens each layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler_search.schedule.counts import keep_count, keep_counts
from scheduler_search.schedule.values import Reduction


@dataclass(frozen=True)
class Plan:
    """Keep counts of a batch.

    Args:
        counts: ``counts[layer][sample]`` vision tokens at the input of each decoder layer, 0-based.
        vision_tokens: N of each sample.
        survivors: how many of them a reduction inside the tower, or smaller images, leave; None for all.
    """

    counts: tuple[tuple[int, ...], ...]
    vision_tokens: tuple[int, ...]
    survivors: tuple[int, ...] | None = None

    @classmethod
    def of(cls, keep_rates: Sequence[float], vision_tokens: tuple[int, ...]) -> Plan:
        """The plan for a batch whose samples have ``vision_tokens``."""
        per_size = {size: keep_counts(keep_rates, size) for size in set(vision_tokens)}
        counts = zip(*(per_size[size] for size in vision_tokens), strict=True)
        return cls(tuple(counts), vision_tokens)

    @classmethod
    def under(cls, reduction: Reduction, vision_tokens: tuple[int, ...], patches: int | None) -> Plan:
        """The plan of a reduction that may act in the tower, or on the images in front of it, too.

        A layer with the rate that the tower ends with keeps all that the tower leaves: of several images, that may be
        some tokens more or less than the rate leaves of their sum.

        Args:
            patches: of one image; None where the tower is whole.
        """
        plan = cls.of(reduction.keep_rates, vision_tokens)
        if reduction.image_rate < 1.0:
            return cls(plan.counts, vision_tokens, plan.counts[0])
        if reduction.vision is None or patches is None or reduction.vision.keep_rates[-1] == 1.0:
            return plan
        rate = reduction.vision.keep_rates[-1]
        survivors = tuple(size // patches * keep_count(rate, patches) for size in vision_tokens)
        counts = tuple(
            survivors if own == rate else tuple(map(min, found, survivors))
            for own, found in zip(reduction.keep_rates, plan.counts, strict=True)
        )
        return cls(counts, vision_tokens, None if survivors == vision_tokens else survivors)

    def before(self, layer: int) -> tuple[int, ...]:
        """Vision tokens that arrive at a layer, before its own reduction."""
        if layer:
            return self.counts[layer - 1]
        return self.vision_tokens if self.survivors is None else self.survivors

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
