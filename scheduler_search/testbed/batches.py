"""Training batches: images of the train split with several questions packed behind each image.

Knows: token layout, the mask that keeps packed questions apart, targets. Does not know: models, losses, optimisers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scheduler_search.testbed.model import PATCHES_PER_SIDE, VISION_TOKENS, pixel_values
from scheduler_search.testbed.questions import CATEGORIES, Asked, sample_question, view
from scheduler_search.testbed.scenes import Scene, draw_scene, random_stream, render
from scheduler_search.testbed.vocabulary import BOS, EOS, GRID, IMAGE, PAD, WORD_IDS

NO_TARGET = -100
PREFIX = 1 + VISION_TOKENS
"""Length of what every row begins with: ``<s>`` and the vision tokens."""
PATCHES_PER_CELL = PATCHES_PER_SIDE // GRID
SPLIT = "train"


@dataclass(frozen=True)
class BatchPlan:
    """What a batch is drawn from: the mixture of categories, the number of objects, and the packing."""

    images: int
    questions: int
    mixture: Mapping[str, float]
    objects: tuple[int, int]
    end_of_answer: bool


@dataclass(frozen=True)
class PackedBatch:
    """B rows of T tokens: ``<s>``, 64 vision tokens, then the questions one behind the other.

    Attributes:
        pixels: float32 [B, 3, 64, 64].
        ids: int64 [B, T].
        positions: int64 [B, T]; every question is placed directly behind the image.
        mask: bool [B, 1, T, T]; true where a row (query) may look at a column (key).
        targets: int64 [B, T]; the next token, NO_TARGET where nothing is asked.
        categories: int64 [B, T]; index into CATEGORIES where an answer is asked, -1 elsewhere.
        empty: float32 [B, 64]; 1 for patches of cells without an object.
    """

    pixels: Tensor
    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    categories: Tensor
    empty: Tensor


@dataclass(frozen=True)
class _Row:
    """Lists of the same length for everything behind the prefix of one image."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    targets: list[int]
    categories: list[int]


def packed_batch(seed: int, step: int, plan: BatchPlan) -> PackedBatch:
    """The batch of one training step: a function of its arguments alone."""
    images, rows, empty = [], [], []
    for number in range(plan.images):
        stream = random_stream(SPLIT, "packed", seed, step, number)
        scene = draw_scene(stream, SPLIT, plan.objects)
        seen = view(scene)
        asked = [sample_question(seen, stream, plan.mixture) for _ in range(plan.questions)]
        images.append(render(scene, stream))
        rows.append(_pack(asked, plan.end_of_answer))
        empty.append(cell_patches(scene) == 0)
    return _collate(images, rows, empty)


def cell_patches(scene: Scene) -> npt.NDArray[np.int64]:
    """[64]: for every patch 1 + the rank of its object in the mapping, 0 where its cell is empty."""
    grid = np.zeros((GRID, GRID), dtype=np.int64)
    for rank, cell in enumerate(scene):
        grid[cell] = rank + 1
    return grid.repeat(PATCHES_PER_CELL, 0).repeat(PATCHES_PER_CELL, 1).reshape(-1)


def _pack(asked: Sequence[tuple[str, Asked]], end_of_answer: bool) -> _Row:
    row = _Row([], [], [], [], [])
    for segment, (category, (words, answer)) in enumerate(asked, start=1):
        ids = [WORD_IDS[word] for word in words]
        targets = [NO_TARGET] * (len(ids) - 1) + [WORD_IDS[answer]]
        categories = [-1] * (len(ids) - 1) + [CATEGORIES.index(category)]
        if end_of_answer:
            ids.append(WORD_IDS[answer])
            targets.append(WORD_IDS[EOS])
            categories.append(-1)
        row.ids.extend(ids)
        row.positions.extend(range(PREFIX, PREFIX + len(ids)))
        row.segments.extend([segment] * len(ids))
        row.targets.extend(targets)
        row.categories.extend(categories)
    return row


def _collate(
    images: Sequence[npt.NDArray[np.uint8]], rows: Sequence[_Row], empty: Sequence[npt.NDArray[np.bool_]]
) -> PackedBatch:
    length = max(len(row.ids) for row in rows)
    prefix_ids = [WORD_IDS[BOS], *[WORD_IDS[IMAGE]] * VISION_TOKENS]
    segments = _table([[0] * PREFIX + row.segments for row in rows], PREFIX + length, -1)
    return PackedBatch(
        pixels=pixel_values(images),
        ids=_table([prefix_ids + row.ids for row in rows], PREFIX + length, WORD_IDS[PAD]),
        positions=_table([[*range(PREFIX), *row.positions] for row in rows], PREFIX + length, 0),
        mask=_segment_mask(segments),
        targets=_table([[NO_TARGET] * PREFIX + row.targets for row in rows], PREFIX + length, NO_TARGET),
        categories=_table([[-1] * PREFIX + row.categories for row in rows], PREFIX + length, -1),
        empty=torch.from_numpy(np.stack(empty)).float(),
    )


def _table(rows: Sequence[list[int]], length: int, filler: int) -> Tensor:
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])


def _segment_mask(segments: Tensor) -> Tensor:
    """Causal, and a token sees only the prefix (segment 0) and its own question."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return (causal & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])))[:, None]
