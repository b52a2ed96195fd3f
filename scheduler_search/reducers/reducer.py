"""The three stages of a rule, and the driver that runs them.

*filter* gives every vision token a redundancy; the tokens beyond the promised count are the source set S, the others
the targets T. *correlate* gives the matrix C of how much of each source could go into each target. *compress* turns C
into weights W, and ``fold`` makes each target the W-weighted sum of all slots. Pruning is the rule that has neither
(seeds 000 and 002). A stage is a pure function; choice and fold are the same for all rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from scheduler_search.reducers.quota import per_image, spread_over_images
from scheduler_search.reducers.selection import least_redundant, marked_first
from scheduler_search.reducers.tokens import Tokens
from scheduler_search.rule import Reads, Rule


class Filter(Protocol):
    """Redundancy [B, S] of each slot, higher goes first; slots that are not vision tokens are ignored."""

    def __call__(self, tokens: Tokens, rule: Rule, /) -> torch.Tensor:
        """Score the tokens."""


class Correlate(Protocol):
    """C [B, S, S]: ``C[b, s, t]`` is how much of slot s could go into slot t; ``kept`` [B, S] marks the targets."""

    def __call__(self, tokens: Tokens, kept: torch.Tensor, rule: Rule, /) -> torch.Tensor:
        """Relate sources to targets."""


class Compress(Protocol):
    """W [B, S, S]: target t becomes the sum of all slots s, each weighted with ``W[b, s, t]``, its own W[b, t, t]."""

    def __call__(self, tokens: Tokens, kept: torch.Tensor, correlation: torch.Tensor, rule: Rule, /) -> torch.Tensor:
        """Weigh what each target receives."""


@dataclass(frozen=True)
class Reducer:
    """A rule at one place in code: its stages, and what they read. Holds nothing that belongs to a forward pass."""

    rule: Rule
    reads: Reads
    filter: Filter
    correlate: Correlate | None = None
    compress: Compress | None = None
    halves: bool = False

    @property
    def per_image(self) -> bool:
        """Whether each image of a sample keeps its share."""
        return per_image(self.rule)


@dataclass(frozen=True)
class Reduced:
    """What a reduction gave, in the slots of before.

    Args:
        kept: [B, S] bool with exactly ``tokens.counts[b]`` True per row.
        hidden: [B, S, D], sources folded into the kept slots; others as they were.
        sizes: [B, S] patches that each kept token stands for; None for rules that do not ask.
    """

    kept: torch.Tensor
    hidden: torch.Tensor
    sizes: torch.Tensor | None = None


def reduce_tokens(reducer: Reducer, tokens: Tokens) -> Reduced:
    """Run the three stages, in as many rounds as the rule needs."""
    before = tokens
    for keep, counts in _rounds(reducer, tokens):
        tokens = _reduce_once(reducer, replace(tokens, keep=keep, counts=counts))
    hidden = tokens.hidden
    if reducer.halves:  # a token may have received in one round what it gave away in the next
        hidden = torch.where(tokens.vision[..., None], hidden, before.hidden)
    return Reduced(tokens.vision, hidden, tokens.sizes)


def _rounds(reducer: Reducer, tokens: Tokens) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
    """What each round keeps: the promised counts at once, or half of what is there until they are reached."""
    if reducer.halves:
        left = tuple(tokens.vision.sum(dim=1).tolist()) if tokens.present is None else tokens.present
        while any(_halved(present) > max(count, 1) for count, present in zip(tokens.counts, left, strict=True)):
            left = tuple(max(count, _halved(present)) for count, present in zip(tokens.counts, left, strict=True))
            yield torch.tensor(left, device=tokens.keep.device), left
    yield tokens.keep, tokens.counts


def _halved(present: int) -> int:
    """What a round can leave of so many tokens; one token is never halved, only dropped."""
    return -(-present // 2)


def _reduce_once(reducer: Reducer, tokens: Tokens) -> Tokens:
    """The tokens after one round, in the slots of before."""
    redundancy = reducer.filter(tokens, reducer.rule)
    if reducer.per_image:
        redundancy = spread_over_images(redundancy, tokens)
    kept = least_redundant(redundancy, tokens.vision, tokens.keep)
    if reducer.correlate is None or reducer.compress is None:
        return replace(tokens, vision=kept)
    correlation = reducer.correlate(tokens, kept, reducer.rule)
    weights = reducer.compress(tokens, kept, correlation, reducer.rule)
    # A sample that keeps all it has has no sources, whatever a rule would weigh.
    targets = kept & (tokens.keep < tokens.vision.sum(dim=1))[:, None]
    most, sizes = max(tokens.counts), tokens.sizes
    return replace(
        tokens,
        vision=kept,
        hidden=fold(tokens.hidden, targets, weights, most),
        keys=None if tokens.keys is None else fold(tokens.keys, targets, weights, most),
        sizes=None if sizes is None else fold(sizes, targets, (weights > 0).to(weights.dtype), most),
    )


def fold(values: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, most: int) -> torch.Tensor:
    """Targets become the weighted sum over all slots: ``out[b, t] = sum_s W[b, s, t] values[b, s]``; others stay.

    Accumulated in float32 or better, so that averages of bfloat16 states carry no more than one rounding. Only the
    columns of targets are multiplied.

    Args:
        values: [B, S, ...].
        targets: [B, S] bool.
        weights: W [B, S, S].
        most: targets of the sample that has most, at most; known to the host.
    """
    precise = torch.promote_types(values.dtype, torch.float32)
    rows = values.reshape(*values.shape[:2], -1)
    slots = marked_first(targets, most)
    columns = weights.gather(2, slots[:, None].expand(-1, weights.shape[1], -1))
    folded = torch.matmul(columns.to(precise).transpose(1, 2), rows.to(precise)).to(values.dtype)
    index = slots[..., None].expand_as(folded)
    folded = torch.where(targets.gather(1, slots)[..., None], folded, rows.gather(1, index))
    return rows.scatter(1, index, folded).view(values.shape)
