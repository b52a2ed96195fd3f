"""Down-sampling of each image's patch grid to exactly the promised number of tokens.

The regions are those of ``pooling``; what stands for a region is not the mean of its patches, but the grid at the
region's centre: one patch, the mean of two or of four where the centre lies between them (bilinear), or always one
patch, the upper left of them (nearest). Where the sides of the grid are multiples of the sides of the small one, this
is ``torch.nn.functional.interpolate`` without antialiasing.
"""

from __future__ import annotations

import numpy as np
import torch

from scheduler_search.reducers.pooling import Cut, Regions, centre_of, correlation_of, flow, rectangles
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


def _cut(rule: Rule) -> Cut:
    return sample_nearest if rule.text("interpolation") == "nearest" else sample_bilinear


def _middle(side: slice) -> slice:
    """The one or two patches at the middle of a side."""
    return slice((side.start + side.stop - 1) // 2, (side.start + side.stop) // 2 + 1)
