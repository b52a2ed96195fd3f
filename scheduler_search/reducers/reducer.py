"""The three stages of a rule, and the driver that runs them.

*filter* gives every vision token a redundancy; the tokens beyond the promised count are the source set S, the others
the targets T. *correlate* gives the matrix C of how much of each source goes into each target. *compress* folds S into
T. Pruning is the rule whose correlate gives nothing and whose compress does nothing (seeds 000 and 002).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from scheduler_search.reducers.selection import least_redundant
from scheduler_search.reducers.tokens import Tokens

QueryRows = Literal["instruction", "last", "all"]
HeadReduction = Literal["mean", "max", "sum"]


@dataclass(frozen=True)
class AttentionQuery:
    """The slice of the previous layer's attention that a rule needs: whose rows, and how heads are combined."""

    rows: QueryRows
    heads: HeadReduction


class Reducer(Protocol):
    """A rule in code. Built from a ``Rule``; holds its parameters and nothing that belongs to a forward pass.

    Attributes:
        attention: the attention that ``filter`` will find in ``Tokens.attention``, or None.
        needs_grids: whether ``Prompt.grids`` must be filled.
        needs_images: whether ``Prompt.images`` must be filled.
        needs_ids: whether the choice depends on ``Prompt.input_ids``, so that embeddings alone do not do.
    """

    attention: AttentionQuery | None
    needs_grids: bool
    needs_images: bool
    needs_ids: bool

    def filter(self, tokens: Tokens, /) -> torch.Tensor:
        """Redundancy [B, S] of each slot, higher goes first; slots that are not vision tokens are ignored."""

    def correlate(self, tokens: Tokens, kept: torch.Tensor, /) -> torch.Tensor | None:
        """C [B, S, S]: ``C[b, s, t]`` is the weight of slot s in slot t. ``kept`` [B, S] bool marks the targets."""

    def compress(self, hidden: torch.Tensor, kept: torch.Tensor, correlation: torch.Tensor, /) -> torch.Tensor:
        """Hidden states [B, S, D] with the sources folded into the ``kept`` [B, S] targets; others as they were."""


class Pruning:
    """The stages of a rule that drops tokens and moves nothing."""

    attention: AttentionQuery | None = None
    needs_grids = False
    needs_images = False
    needs_ids = False

    def correlate(self, _tokens: Tokens, _kept: torch.Tensor, /) -> torch.Tensor | None:
        """No target receives anything."""
        return None

    def compress(self, hidden: torch.Tensor, _kept: torch.Tensor, _correlation: torch.Tensor, /) -> torch.Tensor:
        """``hidden`` itself."""
        return hidden


def fold(hidden: torch.Tensor, kept: torch.Tensor, correlation: torch.Tensor) -> torch.Tensor:
    """Kept slots become the C-weighted sum over all slots: ``out[b, t] = sum_s C[b, s, t] hidden[b, s]``.

    Accumulated in float32 or better, so that averages of bfloat16 states carry no more than one rounding.
    """
    precise = torch.promote_types(hidden.dtype, torch.float32)
    folded = torch.matmul(correlation.to(precise).transpose(1, 2), hidden.to(precise)).to(hidden.dtype)
    return torch.where(kept[..., None], folded, hidden)


def reduce_tokens(reducer: Reducer, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the three stages.

    Returns:
        kept [B, S] bool with exactly ``tokens.counts[b]`` True per row, and the hidden states [B, S, D] after folding.
    """
    kept = least_redundant(reducer.filter(tokens), tokens.vision, tokens.keep)
    correlation = reducer.correlate(tokens, kept)
    if correlation is None:
        return kept, tokens.hidden
    return kept, reducer.compress(tokens.hidden, kept, correlation)
