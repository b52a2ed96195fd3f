"""Shares of several images in one budget: the quota ``per-image``.

The rule is Webster's (Sainte-Lague): every image of N tokens has N seats, the j-th of them (from 0) at (2j + 1) / 2N;
n tokens kept are the first n seats of all images in that order, equal seats to the earlier image. So an image's share
is n N / (sum of all N), rounded at a threshold that all images share, the total is exact, and fewer tokens are always a
subset: dropping one more takes it from one image and gives nothing to another. The largest-remainder rule has no such
property with three or more images (the Alabama paradox): its shares could grow from one layer to a later one.

Within an image, the least redundant tokens sit on the first seats. Should a rule at another place have left an image
fewer tokens than its share, the next seats of the others are taken: the total stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.reducers.selection import least_redundant_first, resorted
from scheduler_search.reducers.tokens import Prompt, Tokens
from scheduler_search.rule import Rule

IntArray = npt.NDArray[np.int64]


def per_image(rule: Rule) -> bool:
    """Whether each image of a sample keeps its share; a rule without the parameter has no quota."""
    return dict(rule.parameters).get("quota") == "per-image"


def seat_places(sizes: Sequence[int]) -> IntArray:
    """Place of every seat in the order in which seats are taken: [sum of sizes], the seats of the first image first."""
    image, value = _seats(sizes)
    places = np.empty(len(value), dtype=np.int64)
    places[np.lexsort((image, value))] = np.arange(len(value))
    return places


def seat_levels(sizes: Sequence[int]) -> IntArray:
    """As ``seat_places``, but equal seats share a place: what decides between them is left open."""
    levels: IntArray = np.unique(_seats(sizes)[1], return_inverse=True)[1]
    return levels


def _seats(sizes: Sequence[int]) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """The image of every seat, and (2j + 1) / 2N."""
    image = np.repeat(np.arange(len(sizes)), sizes)
    seat = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.zeros(0)
    # Two different fractions are further apart than a double's rounding for up to 2^25 tokens; equal ones are equal.
    return image, (2 * seat + 1) / (2 * np.repeat(np.asarray(sizes, dtype=np.int64), sizes))


def image_shares(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """How many of ``count`` tokens each image of ``sizes`` keeps."""
    taken = seat_places(sizes) < count
    borders = np.cumsum([0, *sizes])
    return tuple(int(taken[start:end].sum()) for start, end in pairwise(borders))


def image_runs(vision: npt.NDArray[np.bool_], tokens_per_image: int | None = None) -> IntArray:
    """Which image of its sample a slot belongs to, an image being a maximal run of vision tokens: [B, S], -1 for text.

    Args:
        vision: [B, S] bool.
        tokens_per_image: cuts a run that is that many images without a token between them; None cuts nothing.
    """
    images = np.full(vision.shape, -1, dtype=np.int64)
    for row, marked in enumerate(vision):
        borders = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
        image = 0
        for start, end in borders.reshape(-1, 2):
            length = int(end - start)
            whole = tokens_per_image is not None and length % tokens_per_image == 0
            step = tokens_per_image if whole and tokens_per_image is not None else length
            images[row, start:end] = image + np.arange(length) // step
            image += length // step
    return images


def spread_over_images(redundancy: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Redundancy [B, S] under a quota per image: the place of each token's seat.

    Args:
        redundancy: [B, S] float; within an image, higher goes first.
    """
    prompt, device = tokens.prompt, redundancy.device
    seats = prompt.once((spread_over_images, device), lambda: Seats.of(_images(prompt)).to(device))
    return seats.taken(redundancy, tokens).to(torch.float32)  # exact: there are fewer than 2^24 seats


def _images(prompt: Prompt) -> IntArray:
    if prompt.images is None:
        raise ValueError("a quota per image needs Prompt.images")
    return prompt.images


@dataclass(frozen=True)
class Seats:
    """The seats of a batch, for images or other groups of vision tokens.

    Args:
        group: [B, S0] group of each vision slot of the prompt, -1 for others.
        place: [B, S0] place of each seat in its sample's order; a group's seats lie side by side.
        first: [B, K + 1] first seat of each group in ``place``; the last column is for slots without a group.
    """

    group: torch.Tensor
    place: torch.Tensor
    first: torch.Tensor

    @property
    def groups(self) -> int:
        """K, the largest number of groups of a sample."""
        return self.first.shape[1] - 1

    @classmethod
    def of(cls, groups: IntArray, places: Callable[[Sequence[int]], IntArray] = seat_places) -> Seats:
        """Seats for the ``groups`` [B, S0], from 0, -1 for slots that are in none; ``places`` orders their seats."""
        most = int(groups.max(initial=-1)) + 1
        place = np.zeros(groups.shape, dtype=np.int64)
        first = np.zeros((len(groups), most + 1), dtype=np.int64)
        for sample, row in enumerate(groups):
            sizes = np.bincount(row[row >= 0], minlength=most)
            place[sample, : sizes.sum()] = places(sizes.tolist())
            first[sample, 1:] = np.cumsum(sizes)
        return cls(torch.from_numpy(groups), torch.from_numpy(place), torch.from_numpy(first))

    def to(self, device: torch.device) -> Seats:
        """The same on a device."""
        return Seats(self.group.to(device), self.place.to(device), self.first.to(device))

    def taken(self, redundancy: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """Place [B, S] of each token's seat: within a group, the least redundant sit on the first seats."""
        group = self.group.gather(1, tokens.position).masked_fill(~tokens.vision, self.groups)
        # By group, and by redundancy within.
        order = resorted(least_redundant_first(redundancy, tokens.vision), group)
        ordered = group.gather(1, order)
        present = torch.zeros_like(self.first).scatter_add_(1, group, torch.ones_like(group))
        start = present.cumsum(1) - present
        seat = torch.arange(group.shape[1], device=group.device) - start.gather(1, ordered)
        index = (self.first.gather(1, ordered) + seat).clamp(max=self.place.shape[1] - 1)
        return torch.empty_like(index).scatter_(1, order, self.place.gather(1, index))
