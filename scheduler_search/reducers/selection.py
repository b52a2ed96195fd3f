"""The choice that all rules share: the promised number of tokens, the least redundant first."""

from __future__ import annotations

from collections.abc import Sequence

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


def resorted(order: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """An ``order`` [B, S] of slots sorted anew by a ``key`` [B, S] of theirs, low first; ties stay as they were."""
    return order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))


def marked_first(marked: torch.Tensor, most: int | None = None) -> torch.Tensor:
    """Slots [B, most] of ``marked`` [B, S] bool, in order, then others: where all rows are looked at together."""
    return (~marked).to(torch.int8).argsort(dim=1, stable=True)[:, :most]


def quantile(values: torch.Tensor, among: torch.Tensor, counts: Sequence[int], share: float) -> torch.Tensor:
    """The ``share`` quantile of each row's values at the slots ``among``, linear between neighbours: [B, S].

    Never above the row's largest value, so that something reaches it. Only the values from the quantile up are sorted.

    Args:
        values: [B, S, T] float.
        among: [B, T] bool.
        counts: how many of ``among`` are True in each sample, known to the host; where none is, the result means
            nothing.
        share: 0 gives the smallest, 1 the largest value.
    """
    last = [max(count - 1, 0) for count in counts]
    # Places from the largest value down; the rounding makes those that are whole numbers on paper whole.
    exact = [round(end * (1.0 - share), 9) for end in last]
    most = min(int(max(exact)) + 2, values.shape[2])
    largest = values.masked_fill(~among[:, None], float("-inf")).topk(most, dim=2).values
    rows = []
    for sample, (place, end) in enumerate(zip(exact, last, strict=True)):
        high, low = largest[sample, :, int(place)], largest[sample, :, min(int(place) + 1, end)]
        rows.append(high + (low - high) * (place - int(place)))
    return torch.stack(rows)


def by_keys(*keys: torch.Tensor) -> torch.Tensor:
    """Redundancy [B, S] in the order of several keys [B, S], the first counting most; higher goes first."""
    order = torch.arange(keys[0].shape[1], device=keys[0].device).expand_as(keys[0])
    for key in reversed(keys):
        order = resorted(order, key)
    return places(order).to(torch.float32)  # exact: there are fewer than 2^24 slots
