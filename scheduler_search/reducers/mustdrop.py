"""MustDrop: spatial merging in the tower, and the attention that text pays, as a whole and at its peak.

Spatial merging. Each image's grid is cut into square windows, from its upper left corner. A window's similarity is the
mean cosine of all pairs of its tokens; its representative is the token that is most similar to the others on average
(the first of equal ones). The windows merge in the order of their similarity, each into its representative's slot, as
the mean of its tokens, until the promised count is reached; the window at which that happens merges in part, those
tokens first that are most similar to the representative. If every window is one token and that is still too many, the
representatives, with the means of their windows, are the grid of the next level, and so on up to one token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from scheduler_search.reducers.selection import by_keys
from scheduler_search.reducers.similarity import cosine
from scheduler_search.reducers.tokens import Grid, Prompt, Tokens, required
from scheduler_search.rule import Rule


def dual_attention(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: the share of text's attention and its peak over text tokens, the larger of both, negated.

    The paper drops a token where its share of all attention that text pays to vision tokens is below one threshold
    and its peak below another. Both thresholds, in proportion to each other, moved until the count is left: that is the
    order of max(share / ratio, peak).
    """
    rows, attention = required(tokens.rows, "rows"), required(tokens.attention, "attention")
    tiny = torch.finfo(attention.dtype).tiny
    total = attention.masked_fill(~tokens.vision, 0.0).sum(dim=1, keepdim=True).clamp(min=tiny)
    peak = rows.values.masked_fill(~(rows.weights > 0)[..., None], 0.0).amax(dim=1)
    return -torch.maximum(attention / total / rule.number("ratio"), peak)


