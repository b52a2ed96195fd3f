"""DART (arXiv 2502.11494): kept are the tokens that are least like a few pivots, one pivot choosing after the other."""

from __future__ import annotations

import torch

from scheduler_search.reducers.attention import text_slots
from scheduler_search.reducers.selection import least_redundant, least_redundant_first
from scheduler_search.reducers.similarity import cosine
from scheduler_search.reducers.tokens import Tokens, required
from scheduler_search.rule import Rule


def duplicates(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: the turn at which a token is chosen.

    Pivots are the vision tokens and the instruction's tokens with the largest Euclidean norm of their key, all heads
    side by side: unlike the L1 norm, it is the same at every rotary position, and so under any padding. Vision pivots
    are kept. Of the rest of the promise every pivot chooses an equal share, the first ones one more: the tokens with
    the lowest cosine to it that are left, vision pivots first. What nobody chooses comes last, by its mean cosine to
    the pivots.
    """
    pivots, chosen, real = _pivots(tokens, rule)
    likeness = _cosines(tokens, pivots)
    turns = _shares(tokens.keep - chosen.sum(dim=1), real)
    last = len(turns) + 2.0
    mean = (likeness * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)
    redundancy = torch.where(chosen, 0.0, last + mean)
    for turn, share in enumerate(turns):
        taken = least_redundant(likeness[:, turn], tokens.vision & ~chosen, share)
        redundancy = redundancy.masked_fill(taken, turn + 1.0)
        chosen = chosen | taken
    return redundancy


def _pivots(tokens: Tokens, rule: Rule) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots [B, P] of the pivots, vision first; the vision pivots [B, S] bool; and which of P are real [B, P].

    A promise of fewer tokens than vision pivots has as many, and a short instruction is all pivots.
    """
    keys = required(tokens.keys, "keys").flatten(2)
    weakness = -keys.to(torch.promote_types(keys.dtype, torch.float32)).norm(dim=2)
    instruction = text_slots(tokens, "instruction")
    found, real = [], []
    numbers = (tokens.keep, instruction.sum(dim=1))
    names = ("image_pivots", "text_pivots")
    for marked, number, name in zip((tokens.vision, instruction), numbers, names, strict=True):
        order = least_redundant_first(weakness, marked)[:, : rule.whole(name)]
        found.append(order)
        real.append(torch.arange(order.shape[1], device=order.device) < number[:, None])
    chosen = least_redundant(weakness, tokens.vision, tokens.keep.clamp(max=rule.whole("image_pivots")))
    return torch.cat(found, dim=1), chosen, torch.cat(real, dim=1)


def _cosines(tokens: Tokens, pivots: torch.Tensor) -> torch.Tensor:
    """Cosine [B, P, S] of each pivot's hidden state with all."""
    samples = torch.arange(len(pivots), device=pivots.device)[:, None]
    return cosine(tokens.hidden[samples, pivots], tokens.hidden)


def _shares(number: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """``number`` [B] shared among the pivots that are real [B, P], the first of them one more: P of [B]."""
    pivots = real.sum(dim=1).clamp(min=1)
    each, rest = number // pivots, number % pivots
    before = real.cumsum(dim=1) - 1
    shares = (each[:, None] + (before < rest[:, None])) * real
    return shares.unbind(dim=1)
