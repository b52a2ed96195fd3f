"""LLaVA with a Llama decoder written out in float64, one sample at a time, without padding, hooks, or a KV library.

Takes the weights of a model and nothing else: what attention-rank drops is dropped here by indexing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tests.runtime.tiny import IMAGE


@dataclass
class LayerCache:
    keys: torch.Tensor  # [Hkv, S, E]
    values: torch.Tensor
    positions: torch.Tensor  # [S]


def _weight(layer: Any) -> torch.Tensor:
    return layer.weight.detach().to(torch.float64)


def _normalise(x: torch.Tensor, norm: Any, epsilon: float) -> torch.Tensor:
    return _weight(norm) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


def _rotate(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of [H, S, E]: pairs (i, i + E/2) turn by position * theta^(-2i/E)."""
    width = x.shape[-1]
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
    angle = positions.to(x.dtype)[:, None] * frequencies
    first, second = x[..., : width // 2], x[..., width // 2 :]
    turned = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
    return torch.cat(turned, dim=-1)


class HandLlava:
    def __init__(self, model: Any) -> None:
        self.model, self.language = model, model.model.language_model
        self.config = model.config.text_config
        self.heads, self.shared = self.config.num_attention_heads, self.config.num_key_value_heads
        self.theta = self.config.rope_parameters["rope_theta"]

    def embed(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        hidden = _weight(self.language.embed_tokens)[ids]
        features = self.model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        hidden[ids == IMAGE] = torch.cat(list(features)).to(torch.float64)
        return hidden

    def layer(
        self, layer: Any, x: torch.Tensor, positions: torch.Tensor, past: LayerCache | None
    ) -> tuple[torch.Tensor, torch.Tensor, LayerCache]:
        """Output, attention [H, S, K] and cache of one decoder layer."""
        attention, epsilon = layer.self_attn, self.config.rms_norm_eps
        normed = _normalise(x, layer.input_layernorm, epsilon)
        q, k, v = (
            (normed @ _weight(projection).T).view(len(x), heads, -1).transpose(0, 1)
            for projection, heads in (
                (attention.q_proj, self.heads),
                (attention.k_proj, self.shared),
                (attention.v_proj, self.shared),
            )
        )
        q, k = _rotate(q, positions, self.theta), _rotate(k, positions, self.theta)
        cache = LayerCache(k, v, positions)
        if past is not None:
            cache = LayerCache(
                torch.cat([past.keys, k], 1),
                torch.cat([past.values, v], 1),
                torch.cat([past.positions, positions]),
            )
        groups = self.heads // self.shared
        logits = q @ cache.keys.repeat_interleave(groups, 0).transpose(1, 2) / math.sqrt(q.shape[-1])
        future = cache.positions[None, None, :] > positions[None, :, None]
        weights = logits.masked_fill(future, float("-inf")).softmax(-1)
        mixed = (weights @ cache.values.repeat_interleave(groups, 0)).transpose(0, 1).reshape(len(x), -1)
        x = x + mixed @ _weight(attention.o_proj).T
        normed = _normalise(x, layer.post_attention_layernorm, epsilon)
        gate = normed @ _weight(layer.mlp.gate_proj).T
        inner = gate * torch.sigmoid(gate) * (normed @ _weight(layer.mlp.up_proj).T)
        return x + inner @ _weight(layer.mlp.down_proj).T, weights, cache

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return _normalise(x, self.language.norm, self.config.rms_norm_eps) @ _weight(self.model.lm_head).T

    def generate(
        self, ids: torch.Tensor, pixels: torch.Tensor, rates: Sequence[float], steps: int
    ) -> tuple[list[int], torch.Tensor, list[int]]:
        """Greedy tokens, logits [steps, V], and the lengths of the layers' caches after the prefill."""
        caches, x = self._prefill(ids, pixels, rates)
        lengths = [len(cache.positions) for cache in caches]
        tokens: list[int] = []
        logits: list[torch.Tensor] = []
        for step in range(steps):
            logits.append(self.logits(x[-1]))
            tokens.append(int(logits[-1].argmax()))
            x = _weight(self.language.embed_tokens)[tokens[-1:]]
            for index, layer in enumerate(self.language.layers):
                x, _, caches[index] = self.layer(layer, x, torch.tensor([len(ids) + step]), caches[index])
        return tokens, torch.stack(logits), lengths

    def _prefill(
        self, ids: torch.Tensor, pixels: torch.Tensor, rates: Sequence[float]
    ) -> tuple[list[LayerCache], torch.Tensor]:
        x, left = self.embed(ids, pixels), torch.arange(len(ids))
        vision = ids == IMAGE
        last_image = int(vision.nonzero()[-1])
        caches: list[LayerCache] = []
        weights = torch.empty(0)
        for layer, rate in zip(self.language.layers, rates, strict=True):
            keep = int(rate * int(vision.sum()) + 0.5)
            columns = vision[left].nonzero()[:, 0]
            if keep < len(columns):
                score = weights[:, left > last_image][:, :, columns].mean((0, 1))
                chosen = columns[score.argsort(descending=True)[:keep]]
                stay = torch.cat([(~vision[left]).nonzero()[:, 0], chosen]).sort().values
                x, left = x[stay], left[stay]
            x, weights, cache = self.layer(layer, x, left, None)
            caches.append(cache)
        return caches, x
