"""VisionZip: dominant tokens by class attention, and contextual ones that sum up the rest.

Of n promised tokens, a share are contextual: they are evenly spaced among those that are not dominant (every
floor(rest / contextual)-th, from the first), and each of the others goes into the one whose key is most like its own.
"""

from __future__ import annotations

import torch

from scheduler_search.reducers.compress import into_the_best
from scheduler_search.reducers.groups import Groups, highest, part_of
from scheduler_search.reducers.similarity import cosine
from scheduler_search.reducers.tokens import Tokens, required
from scheduler_search.rule import Rule


def dominant_then_contextual(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: 0 for dominant tokens, 1 for contextual ones, 2 for the others."""
    groups = Groups.of(tokens, rule)
    member, keep = groups.member, groups.keep.flatten()
    contextual = part_of(keep, rule.number("contextual"))
    dominant = tokens.once((_dominant, rule), lambda: _dominant(tokens, groups, rule))
    evenly = _evenly_spaced(member & ~dominant, contextual)
    return groups.gathered(torch.where(dominant, 0.0, torch.where(evenly, 1.0, 2.0)))


def alike_keys(tokens: Tokens, kept: torch.Tensor, rule: Rule) -> torch.Tensor:
    """C [B, S, S]: the cosine of the keys, their mean over heads, to each contextual token; else minus infinity."""
    groups = Groups.of(tokens, rule)
    found = tokens.once((_dominant, rule), lambda: _dominant(tokens, groups, rule))
    dominant = groups.gathered(found) & tokens.vision
    similarity = cosine(required(tokens.keys, "keys").mean(dim=2))
    allowed = groups.together() & ~kept[:, :, None] & (kept & ~dominant)[:, None, :]
    return similarity.masked_fill(~allowed, float("-inf"))


def merged(tokens: Tokens, kept: torch.Tensor, correlation: torch.Tensor, rule: Rule) -> torch.Tensor:
    """W: a contextual token becomes the mean of its group, or itself plus the mean of the others (published code)."""
    weights = into_the_best(tokens, kept, correlation, rule)
    if rule.text("merge") == "average":
        return weights
    others = ((weights > 0) & ~kept[:, :, None]).to(weights.dtype)
    mean = others / others.sum(dim=1, keepdim=True).clamp(min=1.0)
    return mean + torch.diag_embed(kept.to(weights.dtype))


def _dominant(tokens: Tokens, groups: Groups, rule: Rule) -> torch.Tensor:
    """[G, S] bool."""
    keep = groups.keep.flatten()
    attention = groups.spread(required(tokens.attention, "attention"))
    return highest(attention, groups.member, keep - part_of(keep, rule.number("contextual")))


def _evenly_spaced(among: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """``counts`` [G] slots of ``among`` [G, S] bool, every floor(there are / counts)-th from the first."""
    step = (among.sum(dim=1) // counts.clamp(min=1)).clamp(min=1)[:, None]
    place = among.cumsum(dim=1) - 1
    return among & (place % step == 0) & (place // step < counts[:, None])
