"""Ranking by the attention that vision tokens receive (seed 003, section 3.2; FastV and its variants; PyramidDrop).

Only the rows that the rule reads are ever computed: a [query rows x keys] slice, never the S x S matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.reducers.similarity import cosine_to, min_max
from scheduler_search.reducers.tokens import Prompt, Tokens, required
from scheduler_search.rule import HeadReduction, QueryRows, Rule

# 2^26 values are 256 MiB in float32: a prompt of 4,096 tokens with 32 heads is read 512 rows at a time.
_MOST_LOGITS = 1 << 26


def least_attended(tokens: Tokens, _rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: the attention that a token receives, negated."""
    return -required(tokens.attention, "attention")


def most_attended(tokens: Tokens, _rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: the attention that a token receives."""
    return required(tokens.attention, "attention")


def unimportant_or_alike(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: ``alpha`` parts the attention of the last token, negated, and the rest likeness to that token.

    Both are brought to 0..1 among the vision tokens that are left.
    """
    rows, alpha = required(tokens.rows, "rows"), rule.number("alpha")
    last = tokens.hidden[torch.arange(len(tokens.hidden), device=tokens.hidden.device), rows.slots[:, 0]]
    importance = min_max(required(tokens.attention, "attention"), tokens.vision)
    likeness = min_max(cosine_to(tokens.hidden, last), tokens.vision)
    return -(alpha * importance + (1 - alpha) * (1 - likeness))


def last_in_order(tokens: Tokens, _rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: the place in the prompt, so that the first tokens stay."""
    return tokens.position.to(torch.float32)  # exact: there are fewer than 2^24 slots


def query_rows(prompt: Prompt, rows: QueryRows) -> npt.NDArray[np.bool_]:
    """The slots whose attention is read: [B, S0] bool, at least one per sample.

    ``instruction`` is the real text after the last image token, or the last real token where an image ends the prompt;
    ``last`` is the last real token; ``all`` is every real text token; ``last-vision`` and ``vision`` are the last and
    every vision token, ``every`` is every real token. ``raters`` are chosen among ``instruction``.
    """
    text = prompt.asking & ~prompt.vision
    slots = np.arange(prompt.slots)[None, :]
    last = _last(prompt.asking)
    choices: dict[QueryRows, npt.NDArray[np.bool_]] = {
        "all": text,
        "last": slots == last,
        "last-vision": prompt.vision & (slots == _last(prompt.vision)),
        "vision": prompt.vision,
        "every": prompt.asking,
    }
    chosen = choices.get(rows, text & (slots > _last(prompt.vision)))
    found: npt.NDArray[np.bool_] = np.where(chosen.any(axis=1, keepdims=True), chosen, slots == last)
    return found


def text_slots(tokens: Tokens, rows: QueryRows = "all") -> torch.Tensor:
    """The slots [B, S] of the text among the ``query_rows``; of a tower, whose only other token it is, the class token.

    A sample may have none.
    """
    prompt, device = tokens.prompt, tokens.hidden.device
    marked = prompt.once(
        (text_slots, rows, device), lambda: torch.from_numpy(query_rows(prompt, rows) & ~prompt.vision).to(device)
    )
    return marked.gather(1, tokens.position)


def _last(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Last marked slot of each row of [B, S0], -1 where there is none: [B, 1]."""
    last: npt.NDArray[np.int64] = np.where(marked, np.arange(marked.shape[1]), -1).max(axis=1, keepdims=True)
    return last


@dataclass(frozen=True)
class Options:
    """How a layer computes attention, and how its heads are combined.

    Args:
        scaling: factor of the logits.
        softcap: bounds them as in Gemma 2.
        window: keys that a row sees at most, itself included, where the mask does not say so.
    """

    scaling: float
    heads: HeadReduction = "mean"
    softcap: float | None = None
    window: int | None = None


def attention_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    rows: torch.Tensor,
    weights: torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """Softmax attention of a few rows to all keys, heads combined within each row, then rows averaged.

    Args:
        query: [B, H, S, E] after rotary embedding.
        key: [B, Hkv, S, E]; H is a multiple of Hkv.
        mask: as the model's attention gets it: [B or 1, 1, S, S], bool (True is visible) or additive; or [B, S] bool,
            False for padding, under causal attention; None is causal.
        rows: [B, R] int64 slots.
        weights: [B, R], summing to 1 per sample, 0 for rows that only fill up.

    Returns:
        [B, S] in float32 or better.
    """
    weights = weights.to(torch.promote_types(query.dtype, torch.float32))
    sums = [
        _combine(_probabilities(query, key, mask, rows[:, part], options), weights[:, part], options.heads)
        for part in _parts(query, rows)
    ]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)


def attention_matrix(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor, options: Options
) -> torch.Tensor:
    """As ``attention_scores``, each row by itself: [B, R, S]."""
    parts = [
        _heads_combined(_probabilities(query, key, mask, rows[:, part], options), options.heads)
        for part in _parts(query, rows)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _parts(query: torch.Tensor, rows: torch.Tensor) -> list[slice]:
    """The rows in pieces: the logits of all heads are never more than ``_MOST_LOGITS`` values at once."""
    B, H, S, _ = query.shape
    size = max(1, _MOST_LOGITS // (B * H * S))
    return [slice(start, start + size) for start in range(0, rows.shape[1], size)]


def _probabilities(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor, options: Options
) -> torch.Tensor:
    """Softmax attention of the rows, [B, H, R, S]."""
    precise = torch.promote_types(query.dtype, torch.float32)
    logits = _row_logits(query, key, rows, precise, options.scaling)
    if options.softcap is not None:
        logits = torch.tanh(logits / options.softcap) * options.softcap
    return _masked(logits, mask, rows, options.window).softmax(dim=-1)


def _heads_combined(probabilities: torch.Tensor, heads: HeadReduction) -> torch.Tensor:
    """[B, H, R, S] as [B, R, S]."""
    if heads == "max":
        return probabilities.amax(dim=1)
    return probabilities.mean(dim=1) if heads == "mean" else probabilities.sum(dim=1)


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
        return torch.matmul(weights[:, None], _heads_combined(probabilities, heads))[:, 0]
    # The sums over heads and rows are one matrix product, with no [B, R, S] in between.
    B, H, R, S = probabilities.shape
    shares = (weights / H if heads == "mean" else weights)[:, None].expand(B, H, R).reshape(B, 1, H * R)
    return torch.matmul(shares, probabilities.view(B, H * R, S))[:, 0]
