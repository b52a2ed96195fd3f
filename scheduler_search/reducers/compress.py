"""From how sources relate to targets, to the weights with which they enter them: compress stages that rules share."""

from __future__ import annotations

import torch

from scheduler_search.reducers.tokens import Tokens
from scheduler_search.rule import Rule


def given(_tokens: Tokens, _kept: torch.Tensor, correlation: torch.Tensor, _rule: Rule) -> torch.Tensor:
    """W is C: the correlation has the weights in it, those of the targets in themselves too."""
    return correlation


def averaged(_tokens: Tokens, _kept: torch.Tensor, correlation: torch.Tensor, _rule: Rule) -> torch.Tensor:
    """W is C with the weights into each target, its own among them, brought to sum to one."""
    total = correlation.sum(dim=1, keepdim=True)
    return correlation / total.clamp(min=torch.finfo(total.dtype).tiny)


def into_the_best(tokens: Tokens, kept: torch.Tensor, correlation: torch.Tensor, _rule: Rule) -> torch.Tensor:
    """W: each source goes wholly into the kept token with which it correlates most, the first of equal ones.

    Targets become averages, weighted by sizes where the rule reads them (ToMe), plain otherwise. A source whose C is
    minus infinity for every kept token leaves nothing.
    """
    allowed = correlation.masked_fill(~kept[:, None, :], float("-inf"))
    best = allowed.argmax(dim=2)  # unlike max(dim=2), it promises the first of equal values
    goes_in = tokens.vision & ~kept & (allowed.amax(dim=2) > float("-inf"))
    target = torch.where(goes_in, best, torch.arange(best.shape[1], device=best.device))
    sizes = torch.ones_like(allowed[:, :, 0]) if tokens.sizes is None else tokens.sizes.to(allowed.dtype)
    shares = torch.where(goes_in | kept, sizes, 0.0)
    weights = torch.zeros_like(correlation).scatter_(2, target[..., None], shares[..., None])
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
