"""Ranking within windows: every window of an image keeps the same share of its tokens (seed 001, Algorithm 3).

A window is a square of the patch grid, cut off where the grid ends, or a run of consecutive vision tokens. Seats are
shared among the windows of a sample as they are among images (``quota``), so that a window's share is in proportion to
its tokens and the promised count is exact. Equal seats, of which not all may be left to take, go to the windows whose
token for that seat is the least redundant: to the earlier windows they would all be at the top of the image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.reducers.attention import least_attended
from scheduler_search.reducers.quota import Seats, seat_levels
from scheduler_search.reducers.selection import least_redundant_first, places, resorted
from scheduler_search.reducers.tokens import Grid, Prompt, Tokens
from scheduler_search.rule import Rule

IntArray = npt.NDArray[np.int64]


def least_attended_of_window(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: the place of each token among all, by its seat in its window and then by attention."""
    redundancy, prompt, device = least_attended(tokens, rule), tokens.prompt, tokens.hidden.device
    seats = prompt.once((least_attended_of_window, rule, device), lambda: _seats(prompt, rule).to(device))
    level = seats.taken(redundancy, tokens)
    order = resorted(least_redundant_first(redundancy, tokens.vision), level)
    return places(order).to(torch.float32)  # exact: there are fewer than 2^24 slots


def _seats(prompt: Prompt, rule: Rule) -> Seats:
    side, square = rule.whole("window"), rule.text("shape") == "square"
    windows = np.full(prompt.vision.shape, -1, dtype=np.int64)
    for sample, vision in enumerate(prompt.vision):
        size = prompt.vision_tokens[sample]
        windows[sample, vision] = squares(prompt.grids[sample], side) if square else np.arange(size) // side**2
    return Seats.of(windows, seat_levels)


def squares(grids: tuple[Grid, ...], side: int) -> IntArray:
    """The window of each token of several images, one after the other: squares of ``side`` patches, row by row.

    Those at the right and lower borders may be smaller.
    """
    windows, first = [np.zeros(0, dtype=np.int64)], 0
    for grid in grids:
        across = -(-grid.width // side)
        rows, columns = np.divmod(np.arange(grid.tokens), grid.width)
        windows.append(first + rows // side * across + columns // side)
        first += across * -(-grid.height // side)
    return np.concatenate(windows)
