"""Bipartite soft matching (ToMe): alternate tokens are two sets, and the most similar pairs across them merge.

The class token of a tower takes the first place of the first set, as in the published code, and stays. Each of the
other tokens of that set has one edge, to its most similar token of the second set, so that at most half of the tokens
go in one round; the driver runs more rounds where a schedule asks for more.
"""

from __future__ import annotations

import torch

from scheduler_search.reducers.similarity import cosine
from scheduler_search.reducers.tokens import Tokens, required
from scheduler_search.rule import Rule


def best_edge(tokens: Tokens, _rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: of the first set, how similar the best partner is; the second set goes last."""
    first, second = _sets(tokens)
    return _edges(tokens, first, second).amax(dim=2)


def partners(tokens: Tokens, kept: torch.Tensor, _rule: Rule) -> torch.Tensor:
    """C [B, S, S]: the similarity of a source of the first set to each token of the second, else minus infinity."""
    first, second = _sets(tokens)
    return _edges(tokens, first & ~kept, second & kept)


def _edges(tokens: Tokens, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cosine of the keys' means over heads, minus infinity wherever there is no edge."""
    similarity = tokens.once(_edges, lambda: cosine(required(tokens.keys, "keys").mean(dim=2)))
    return similarity.masked_fill(~(sources[:, :, None] & targets[:, None, :]), float("-inf"))


def _sets(tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """The present vision tokens of the first and of the second set, both [B, S] bool."""
    protected = torch.tensor(tokens.prompt.text_tokens, device=tokens.vision.device)
    place = tokens.vision.cumsum(dim=1) - 1 + protected[:, None]
    even = place % 2 == 0
    return tokens.vision & even, tokens.vision & ~even
