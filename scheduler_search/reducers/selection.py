"""The choice that all rules share: the promised number of tokens, the least redundant first."""

from __future__ import annotations

import torch


def least_redundant(redundancy: torch.Tensor, vision: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Mark the ``keep[b]`` vision tokens of each sample with the lowest redundancy.

    Ties go to the earlier token, so that equal scores give equal choices on every device and in every batch. A NaN is
    taken as most redundant: the count stays exact.

    Args:
        redundancy: [B, S] float; higher goes first.
        vision: [B, S] bool, the tokens to choose from.
        keep: [B] int64, at most the number of vision tokens of the sample.

    Returns:
        [B, S] bool with exactly ``keep[b]`` True in row b, all of them in ``vision``.
    """
    return vision & (places(least_redundant_first(redundancy, vision)) < keep[:, None])


def least_redundant_first(redundancy: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
    """Slots [B, S] in the order in which they are kept: vision tokens first, ties to the earlier, NaN as the worst."""
    worst = torch.finfo(redundancy.dtype).max
    finite = torch.nan_to_num(redundancy, nan=worst, posinf=worst)
    return finite.masked_fill(~vision, float("inf")).argsort(dim=1, stable=True)


def places(order: torch.Tensor) -> torch.Tensor:
    """Place of each slot in an ``order`` [B, S] of all slots."""
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
