"""Ranking by the attention that text pays to vision tokens in the layer before (seed 003, section 3.2; FastV).

Only the rows that the rule reads are ever computed: a [query rows x keys] slice, never the S x S matrix.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.reducers.quota import spread_over_images
from scheduler_search.reducers.reducer import AttentionQuery, HeadReduction, Pruning, QueryRows
from scheduler_search.reducers.tokens import Prompt, Tokens
from scheduler_search.rule import Rule


class _ByAttention(Pruning):
    """Keeps the tokens with the most attention in ``Tokens.attention``, of all images or of each."""

    attention: AttentionQuery

    def __init__(self, rule: Rule) -> None:
        self.needs_images = rule.parameter("quota") == "per-image"

    def filter(self, tokens: Tokens, /) -> torch.Tensor:
        """Redundancy [B, S]: the attention, negated; under a quota per image, the place of the token's seat."""
        if tokens.attention is None:
            raise ValueError("a rule that ranks by attention needs Tokens.attention")
        return spread_over_images(-tokens.attention, tokens) if self.needs_images else -tokens.attention


class AttentionRank(_ByAttention):
    """Sort & Reduce: attention averaged over the rule's query rows."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        rows = cast(QueryRows, rule.parameter("query_rows"))
        self.attention = AttentionQuery(rows, cast(HeadReduction, rule.parameter("head_reduction")))


class LastRowRank(_ByAttention):
    """FastV as its published code does it: the attention of the last query row."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self.attention = AttentionQuery("last", cast(HeadReduction, rule.parameter("head_reduction")))


def query_rows(prompt: Prompt, rows: QueryRows) -> npt.NDArray[np.bool_]:
    """The slots whose attention is read: [B, S0] bool, at least one per sample.

    ``instruction`` is the real text after the last image token, or the last real token where an image ends the prompt;
    ``last`` is the last real token; ``all`` is every real text token.
    """
    text = prompt.asking & ~prompt.vision
    slots = np.arange(prompt.slots)[None, :]
    last = _last(prompt.asking)
    chosen: npt.NDArray[np.bool_]
    if rows == "all":
        chosen = text
    elif rows == "last":
        chosen = slots == last
    else:
        chosen = text & (slots > _last(prompt.vision))
    found: npt.NDArray[np.bool_] = np.where(chosen.any(axis=1, keepdims=True), chosen, slots == last)
    return found


def _last(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Last marked slot of each row of [B, S0], -1 where there is none: [B, 1]."""
    last: npt.NDArray[np.int64] = np.where(marked, np.arange(marked.shape[1]), -1).max(axis=1, keepdims=True)
    return last


def attention_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    rows: torch.Tensor,
    weights: torch.Tensor,
    *,
    scaling: float,
    heads: HeadReduction = "mean",
    softcap: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Softmax attention of a few rows to all keys, heads combined within each row, then rows averaged.

    Args:
        query: [B, H, S, E] after rotary embedding.
        key: [B, Hkv, S, E]; H is a multiple of Hkv.
        mask: as the model's attention gets it: [B or 1, 1, S, S], bool (True is visible) or additive; or [B, S] bool,
            False for padding, under causal attention; None is causal.
        rows: [B, R] int64 slots.
        weights: [B, R], summing to 1 per sample, 0 for rows that only fill up.
        scaling: factor of the logits; ``softcap`` bounds them as in Gemma 2.
        window: keys that a row sees at most, itself included, where the mask does not say so.

    Returns:
        [B, S] in float32 or better.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    logits = _row_logits(query, key, rows, precise, scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    probabilities = _masked(logits, mask, rows, window).softmax(dim=-1)
    return _combine(probabilities, weights.to(precise), heads)


def _row_logits(
    query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, precise: torch.dtype, scaling: float
) -> torch.Tensor:
    """Scaled Q K^T of the chosen rows, [B, H, R, S]; key heads are shared by their query heads without copying them."""
    B, H, _, E = query.shape
    R = rows.shape[1]
    # The few rows are scaled, not their many logits. All heads of a token lie side by side: one copy per row.
    samples = torch.arange(B, device=rows.device)[:, None]
    chosen = query.transpose(1, 2)[samples, rows].to(precise) * scaling
    grouped = chosen.transpose(1, 2).reshape(B, key.shape[1], -1, E)
    return torch.matmul(grouped, key.to(precise).transpose(2, 3)).view(B, H, R, -1)


def _masked(logits: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor, window: int | None) -> torch.Tensor:
    """``logits`` [B, H, R, S] with what the mask adds or hides, in place."""
    B, _, R, S = logits.shape
    if mask is None or mask.ndim == 2:
        slots, last = torch.arange(S, device=logits.device)[None, None, :], rows[:, :, None]
        visible = slots <= last if window is None else (slots <= last) & (slots > last - window)
        if mask is not None:
            visible = visible & mask[:, None, :].to(logits.device, torch.bool)
        # Made for one head and added to all: faster than filling all of them.
        bias = torch.full(visible.shape, float("-inf"), dtype=logits.dtype, device=logits.device)
        return logits.add_(bias.masked_fill_(visible, 0.0)[:, None])
    heads = mask.shape[1]
    index = rows[:, None, :, None].expand(B, heads, R, S)
    row_mask = mask[..., :S].expand(B, heads, mask.shape[2], S).gather(2, index)
    if row_mask.dtype == torch.bool:
        return logits.masked_fill_(~row_mask, float("-inf"))
    return logits.add_(row_mask)


def _combine(probabilities: torch.Tensor, weights: torch.Tensor, heads: HeadReduction) -> torch.Tensor:
    """Heads of [B, H, R, S] combined within each row, then rows with ``weights`` [B, R]: [B, S]."""
    if heads == "max":
        return torch.matmul(weights[:, None], probabilities.amax(dim=1))[:, 0]
    # The sums over heads and rows are one matrix product, with no [B, R, S] in between.
    B, H, R, S = probabilities.shape
    shares = (weights / H if heads == "mean" else weights)[:, None].expand(B, H, R).reshape(B, 1, H * R)
    return torch.matmul(shares, probabilities.view(B, H * R, S))[:, 0]
