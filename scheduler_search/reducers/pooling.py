"""Average pooling of each image's patch grid to exactly the promised number of tokens (baseline of seed 001).

The region scheme, for n regions on an H x W grid: the rows are cut into ``bands`` contiguous bands of near-equal
height, ``bands`` being the whole number nearest to sqrt(n H / W) (square regions) that leaves every band at least one
region and at most W; the n regions are shared near-equally among the bands, and each band's columns near-equally among
its regions. All cuts are ``floor(i * length / parts)``. For n = (H/k)(W/k) this is k x k average pooling; for n = H W
it is the identity. A region's pooled token takes the slot, and so the position, of its central patch (the upper left
one of two or four).

In the decoder, the regions are the same, and what is left of the tokens is pooled: the token nearest to a region's
centre stands for it. Where fewer regions have a token left than are promised, the next tokens by their distance to the
centre stay too, and the others of the region go into the nearest of those that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.reducers.tokens import Grid, Prompt, Tokens
from scheduler_search.rule import Rule

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Regions:
    """A partition of V tokens: ``target`` [V] is the token that stands for each one's region, ``size`` [V] its size.

    ``target`` is -1 for tokens that are dropped without a trace, as those of an image that got no region.
    """

    target: IntArray
    size: IntArray


# How a grid is cut into so many regions.
Cut = Callable[[Grid, int], Regions]


def beside_the_centre(tokens: Tokens, _rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: 0 for the token that stands for its region, 1 for the others."""
    target, _ = flow(tokens, pool_grid)
    return (target != _slots(target)).to(torch.float32)


def region(tokens: Tokens, _kept: torch.Tensor, _rule: Rule) -> torch.Tensor:
    """C [B, S, S]: 1 / (size of the region) from each of its tokens into the one that stands for it."""
    return correlation_of(*flow(tokens, pool_grid))


def beside_the_nearest(tokens: Tokens, _rule: Rule) -> torch.Tensor:
    """Redundancy [B, S] in the decoder: 0 for what stands for its region, else more the further from its centre."""
    region, served = _regions(tokens)
    places = _places(tokens.prompt, tokens.hidden.device)
    own = places.gather(1, tokens.position[..., None].expand(-1, -1, 2))
    distance = (own - places.gather(1, region[..., None].expand(-1, -1, 2))).square().sum(dim=2)
    S = distance.shape[1]
    key = distance * S + _slots(region)  # whole numbers: the nearest, and the first of equally near ones
    left = key.masked_fill(~(tokens.vision & served), torch.iinfo(key.dtype).max)
    nearest = left.new_full((len(left), tokens.prompt.slots), torch.iinfo(key.dtype).max)
    nearest = nearest.scatter_reduce_(1, region, left, "amin")
    stands = tokens.vision & served & (left == nearest.gather(1, region))
    furthest = 1.0 + 2.0 * tokens.prompt.slots**2
    return torch.where(stands, 0.0, 1.0 + distance.to(torch.float64)).masked_fill(~served, furthest)


def nearest_of_region(tokens: Tokens, kept: torch.Tensor, _rule: Rule) -> torch.Tensor:
    """C [B, S, S] in the decoder: how near a kept token of the same region is, else minus infinity."""
    region, served = _regions(tokens)
    places = _places(tokens.prompt, tokens.hidden.device)
    own = places.gather(1, tokens.position[..., None].expand(-1, -1, 2))
    distance = (own[:, :, None] - own[:, None]).square().sum(dim=3).to(torch.float32)
    together = (region[:, :, None] == region[:, None]) & served[:, :, None] & kept[:, None]
    return (-distance).masked_fill(~together, float("-inf"))


