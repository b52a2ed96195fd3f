"""PruMerge: the tokens that the class token looks at, each with the nearest of the others merged into it."""

from __future__ import annotations

import torch

from scheduler_search.reducers.similarity import cosine
from scheduler_search.reducers.tokens import Tokens, required
from scheduler_search.rule import Rule


def alike_keys(tokens: Tokens, kept: torch.Tensor, rule: Rule) -> torch.Tensor:
    """C [B, S, S]: 1 where a token is among the ``neighbours`` nearest of a kept one, by the cosine of their keys.

    Keys are compared with all their heads side by side. Neighbours are dropped tokens, or any other tokens in the
    published form.
    """
    similarity = cosine(required(tokens.keys, "keys").flatten(2))
    candidates = tokens.vision if rule.text("merge") == "published" else tokens.vision & ~kept
    itself = torch.eye(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    allowed = candidates[:, :, None] & kept[:, None, :] & ~itself
    order = similarity.masked_fill(~allowed, float("-inf")).argsort(dim=1, descending=True, stable=True)
    nearest = torch.zeros_like(allowed).scatter_(1, order[:, : rule.whole("neighbours")], True)
    return (nearest & allowed).to(similarity.dtype)


def by_attention(tokens: Tokens, kept: torch.Tensor, correlation: torch.Tensor, rule: Rule) -> torch.Tensor:
    """W: neighbours enter with their class attention.

    ``average``: the token is one of them, and the weights sum to one; ``published``: the token stays whole, and the
    others are added to it.
    """
    attention = required(tokens.attention, "attention").to(correlation.dtype)
    weights = correlation * attention[:, :, None].masked_fill(correlation == 0, 0.0)
    itself = torch.diag_embed(kept.to(correlation.dtype))
    if rule.text("merge") == "published":
        return weights + itself
    weights = weights + itself * attention[:, :, None].masked_fill(itself == 0, 0.0)
    total = weights.sum(dim=1, keepdim=True)
    # Tokens that nobody looks at, nor at any neighbour, stay as they are.
    return torch.where(total > 0, weights / total.clamp(min=torch.finfo(total.dtype).tiny), itself)
