"""What the question says, to compare vision tokens with: the papers take it from the text encoder of CLIP.

With the parameter ``text_features = "clip"``, that is what the runtime gives at the entry: the tokens of CLIP's text
encoder, and patches in the same space (``Tokens.text`` and ``Tokens.features``). Otherwise it is the hidden states of
the instruction in front of the layer of the reduction: at the entry, the decoder's own embeddings, against vision
tokens that the projector brought into their space. The two differ: CLIP was trained to bring text and patches together,
embeddings and projected patches are brought together only by the layers behind them.
"""

from __future__ import annotations

import torch

from scheduler_search.reducers.attention import query_rows, text_slots
from scheduler_search.reducers.selection import marked_first
from scheduler_search.reducers.tokens import Prompt, Text, Tokens


def question(tokens: Tokens) -> Text:
    """``Tokens.text``, or the hidden states of the text after the last image, of all text where there is none.

    Rows that only fill up are zero.
    """
    if tokens.text is not None:
        return tokens.text
    device = tokens.hidden.device
    most, fallback = tokens.prompt.once((question, device), lambda: _counts(tokens.prompt, device))
    asked = torch.where(fallback, text_slots(tokens, "all"), text_slots(tokens, "instruction"))
    slots = marked_first(asked, most)
    real = asked.gather(1, slots)
    values = tokens.hidden.gather(1, slots[..., None].expand(-1, -1, tokens.hidden.shape[2]))
    precise = torch.promote_types(values.dtype, torch.float32)
    return Text(values.to(precise).masked_fill(~real[..., None], 0.0), real)


def compared(tokens: Tokens) -> torch.Tensor:
    """[B, S, E] the side of the vision tokens in that comparison, in float32 or better."""
    values = tokens.hidden if tokens.features is None else tokens.features
    return values.to(torch.promote_types(values.dtype, torch.float32))


def mean_over(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean [B, S] of ``values`` [B, L, S] over the ``real`` [B, L] rows; 0 where there is none."""
    weights = real.to(values.dtype) / real.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.matmul(weights[:, None], values)[:, 0]


def _counts(prompt: Prompt, device: torch.device) -> tuple[int, torch.Tensor]:
    """The most text tokens that a sample is asked about, and which samples [B, 1] have none after their images."""
    instruction = (query_rows(prompt, "instruction") & ~prompt.vision).sum(axis=1)
    everything = (query_rows(prompt, "all") & ~prompt.vision).sum(axis=1)
    fallback = instruction == 0
    most = int((instruction * ~fallback + everything * fallback).max(initial=0))
    return most, torch.from_numpy(fallback[:, None]).to(device)
