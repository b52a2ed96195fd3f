"""The alignment stage: vision tower and projector learn to say in word embeddings what stands behind every patch.

Knows: the loss of this stage. Does not know: the decoder (it takes no part), questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from scheduler_search.testbed.batches import SPLIT, cell_patches
from scheduler_search.testbed.model import VISION_TOKENS, pixel_values, vision_features
from scheduler_search.testbed.scenes import draw_scene, random_stream, render
from scheduler_search.testbed.vocabulary import CELLS, COLORS, GRID, NONE, SHAPES, WORD_IDS

IMAGES = 64
LEARNING_RATE = 2e-3
WARMUP = 50
CONSTANT_SHARE = 0.6
HEAD_SCALE = 0.3
"""The language-model head starts as the aligned embeddings times this."""

# A patch is told apart by three words: its colour, its shape and the name of its cell.
_CHOICES = ((NONE, *COLORS), (NONE, *SHAPES), CELLS)


@dataclass(frozen=True)
class _AlignmentBatch:
    """pixels [B, 3, 64, 64]; labels: for colour, shape and cell the index of the right word, each [B * 64]."""

    pixels: Tensor
    labels: tuple[Tensor, Tensor, Tensor]


def align(model: LlavaForConditionalGeneration, seed: int, steps: int, say: Callable[[str], None]) -> None:
    """Train vision tower, projector and word embeddings for ``steps`` steps; then set the head from the embeddings."""
    embeddings = model.get_input_embeddings()
    parts = (model.model.vision_tower, model.model.multi_modal_projector, embeddings)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _rate_factor(step, steps)
        loss = _loss(model, embeddings.weight, _batch(seed, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 40 == 39 or step == steps - 1:
            say(f"alignment step {step + 1} loss {loss.item():.3f}")
    with torch.no_grad():
        model.lm_head.weight.copy_(embeddings.weight * HEAD_SCALE)


def _rate_factor(step: int, steps: int) -> float:
    cooling = (steps - step) / (steps * (1 - CONSTANT_SHARE)) if step >= steps * CONSTANT_SHARE else 1.0
    return min(1.0, (step + 1) / WARMUP) * cooling


def _loss(model: LlavaForConditionalGeneration, embeddings: Tensor, batch: _AlignmentBatch) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        features = vision_features(model, batch.pixels)
    flat = features.float().flatten(0, 1)
    loss = torch.zeros(())
    for words, labels in zip(_CHOICES, batch.labels, strict=True):
        candidates = embeddings[torch.tensor([WORD_IDS[word] for word in words])]
        loss = loss + F.cross_entropy(flat @ candidates.T, labels)
    return loss


def _batch(seed: int, step: int) -> _AlignmentBatch:
    images, colors, shapes = [], [], []
    for number in range(IMAGES):
        stream = random_stream(SPLIT, "alignment", seed, step, number)
        scene = draw_scene(stream, SPLIT)
        images.append(render(scene, stream))
        patches = cell_patches(scene)
        things = list(scene.values())
        colors.append(np.array([0, *(1 + list(COLORS).index(color) for color, _ in things)])[patches])
        shapes.append(np.array([0, *(1 + SHAPES.index(shape) for _, shape in things)])[patches])
    cells = cell_patches({(row, column): ("", "") for row in range(GRID) for column in range(GRID)}) - 1
    labels = (np.concatenate(colors), np.concatenate(shapes), np.tile(cells, IMAGES))
    assert all(len(label) == IMAGES * VISION_TOKENS for label in labels)
    first, second, third = (torch.from_numpy(label) for label in labels)
    return _AlignmentBatch(pixel_values(images), (first, second, third))
