"""Inattentive tokens fused into one (EViT), by the attention that the tower's class token pays them.

Of n promised tokens the n - 1 most attended stay, and all others become one: their sum, each weighted with its
attention. It takes the slot of the most attended among them. In a later reduction it is a token like the others.
"""

from __future__ import annotations

import torch

from scheduler_search.reducers.selection import least_redundant
from scheduler_search.reducers.tokens import Tokens, required
from scheduler_search.rule import Rule


def inattentive(tokens: Tokens, kept: torch.Tensor, _rule: Rule) -> torch.Tensor:
    """C [B, S, S]: the attention of every token that does not stay, into the slot of the fused one."""
    attention = required(tokens.attention, "attention")
    staying = _staying(tokens)
    fused, parts = kept & ~staying, tokens.vision & ~staying
    return torch.where(parts, attention, 0.0)[:, :, None] * fused[:, None, :]


def fuse(tokens: Tokens, kept: torch.Tensor, correlation: torch.Tensor, rule: Rule) -> torch.Tensor:
    """W: C, divided by its sum where the rule says so; tokens that stay are themselves."""
    if rule.parameter("normalise"):
        tiny = torch.finfo(correlation.dtype).tiny
        correlation = correlation / correlation.sum(dim=1, keepdim=True).clamp(min=tiny)
    return correlation + torch.diag_embed((kept & _staying(tokens)).to(correlation.dtype))


def _staying(tokens: Tokens) -> torch.Tensor:
    """All promised tokens but the last in order, whose slot the fused token takes: [B, S] bool."""
    return least_redundant(-required(tokens.attention, "attention"), tokens.vision, tokens.keep - 1)
