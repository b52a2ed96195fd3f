"""The attention penalty: how much text tokens look at patches on which there is nothing.

Knows: recomputing the text rows of one layer's attention. Does not know: the training loop. This is what makes the
testbed's attention ranking meaningful; it is engineered, and the testbed's README says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from scheduler_search.testbed.batches import PREFIX, PackedBatch
from scheduler_search.testbed.vocabulary import PAD, WORD_IDS


def attention_on_empty_patches(
    decoder: LlamaModel, inputs: Sequence[Tensor], batch: PackedBatch, layers: Sequence[int]
) -> Tensor:
    """Mean attention mass, over heads and text tokens, that falls on empty patches; mean over ``layers``.

    Args:
        decoder: the language model without its head.
        inputs: for every layer (0-based) its input [B, T, hidden].
        batch: says which patches are empty and which tokens may see which.
        layers: 0-based layers to look at.
    """
    text = (batch.ids[:, PREFIX:] != WORD_IDS[PAD]).float()
    total = torch.zeros(())
    for layer in layers:
        weights = text_attention(decoder, layer, inputs[layer], batch)
        on_empty = (weights[..., 1:PREFIX] * batch.empty[:, None, None, :]).sum(-1).mean(1)
        total = total + (on_empty * text).sum() / text.sum() / len(layers)
    return total


def text_attention(decoder: LlamaModel, layer: int, hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Attention probabilities [B, heads, text, T] of the text rows of ``layer`` (0-based), in float32."""
    block = decoder.layers[layer]
    attention = block.self_attn
    normed = block.input_layernorm(hidden)
    shape = (*normed.shape[:2], -1, attention.head_dim)
    query, key = (
        projection(normed).view(shape).transpose(1, 2).float() for projection in (attention.q_proj, attention.k_proj)
    )
    cosine, sine = decoder.rotary_emb(normed.float(), position_ids=batch.positions)
    query, key = apply_rotary_pos_emb(query, key, cosine, sine)
    logits = query[:, :, PREFIX:] @ key.transpose(2, 3) * attention.head_dim**-0.5
    return cast(Tensor, logits.masked_fill(~batch.mask[:, :, PREFIX:], float("-inf")).softmax(-1))