def _regions(tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt's slot [B, S] at the centre of each token's region, and which tokens are of an image that has one."""
    target, weight = flow(tokens, pool_grid)
    return target.gather(1, tokens.position), (weight > 0).gather(1, tokens.position)


def _places(prompt: Prompt, device: torch.device) -> torch.Tensor:
    """Row and column [B, S0, 2] of each vision slot in the grid of its image; 0 elsewhere."""
    return prompt.once((_places, device), lambda: torch.from_numpy(_rows_and_columns(prompt)).to(device))


def _rows_and_columns(prompt: Prompt) -> IntArray:
    places = np.zeros((*prompt.vision.shape, 2), dtype=np.int64)
    for sample, grids in enumerate(prompt.grids):
        if grids:
            found = [np.stack(np.divmod(np.arange(grid.tokens), grid.width), axis=1) for grid in grids]
            places[sample, prompt.vision[sample]] = np.concatenate(found)
    return places


def flow(tokens: Tokens, cut: Cut) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each slot of the unreduced prompt goes and with what weight, both [B, S0], when grids are ``cut``."""
    device, precise = tokens.hidden.device, torch.promote_types(tokens.hidden.dtype, torch.float32)

    def laid_out() -> tuple[torch.Tensor, torch.Tensor]:
        target, weight = _flow(tokens.prompt, tokens.counts, cut)
        return torch.from_numpy(target).to(device), torch.from_numpy(weight).to(device, precise)

    return tokens.prompt.once((cut, tokens.counts, device, precise), laid_out)


def correlation_of(target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """C [B, S, S] of a ``flow``."""
    B, S = target.shape
    correlation = torch.zeros(B, S, S, dtype=weight.dtype, device=weight.device)
    return correlation.scatter_(2, target[..., None], weight[..., None])


def _slots(target: torch.Tensor) -> torch.Tensor:
    return torch.arange(target.shape[1], device=target.device)


def _flow(prompt: Prompt, counts: tuple[int, ...], cut: Cut) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Text goes to itself."""
    target = np.tile(np.arange(prompt.slots, dtype=np.int64), (prompt.samples, 1))
    weight = np.ones(prompt.vision.shape, dtype=np.float64)
    for sample, count in enumerate(counts):
        if count == 0:
            continue  # every token goes; which of them stand for a region does not matter
        slots = np.flatnonzero(prompt.vision[sample])
        regions = pool_images(prompt.grids[sample], count, cut)
        dropped = regions.target < 0
        target[sample, slots] = np.where(dropped, np.roll(slots, 1), slots[regions.target])  # anywhere but itself
        weight[sample, slots] = np.where(dropped, 0.0, 1.0 / regions.size)
    return target, weight


def pool_images(grids: tuple[Grid, ...], count: int, cut: Cut | None = None) -> Regions:
    """Partition the tokens of several images, one after the other, into exactly ``count`` regions in all.

    Args:
        cut: how a grid is cut; None for ``pool_grid``.
    """
    targets, sizes, offset = [], [], 0
    for grid, share in zip(grids, share_regions(tuple(grid.tokens for grid in grids), count), strict=True):
        none = Regions(np.full(grid.tokens, -1), np.ones(grid.tokens, np.int64))
        regions = (cut or pool_grid)(grid, share) if share else none
        targets.append(np.where(regions.target < 0, -1, regions.target + offset))
        sizes.append(regions.size)
        offset += grid.tokens
    return Regions(np.concatenate(targets), np.concatenate(sizes))


def share_regions(tokens: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Share ``count`` among images in proportion to their tokens, the sum exact: largest remainder, ties to the first.

    No image gets more than its tokens as long as ``count`` is at most their sum.
    """
    total = sum(tokens)
    shares = [count * size // total for size in tokens]
    remainders = sorted(range(len(tokens)), key=lambda image: -(count * tokens[image] % total))
    for image in remainders[: count - sum(shares)]:
        shares[image] += 1
    return tuple(shares)


def pool_grid(grid: Grid, count: int) -> Regions:
    """Partition one grid into exactly ``count`` rectangles, 1 <= count <= H W; see the module for the scheme."""
    target = np.empty((grid.height, grid.width), dtype=np.int64)
    size = np.empty_like(target)
    for rows, columns in rectangles(grid, count):
        target[rows, columns] = centre_of(grid, rows, columns)
        size[rows, columns] = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Regions(target.ravel(), size.ravel())


def rectangles(grid: Grid, count: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each of the ``count`` regions of one grid."""
    bands = _band_count(grid, count)
    shares = _cuts(count, bands)
    for band, (top, bottom) in enumerate(pairwise(_cuts(grid.height, bands))):
        for left, right in pairwise(_cuts(grid.width, shares[band + 1] - shares[band])):
            yield slice(top, bottom), slice(left, right)


def centre_of(grid: Grid, rows: slice, columns: slice) -> int:
    """The token in the middle of a rectangle, the upper left one of two or four."""
    row, column = ((side.start + side.stop - 1) // 2 for side in (rows, columns))
    return int(row * grid.width + column)


def _band_count(grid: Grid, count: int) -> int:
    """Whole number of bands nearest to square regions, so that each band has between 1 and W regions."""
    square = math.floor(math.sqrt(count * grid.height / grid.width) + 0.5)
    return min(max(square, -(-count // grid.width)), grid.height, count)


def _cuts(length: int, parts: int) -> list[int]:
    """``parts`` contiguous near-equal pieces of ``range(length)``: their parts + 1 borders."""
    return [part * length // parts for part in range(parts + 1)]
