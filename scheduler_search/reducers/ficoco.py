"""FiCoCo (seed 000): redundancy by attention, sources shared among the targets they attend to most.

A_{i,j} is the attention that row i pays to column j, heads combined. A causal mask makes it zero for j > i: the local
redundancy of a token counts what it draws from those before it, and a source goes directly only into targets before it.
The paper writes the attention between text and vision as A_{i,k}, from the vision token i to the text token k, which
that mask makes zero; its prose says "the attention weights visual tokens received from textual tokens", and so these
are A_{k,i} here, in the filter as in the correlation by way of the text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.reducers.attention import text_slots
from scheduler_search.reducers.compress import averaged
from scheduler_search.reducers.selection import quantile
from scheduler_search.reducers.tokens import Prompt, Tokens, required
from scheduler_search.reducers.windows import squares
from scheduler_search.rule import Rule


def replaceable_patches(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S] in the tower, eq. 11: what a patch draws from the others, less the class token's attention.

    The highest of each window is then scaled up, so that what is dropped is spread over the image. In a tower without
    a class token, of which the paper does not speak, the mean attention that a patch receives from all patches stands
    for it.
    """
    text = text_slots(tokens)
    from_patches = _received(tokens, tokens.vision) / _present(tokens)
    task = torch.where(text.any(dim=1, keepdim=True), _received(tokens, text), from_patches)
    share = rule.number("lambda")
    scores = share * _drawn(tokens) - (1 - share) * task
    return _spread(scores, tokens, rule.whole("window"), rule.number("penalty"))


def replaceable_in_context(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S] in the decoder, eq. 14: what a token draws from the others, less all that text pays to it."""
    share = rule.number("beta")
    return share * _drawn(tokens) - (1 - share) * _received(tokens, text_slots(tokens))


def direct(tokens: Tokens, _kept: torch.Tensor, _rule: Rule) -> torch.Tensor:
    """C [B, S, S], eq. 12: the attention that the source pays to the target."""
    return required(tokens.rows, "rows").square()


def direct_and_by_text(tokens: Tokens, kept: torch.Tensor, rule: Rule) -> torch.Tensor:
    """C [B, S, S], eq. 15: attention from source to target, and how far the same text tokens attend to both."""
    paid = _paid_by(tokens, text_slots(tokens))
    share = rule.number("gamma")
    return share * direct(tokens, kept, rule) + (1 - share) * torch.matmul(paid.transpose(1, 2), paid)


def shared_by_quantile(tokens: Tokens, kept: torch.Tensor, correlation: torch.Tensor, rule: Rule) -> torch.Tensor:
    """W [B, S, S], eq. 13: a source goes into the targets at or above the ``epsilon`` quantile of its row.

    It is shared among them in proportion to C; a target becomes the average of what it gets and itself, its own weight
    being one. A source that correlates with no target leaves nothing.
    """
    threshold = quantile(correlation, kept, tokens.counts, rule.number("epsilon"))
    sources = tokens.vision & ~kept
    linked = sources[:, :, None] & kept[:, None, :] & (correlation >= threshold[..., None])
    shares = torch.where(linked, correlation, 0.0)
    shares = shares / shares.sum(dim=2, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    return averaged(tokens, kept, shares + torch.diag_embed(kept.to(shares.dtype)), rule)


def _drawn(tokens: Tokens) -> torch.Tensor:
    """The mean over vision tokens j of A_{i,j}: [B, S]."""
    square = required(tokens.rows, "rows").square()
    return (square * tokens.vision[:, None, :]).sum(dim=2) / _present(tokens)


def _received(tokens: Tokens, payers: torch.Tensor) -> torch.Tensor:
    """The sum over the tokens k at ``payers`` [B, S] of A_{k,i}: [B, S]."""
    return _paid_by(tokens, payers).sum(dim=1)


def _paid_by(tokens: Tokens, payers: torch.Tensor) -> torch.Tensor:
    """The rows [B, R, S] of the tokens at ``payers`` [B, S], the others zero."""
    rows = required(tokens.rows, "rows")
    counted = payers.gather(1, rows.slots) & (rows.weights > 0)
    return rows.values * counted[..., None]


def _present(tokens: Tokens) -> torch.Tensor:
    return tokens.vision.sum(dim=1, keepdim=True).clamp(min=1)


# -- local penalty


def _spread(scores: torch.Tensor, tokens: Tokens, window: int, penalty: float) -> torch.Tensor:
    """``scores`` [B, S] with the highest of each window raised: times ``penalty`` if positive, divided if negative."""
    windows = _windows(tokens, window)
    slots = torch.arange(scores.shape[1], device=scores.device).expand_as(windows)
    shape = (len(scores), tokens.prompt.slots + 1)
    masked = scores.masked_fill(~tokens.vision, float("-inf"))
    highest = scores.new_full(shape, float("-inf")).scatter_reduce_(1, windows, masked, "amax")
    top = tokens.vision & (masked == highest.gather(1, windows))
    behind = slots.new_full(shape, scores.shape[1])
    first = behind.scatter_reduce_(1, windows, torch.where(top, slots, scores.shape[1]), "amin")
    raised = torch.where(scores > 0, scores * penalty, scores / penalty)
    return torch.where(first.gather(1, windows) == slots, raised, scores)


def _windows(tokens: Tokens, size: int) -> torch.Tensor:
    """The window [B, S] of each vision token that is left; other slots are in one of their own, the last."""
    prompt, device = tokens.prompt, tokens.hidden.device
    windows = prompt.once(
        (_windows, size, device), lambda: torch.from_numpy(_windows_of_prompt(prompt, size)).to(device)
    )
    return windows.gather(1, tokens.position).masked_fill(~tokens.vision, prompt.slots)


def _windows_of_prompt(prompt: Prompt, size: int) -> npt.NDArray[np.int64]:
    """As ``_windows``, of the slots of the prompt: [B, S0]."""
    windows = np.zeros(prompt.vision.shape, dtype=np.int64)
    for sample, grids in enumerate(prompt.grids):
        windows[sample, prompt.vision[sample]] = squares(grids, size)
    return windows
