"""How alike tokens are, and how scores of different scales are brought to one: what several rules share."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def cosine(values: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """Cosine [..., S, T] of ``values`` [..., S, D] with ``others`` [..., T, D], or each other; float32 or better."""
    precise = torch.promote_types(values.dtype, torch.float32)
    directions = F.normalize(values.to(precise), dim=-1)
    towards = directions if others is None else F.normalize(others.to(precise), dim=-1)
    return torch.matmul(directions, towards.mT)


def cosine_to(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Cosine [B, S] of ``values`` [B, S, D] with one vector of each sample, ``reference`` [B, D]; float32 or better."""
    return cosine(values, reference[:, None]).squeeze(-1)


def squared_distances(values: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances [B, S, S] between ``values`` [B, S, D]; float32 or better.

    Symmetric, and zero on the diagonal, to the bit.
    """
    precise = values.to(torch.promote_types(values.dtype, torch.float32))
    products = torch.matmul(precise, precise.transpose(1, 2))
    products = (products + products.transpose(1, 2)) / 2
    lengths = products.diagonal(dim1=1, dim2=2)
    return (lengths[:, :, None] + lengths[:, None, :] - 2 * products).clamp(min=0)


def min_max(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """``values`` [B, S] of the slots ``among`` [B, S] bool brought to 0..1 in each sample; 0 where all are equal.

    Other slots get 0.
    """
    low = values.masked_fill(~among, float("inf")).amin(dim=1, keepdim=True)
    high = values.masked_fill(~among, float("-inf")).amax(dim=1, keepdim=True)
    span = (high - low).clamp(min=torch.finfo(values.dtype).tiny)
    return torch.where(among, (values - low) / span, 0.0)
