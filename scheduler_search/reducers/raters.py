"""Raters (SparseVLM, arXiv 2410.04417): the tokens of the instruction that have to do with what is in the image.

Chosen once per prompt, on the embeddings in front of the first decoder layer. Knows: tensors of one batch. Does not
know: attention, or at which layers the raters are asked.
"""

from __future__ import annotations

import torch


def rater_weights(hidden: torch.Tensor, vision: torch.Tensor, rows: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The weight of each row: equal among the raters of a sample, zero for its other rows.

    A row's rating is what the softmax over the rows of a vision token's products with them gives it, averaged over the
    vision tokens. Raters are those rated at least the mean; where rounding would leave none, the best.

    Args:
        hidden: [B, S, D].
        vision: [B, S] bool, the vision tokens; others may be anything, also not numbers.
        rows: [B, R] int64 slots to choose among.
        shares: [B, R] 1 / the sample's rows, 0 for rows that only fill up.

    Returns:
        [B, R], summing to 1 per sample, in the type of ``shares``.
    """
    precise = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    samples = torch.arange(len(rows), device=rows.device)[:, None]
    products = torch.matmul(precise, precise[samples, rows].transpose(1, 2)).masked_fill(
        (shares == 0)[:, None], float("-inf")
    )
    ratings = torch.where(vision[..., None], products.softmax(dim=2), 0.0).sum(dim=1)
    ratings = ratings / vision.sum(dim=1, keepdim=True).clamp(min=1)
    best = ratings == ratings.amax(dim=1, keepdim=True)
    raters = (shares > 0) & ((ratings >= shares) | best)
    return raters.to(shares.dtype) / raters.sum(dim=1, keepdim=True)