def window_order(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: later levels go later; then the more similar window, and its more similar tokens, first."""
    merges = _merges(tokens, rule.whole("window"))
    return by_keys(-merges.level, merges.similarity, merges.parent.to(torch.float32), merges.closeness)


def windows(tokens: Tokens, kept: torch.Tensor, rule: Rule) -> torch.Tensor:
    """C [B, S, S]: 0 from each source into the kept token that stands for its window, else minus infinity."""
    merges = _merges(tokens, rule.whole("window"))
    target = merges.parent
    for _ in range(merges.levels):
        target = torch.where(kept.gather(1, target), target, merges.parent.gather(1, target))
    B, S = target.shape
    nowhere = torch.full((B, S, S), float("-inf"), device=target.device)
    return nowhere.scatter_(2, target[..., None], 0.0)


@dataclass(frozen=True)
class _Merges:
    """When and into what each slot merges, all [B, S]; the last token of an image never does.

    Args:
        level: from 0; ``levels`` for what never merges.
        similarity: of its window.
        closeness: to its window's representative.
        parent: slot of that representative.
    """

    levels: int
    level: torch.Tensor
    similarity: torch.Tensor
    closeness: torch.Tensor
    parent: torch.Tensor


@dataclass(frozen=True)
class _Cells:
    """One level of the pyramid: a grid whose cells stand for windows of the level below.

    Args:
        mean: [B, h, w, D] mean of the tokens of each cell.
        number: [B, h, w] how many those are.
        slot: [B, h, w] the slot that stands for the cell.
    """

    mean: torch.Tensor
    number: torch.Tensor
    slot: torch.Tensor


@dataclass(frozen=True)
class _Windows:
    """The cells of one level by window: [B, h, w, K], and for each window its similarity and representative."""

    cells: _Cells
    similarity: torch.Tensor
    closeness: torch.Tensor
    representative: torch.Tensor

    @property
    def merging(self) -> torch.Tensor:
        """Cells with tokens that are not their window's representative."""
        places = torch.arange(self.cells.slot.shape[-1], device=self.representative.device)
        return (self.cells.number > 0) & (places != self.representative)

    def merged(self) -> _Cells:
        """Each window as a cell of the next level."""
        number = self.cells.number.sum(dim=-1)
        total = (self.cells.mean * self.cells.number[..., None]).sum(dim=-2)
        slot = self.cells.slot.gather(-1, self.representative)[..., 0]
        return _Cells(total / number.clamp(min=1)[..., None], number, slot)


def _merges(tokens: Tokens, side: int) -> _Merges:
    """All merges of a pyramid of windows, written at the slots that go."""
    return tokens.once((_merges, side), lambda: _found_merges(tokens, side))


def _found_merges(tokens: Tokens, side: int) -> _Merges:
    B, S = tokens.vision.shape
    device = tokens.hidden.device
    own = torch.arange(S, device=device).expand(B, S)
    found = [torch.zeros(B, S, device=device), torch.zeros(B, S, device=device), torch.zeros(B, S, device=device), own]
    levels = list(_pyramid(_finest(tokens), side))
    found[0] = found[0] + len(levels)
    for level, one in enumerate(levels):
        parent = one.cells.slot.gather(-1, one.representative)
        values = (torch.full_like(one.closeness, level), one.similarity[..., None], one.closeness, parent)
        found = [_written(old, one, new) for old, new in zip(found, values, strict=True)]
    return _Merges(len(levels), *found)


def _written(into: torch.Tensor, at: _Windows, values: torch.Tensor) -> torch.Tensor:
    """``into`` [B, S] with the values of the cells that merge, each at its slot."""
    B, S = into.shape
    slot = torch.where(at.merging, at.cells.slot, S).view(B, -1)  # the others go behind the end
    values = values.expand_as(at.cells.slot).reshape(B, -1).to(into.dtype)
    return F.pad(into, (0, 1)).scatter(1, slot, values)[:, :S]


def _pyramid(cells: _Cells, side: int) -> Iterator[_Windows]:
    while (longest := max(cells.slot.shape[1:])) > 1:
        level = _compared(_cut(cells, min(side, longest)))  # a larger window holds no more
        yield level
        cells = level.merged()


def _cut(cells: _Cells, side: int) -> _Cells:
    """The cells by window: [B, h / side, w / side, side^2, ...]; the last windows may hold empty cells."""
    B, height, width, _ = cells.mean.shape
    rows, columns = -(-height // side), -(-width // side)
    below, right = rows * side - height, columns * side - width

    def cut(values: torch.Tensor) -> torch.Tensor:
        depth = values[..., None] if values.ndim == 3 else values
        padded = F.pad(depth, (0, 0, 0, right, 0, below)).view(B, rows, side, columns, side, -1)
        blocks = padded.transpose(2, 3).reshape(B, rows, columns, side * side, -1)
        return blocks[..., 0] if values.ndim == 3 else blocks

    return _Cells(cut(cells.mean), cut(cells.number), cut(cells.slot))


def _compared(cells: _Cells) -> _Windows:
    """How similar the cells of each window are."""
    present = cells.number > 0
    similarity = cosine(cells.mean)
    similarity = (similarity + similarity.mT) / 2  # exactly symmetric: of two tokens, the first stands for both
    pairs = present[..., None] & present[..., None, :] & ~torch.eye(present.shape[-1], device=present.device).bool()
    to_others = similarity.masked_fill(~pairs, 0.0).sum(dim=-1)
    number = present.sum(dim=-1)
    representative = to_others.masked_fill(~present, float("-inf")).argmax(dim=-1, keepdim=True)
    closeness = similarity.gather(-2, representative[..., None].expand(*representative.shape, present.shape[-1]))
    mean = to_others.sum(dim=-1) / (number * (number - 1)).clamp(min=1)
    return _Windows(cells, mean, closeness[..., 0, :], representative)


def _finest(tokens: Tokens) -> _Cells:
    """The present tokens on the grids of their images, which share one shape: the smallest that holds all."""
    prompt, device = tokens.prompt, tokens.hidden.device
    height, width = _shape(prompt)
    cell = prompt.once((_finest, device), lambda: torch.from_numpy(_cells_of(prompt, width)).to(device))
    B, S, D = tokens.hidden.shape
    present = cell.gather(1, tokens.position).masked_fill(~tokens.vision, height * width)  # others behind the end
    size = height * width + 1
    precise = tokens.hidden.to(torch.promote_types(tokens.hidden.dtype, torch.float32))
    mean = precise.new_zeros(B, size, D).scatter(1, present[..., None].expand(B, S, D), precise)
    number = present.new_zeros(B, size).scatter(1, present, torch.ones_like(present))
    slot = present.new_zeros(B, size).scatter(1, present, torch.arange(S, device=device).expand(B, S))
    return _Cells(*(one[:, :-1].unflatten(1, (height, width)) for one in (mean, number, slot)))


def _shape(prompt: Prompt) -> tuple[int, int]:
    grids = [_only(grids) for grids in prompt.grids]
    return max(grid.height for grid in grids), max(grid.width for grid in grids)


def _cells_of(prompt: Prompt, width: int) -> npt.NDArray[np.int64]:
    """The cell of each vision slot, in grids that are ``width`` wide: [B, S0]."""
    cells = np.zeros(prompt.vision.shape, dtype=np.int64)
    for sample, grids in enumerate(prompt.grids):
        own = _only(grids)
        patch = np.arange(own.tokens)
        cells[sample, prompt.vision[sample]] = patch // own.width * width + patch % own.width
    return cells


def _only(grids: tuple[Grid, ...]) -> Grid:
    """The grid of a sample that is one image, as in a tower."""
    (grid,) = grids
    return grid
