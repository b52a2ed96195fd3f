"""Down-sampling of each image's patch grid to exactly the promised number of tokens.

The regions are those of ``pooling``; what stands for a region is not the mean of its patches, but the grid at the
region's centre: one patch, the mean of two or of four where the centre lies between them (bilinear), or always one
patch, the upper left of them (nearest). Where the sides of the grid are multiples of the sides of the small one, this
is ``torch.nn.functional.interpolate`` without antialiasing.

Where the image itself is made smaller in front of the tower, the same interpolation brings the small grid of its
features to the promised number (``resampling``); each token then has the slot of its region in the grid of before.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from scheduler_search.reducers.pooling import Cut, IntArray, Regions, centre_of, correlation_of, flow, rectangles
from scheduler_search.reducers.tokens import Grid, Tokens
from scheduler_search.rule import Rule


def beside_the_centre(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: 0 for the token that stands for its region, 1 for the others."""
    target, _ = flow(tokens, _cut(rule))
    return (target != torch.arange(target.shape[1], device=target.device)).to(torch.float32)


def interpolated(tokens: Tokens, _kept: torch.Tensor, rule: Rule) -> torch.Tensor:
    """C [B, S, S]: the weights with which patches make up the grid at the centre of their region."""
    return correlation_of(*flow(tokens, _cut(rule)))


def sample_bilinear(grid: Grid, count: int) -> Regions:
    """The patches around the centres of ``count`` regions, 1 <= count <= H W."""
    regions = sample_nearest(grid, count)
    target, size = regions.target.reshape(grid.height, -1), regions.size.reshape(grid.height, -1)
    for rows, columns in rectangles(grid, count):
        middle = _middle(rows), _middle(columns)
        target[middle] = centre_of(grid, rows, columns)
        size[middle] = target[middle].size
    return Regions(target.ravel(), size.ravel())


def sample_nearest(grid: Grid, count: int) -> Regions:
    """The patches at the centres of ``count`` regions, 1 <= count <= H W."""
    target = np.full(grid.tokens, -1, dtype=np.int64)
    for rows, columns in rectangles(grid, count):
        centre = centre_of(grid, rows, columns)
        target[centre] = centre
    return Regions(target, np.ones_like(target))


@dataclass(frozen=True)
class Resampling:
    """How the features of a small grid become n tokens of a large one, in the order of their slots.

    Args:
        cells: [n, 4] cells of the small grid whose mean a token is; fewer are there twice, or four times.
        slots: [n] the token of the large grid in whose place it stands, increasing.
    """

    cells: IntArray
    slots: IntArray


def smaller_grid(grid: Grid, count: int) -> Grid:
    """The smallest grid of at least ``count`` tokens, 1 <= count <= H W, whose sides are the ideal ones, up or down.

    Ideal are the sides of ``count`` tokens in the ratio of the image's sides.
    """
    sides = itertools.product(_around(count * grid.height, grid.width), _around(count * grid.width, grid.height))
    enough = [(height, width) for height, width in sides if height * width >= count]
    height, width = min(enough, key=lambda own: (own[0] * own[1], abs(own[0] * grid.width - own[1] * grid.height)))
    return Grid(height, width)


def _around(numerator: int, denominator: int) -> tuple[int, int]:
    """The whole numbers next to the square root of a fraction, below and above; twice the root if it is whole."""
    below = math.isqrt(numerator // denominator)
    return below, below if below * below * denominator == numerator else below + 1


def resampling(small: Grid, large: Grid, count: int, rule: Rule) -> Resampling:
    """Bring the features of ``small`` to ``count`` tokens, which stand for the regions of ``large`` below theirs.

    Args:
        small: no side longer than that of ``large``.
        count: at most the tokens of ``small``.
    """
    sides = [(*_ends(rows), *_ends(columns)) for rows, columns in rectangles(small, count)] if count else []
    top, bottom, left, right = np.array(sides, dtype=np.int64).reshape(-1, 4).T
    row = _centre(top * large.height // small.height, bottom * large.height // small.height)
    slots = row * large.width + _centre(left * large.width // small.width, right * large.width // small.width)
    up, first = _centre(top, bottom), _centre(left, right)
    down, last = (up, first) if rule.text("interpolation") == "nearest" else ((top + bottom) // 2, (left + right) // 2)
    cells = np.stack([row * small.width + column for row in (up, down) for column in (first, last)], axis=1)
    order = np.argsort(slots)
    return Resampling(cells[order], slots[order])


def _cut(rule: Rule) -> Cut:
    return sample_nearest if rule.text("interpolation") == "nearest" else sample_bilinear


def _ends(side: slice) -> tuple[int, int]:
    return side.start, side.stop


def _centre(start: IntArray, stop: IntArray) -> IntArray:
    """The row or column at the middle of each side, the first of two."""
    return (start + stop - 1) // 2


def _middle(side: slice) -> slice:
    """The one or two patches at the middle of a side."""
    return slice((side.start + side.stop - 1) // 2, (side.start + side.stop) // 2 + 1)
