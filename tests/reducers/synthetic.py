"""Random tokens as a rule would see them, built from what it reads: causal attention, keys, sizes, grids, text.

A sample's numbers depend on the sample alone. A batch puts samples side by side, right-aligned, with padding or fillers
in front of them, so that a sample can be looked for at the end of its row whatever stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.reducers import AttentionRows, Grid, Prompt, Text, Tokens
from scheduler_search.reducers.attention import query_rows
from scheduler_search.rule import Place, QueryRows, Reads

IntArray = npt.NDArray[np.int64]

D, HEADS, E, TEXT = 24, 2, 4, 5
_IMAGE = 99


@dataclass(frozen=True)
class Sample:
    """One prompt, or one image in the tower.

    Args:
        grids: its images.
        before: text tokens in front of the first image (a prompt has one token at least); in the tower, whether there
            is a class token.
        after: text tokens behind the last image.
        keep: vision tokens that it keeps, taken modulo what it has.
        reduced: whether an earlier layer has dropped some of its vision tokens already.
        seed: of all its numbers.
    """

    grids: tuple[Grid, ...]
    before: int
    after: int
    keep: int
    reduced: bool
    seed: int


@dataclass(frozen=True)
class Views:
    """What a rule may look at, of one sample without padding: n slots of the prompt, m of them left."""

    ids: IntArray
    vision: npt.NDArray[np.bool_]
    images: IntArray
    left: IntArray
    hidden: torch.Tensor
    attention: torch.Tensor
    rows: IntArray
    keys: torch.Tensor
    sizes: torch.Tensor
    text: torch.Tensor
    features: torch.Tensor
    keep: int


def views_of(sample: Sample, place: Place, reads: Reads) -> Views:
    """The numbers of a sample; attention is [R, m], of the rows that are read alone."""
    draw = np.random.default_rng(sample.seed)
    images = _images(sample, place)
    vision = images >= 0
    n = len(images)
    left = _left(draw, vision) if sample.reduced and place != "entry" else np.arange(n)
    m = len(left)
    rows, attention = _attention(draw, place, reads, images, left)
    return Views(
        ids=np.where(vision, _IMAGE, draw.integers(0, 50, n)),
        vision=vision,
        images=images,
        left=left,
        hidden=torch.from_numpy(draw.standard_normal((m, D))),
        attention=torch.from_numpy(attention),
        rows=rows,
        keys=torch.from_numpy(draw.standard_normal((m, HEADS, E))),
        sizes=torch.from_numpy(np.where(vision[left], draw.integers(1, 4, m), 1).astype(np.float64)),
        text=torch.from_numpy(draw.standard_normal((sample.after, TEXT))),
        features=torch.from_numpy(draw.standard_normal((m, TEXT))),
        keep=sample.keep % (int(vision[left].sum()) + 1),
    )


def _left(draw: np.random.Generator, vision: npt.NDArray[np.bool_]) -> IntArray:
    """What an earlier layer left: two thirds of the vision tokens; the last slot, which others may read, stays."""
    slots = np.flatnonzero(vision[:-1])
    gone = draw.permutation(slots)[: len(slots) // 3]
    return np.delete(np.arange(len(vision)), gone)


def _images(sample: Sample, place: Place) -> IntArray:
    """Which image each slot belongs to, -1 for text and the class token."""
    if place == "vision":
        return np.array([-1] * min(sample.before, 1) + [0] * sample.grids[0].tokens)
    slots = [-1] * sample.before
    for image, grid in enumerate(sample.grids):
        slots += [-1] * (sample.seed % 2 if image else 0) + [image] * grid.tokens
    return np.array(slots + [-1] * sample.after or [-1])


def _attention(
    draw: np.random.Generator, place: Place, reads: Reads, images: IntArray, left: IntArray
) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """The query rows among the m slots that are left, [R], and the softmax of each over what it sees, [R, m]."""
    slots, image = np.arange(len(left)), images[left]
    if place == "decoder":
        rows = _decoder_rows(reads.rows or "last", images >= 0, left)
        visible = slots <= rows[:, None]
    elif place == "vision":  # in the tower, everything of an image sees everything of it
        rows = {"class": slots[:1], "vision": np.flatnonzero(image >= 0)}.get(reads.rows or "class", slots)
        visible = np.ones((len(rows), len(left)), bool)
    else:  # rows of the tower: that of a class token is at its image's first patch, and so is what it pays itself
        rows = np.flatnonzero((image >= 0) & (np.diff(image, prepend=-1) != 0 if reads.rows == "class" else True))
        rows = rows if len(rows) else slots[:1]
        visible = (image[rows, None] == image) & (image >= 0)
    weights = np.exp(2 * draw.standard_normal((len(rows), len(left)))) * visible
    return rows, weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9) * (0.9 if place == "entry" else 1.0)


def _decoder_rows(kind: QueryRows, vision: npt.NDArray[np.bool_], left: IntArray) -> IntArray:
    """As ``runtime.rows`` finds them, among the slots that are left."""
    if kind == "every":
        return np.arange(len(left))
    if kind in ("vision", "last-vision"):
        asked = vision[left]
        rows = np.flatnonzero(asked)[-1 if kind == "last-vision" else 0 :]
    else:
        prompt = Prompt(np.zeros((1, len(vision)), np.int64), np.ones((1, len(vision)), bool), vision[None])
        rows = np.flatnonzero(query_rows(prompt, kind)[0][left])[:: 2 if kind == "raters" else 1]
    return rows if len(rows) else np.array([len(left) - 1])


def tokens_of(samples: Sequence[Sample], place: Place, reads: Reads, pad: int = 0, images: bool = False) -> Tokens:
    """A batch in float64, with ``pad`` slots of padding in front of the longest sample.

    Args:
        images: whether the driver wants to know them for a quota.
    """
    views = [views_of(sample, place, reads) for sample in samples]
    slots = max(len(one.vision) for one in views) + pad
    prompt = _prompt(samples, views, slots, reads, images)
    compact = any(len(one.left) < len(one.vision) for one in views)
    S = max(len(one.left) for one in views) if compact else slots
    offset = [slots - len(one.vision) for one in views]
    position = torch.arange(S).repeat(len(views), 1) if not compact else torch.zeros(len(views), S, dtype=torch.int64)
    vision = torch.zeros(len(views), S, dtype=torch.bool)
    for row, one in enumerate(views):
        position[row, S - len(one.left) :] = torch.from_numpy(one.left) + offset[row]
        vision[row, S - len(one.left) :] = torch.from_numpy(one.vision[one.left])
    keep = tuple(one.keep for one in views)
    rows = _rows(views, S) if reads.rows is not None else None
    text = reads.text  # never left out by the runtime: a sample must see the same alone as in a batch
    return Tokens(
        hidden=_aligned([one.hidden for one in views], S),
        vision=vision,
        position=position,
        attention=None if rows is None else torch.matmul(rows.weights[:, None], rows.values)[:, 0],
        keep=torch.tensor(keep),
        counts=keep,
        prompt=prompt,
        rows=rows if reads.matrix else None,
        keys=_aligned([one.keys for one in views], S) if reads.keys else None,
        sizes=_aligned([one.sizes for one in views], S).clamp(min=1) if reads.sizes else None,
        text=_text(views) if text else None,
        features=_aligned([one.features for one in views], S) if text else None,
    )


def _prompt(samples: Sequence[Sample], views: Sequence[Views], slots: int, reads: Reads, images: bool) -> Prompt:
    """What the rule did not ask for is not there."""
    shape = (len(views), slots)
    ids, belongs = np.zeros(shape, np.int64), np.full(shape, -1)
    real, vision = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, one in enumerate(views):
        start = slots - len(one.vision)
        real[row, start:], vision[row, start:], belongs[row, start:] = True, one.vision, one.images
        if reads.ids:
            ids[row, start:] = one.ids
    return Prompt(
        ids,
        real,
        vision,
        tuple(sample.grids for sample in samples) if reads.grids else (),
        belongs if reads.images or images else None,
    )


def _aligned(parts: Sequence[torch.Tensor], slots: int) -> torch.Tensor:
    """[B, slots, ...] with each part at the end of its row, and in front of it numbers that must not matter."""
    whole = torch.randn(len(parts), slots, *parts[0].shape[1:], dtype=parts[0].dtype)
    for row, part in enumerate(parts):
        whole[row, slots - len(part) :] = part
    return whole


def _rows(views: Sequence[Views], slots: int) -> AttentionRows:
    most = max(len(one.rows) for one in views)
    values = torch.zeros(len(views), most, slots, dtype=torch.float64)
    index = torch.zeros(len(views), most, dtype=torch.int64)
    weights = torch.zeros(len(views), most, dtype=torch.float64)
    for row, one in enumerate(views):
        start = slots - len(one.left)
        asked = np.concatenate([one.rows, np.repeat(one.rows[:1], most - len(one.rows))])
        index[row] = torch.from_numpy(asked) + start
        values[row, :, start:] = one.attention[[*range(len(one.rows)), *[0] * (most - len(one.rows))]]
        weights[row, : len(one.rows)] = 1 / len(one.rows)
    return AttentionRows(values, index, weights)


def _text(views: Sequence[Views]) -> Text:
    most = max(1, *(len(one.text) for one in views))
    values = torch.randn(len(views), most, TEXT, dtype=torch.float64)
    real = torch.zeros(len(views), most, dtype=torch.bool)
    for row, one in enumerate(views):
        values[row, : len(one.text)] = one.text
        real[row, : len(one.text)] = True
    return Text(values, real)


def changed(tokens: Tokens, change: object) -> Tokens:
    """The tokens with ``change`` applied to all their floating-point numbers."""
    assert callable(change)
    rows, text = tokens.rows, tokens.text

    def of(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else change(values)

    if rows is not None:
        rows = AttentionRows(change(rows.values), rows.slots, rows.weights.to(change(rows.weights).dtype))
        attention = torch.matmul(rows.weights[:, None], rows.values)[:, 0]
    else:
        attention = of(tokens.attention)
    return replace(
        tokens,
        hidden=change(tokens.hidden),
        attention=attention,
        rows=rows,
        keys=of(tokens.keys),
        sizes=None if tokens.sizes is None else tokens.sizes.to(change(tokens.sizes).dtype),
        text=None if text is None else Text(change(text.values), text.real),
        features=of(tokens.features),
        prompt=replace(tokens.prompt, _memo={}),
    )
