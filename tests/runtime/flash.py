"""The kernels of flash_attention_2 in plain torch, behind the code of transformers that calls them.

Written from the kernels' documentation: [B, S, H, E] or packed [tokens, H, E] with cumulative lengths, causal aligned
to the lower right, a window in tokens that are there, a softcap; a row that sees nothing is zero. All that transformers
does before and after (unpadding, the look at position ids for packed sequences, padding) is its own code.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils as library
from transformers.utils import is_flash_attn_2_available

NAME = "flash_attention_2"
HAS_KERNEL = torch.cuda.is_available() and is_flash_attn_2_available()
# The emulation always runs; the real kernels wherever they are.
KERNELS = ["emulated", *(["kernel"] if HAS_KERNEL else [])]


@dataclass
class Calls:
    """How often each kernel was called, and how long the sequences were."""

    padded: list[tuple[int, int]] = field(default_factory=list)  # of varlen calls: total queries, total keys
    plain: list[tuple[int, int]] = field(default_factory=list)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
) -> torch.Tensor:
    """One sequence: [Q, H, E] and [K, Hkv, E] to [Q, H, E]."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = query.transpose(0, 1), key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = q @ k.permute(1, 2, 0) * (scale or 1 / math.sqrt(q.shape[-1]))
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    rows = torch.arange(q.shape[1], device=q.device)[:, None] + k.shape[0] - q.shape[1]
    columns = torch.arange(k.shape[0], device=q.device)[None, :]
    visible = torch.ones(q.shape[1], k.shape[0], dtype=torch.bool, device=q.device)
    if causal:
        visible &= columns <= rows
    if window[0] >= 0:
        visible &= columns >= rows - window[0]
    if window[1] >= 0 and not causal:
        visible &= columns <= rows + window[1]
    weights = logits.masked_fill(~visible, float("-inf")).softmax(-1).nan_to_num()
    return (weights @ v.transpose(0, 1)).transpose(0, 1)


def _kernels(calls: Calls) -> tuple[Any, Any]:
    def flash_attn_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> torch.Tensor:
        assert not dropout_p
        assert not deterministic
        calls.plain.append((q.shape[1], k.shape[1]))
        rows = zip(q, k, v, strict=True)
        return torch.stack([_attend(*row, softmax_scale, causal, window_size, softcap) for row in rows])

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> torch.Tensor:
        assert not dropout_p
        assert not deterministic
        assert int(cu_seqlens_q.diff().max()) <= int(max_seqlen_q)
        assert int(cu_seqlens_k.diff().max()) <= int(max_seqlen_k)
        calls.padded.append((len(q), len(k)))
        borders = [
            list(zip(part[:-1].tolist(), part[1:].tolist(), strict=True)) for part in (cu_seqlens_q, cu_seqlens_k)
        ]
        return torch.cat(
            [
                _attend(q[a:b], k[c:d], v[c:d], softmax_scale, causal, window_size, softcap)
                for (a, b), (c, d) in zip(*borders, strict=True)
            ]
        )

    return flash_attn_func, flash_attn_varlen_func


@contextlib.contextmanager
def emulated_kernels() -> Iterator[Calls]:
    """Transformers finds these kernels instead of the package flash_attn."""
    calls = Calls()
    kernels = (*_kernels(calls), None, library._pad_input, library._unpad_input)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn"):
            patch.setattr(library, name, None)
        for name in ("_unpad_fn", "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"):
            patch.setattr(library, name, None)
        patch.setattr(library, "_lazy_imports", lambda *_, **__: kernels)
        yield calls


def use_flash(model: Any) -> Any:
    """The model with its decoder on flash attention. Its tower stays as it is: it is not what is tested."""
    model.get_decoder().config._attn_implementation_internal = NAME  # past the check that the package is installed
    return model
