"""Attention in float32 inside bfloat16 training.

Knows: transformers' registry of attention functions. Does not know: models' layers, training. The CPU kernel's
bfloat16 backward pass takes twice as long as its float32 one, and autocast would choose it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "testbed-float32-sdpa"


def use_float32_attention(model: LlavaForConditionalGeneration) -> None:
    """Let ``model`` attend in float32 whatever autocast says. Checkpoints do not store this choice."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: object
) -> tuple[Tensor, None]:
    # The options are those of transformers' attention interface, passed on as they come.
    with torch.autocast("cpu", enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return output, None
