"""The lower bound: layers that are given fewer tokens and nothing else, neither ranked nor gathered.

What this misses of the speed-up that FLOPs predict, no implementation on the same machine and kernels can reach: the
kernels are slower per FLOP on fewer tokens, weights are read from memory however few there are, and Python takes its
time for every layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

HookResult = tuple[tuple[torch.Tensor, ...], dict[str, Any]]


@contextlib.contextmanager
def bare_cut(model: Any, tokens: Sequence[int]) -> Iterator[None]:
    """Each decoder layer of the model sees only its first ``tokens[layer]`` tokens: cheap, and of no other use."""
    layers = model.get_decoder().layers
    hooks = [
        layer.register_forward_pre_hook(_Cut(count), with_kwargs=True)
        for layer, count in zip(layers, tokens, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Cut:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(self, _module: Any, args: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> HookResult | None:
        cos, sin = arguments["position_embeddings"]
        if cos.shape[1] <= self.tokens:
            return None
        arguments = {
            **arguments,
            "position_embeddings": (cos[:, : self.tokens], sin[:, : self.tokens]),
            "position_ids": None,
        }
        return (args[0][:, : self.tokens].contiguous(), *args[1:]), arguments
