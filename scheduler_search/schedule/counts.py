"""The one rounding rule: how many of N vision tokens a keep rate leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable


def keep_count(rate: float, vision_tokens: int) -> int:
    """``floor(rate * N + 0.5)``, clipped to [0, N] (the design's one rounding rule)."""
    return min(max(math.floor(rate * vision_tokens + 0.5), 0), vision_tokens)


def keep_counts(rates: Iterable[float], vision_tokens: int) -> tuple[int, ...]:
    """Keep counts of one sample with ``vision_tokens`` = N, one per layer."""
    return tuple(keep_count(rate, vision_tokens) for rate in rates)
