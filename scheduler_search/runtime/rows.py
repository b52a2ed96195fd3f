"""Where the query rows of a rule are: the tokens whose attention it reads, in the layout of the layer that runs.

Knows: the prompt, what is left of it, and how many vision tokens that is. Does not know: attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from scheduler_search.reducers import Prompt
from scheduler_search.reducers.attention import query_rows
from scheduler_search.reducers.raters import rater_weights
from scheduler_search.reducers.selection import marked_first
from scheduler_search.rule import QueryRows
from scheduler_search.runtime.layout import Kept, gather_tokens

# Rows that are vision tokens: they do not stay.
_OF_VISION: frozenset[QueryRows] = frozenset({"vision", "last-vision", "every"})


class RowReader:
    """Finds the query rows of one prefill."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._text: _TextRows | None = None

    def rate(self, hidden: torch.Tensor) -> None:
        """Choose the raters, for the whole pass, on the embeddings [B, S0, D] in front of the first layer.

        Vision tokens that the tower has dropped, whose features are not numbers, do not count; those that a rule drops
        in front of the first layer do. So a pass that starts from a prefix has the raters of the whole one.
        """
        text = _TextRows.of(self._prompt, "raters").to(hidden.device)
        vision = self._marked("vision", hidden.device) & ~hidden.isnan().any(dim=2)
        slots, shares = _chosen(text.marked, text.weights)
        self._text = replace(text, weights=rater_weights(hidden, vision, slots, shares))

    def at(
        self,
        rows: QueryRows,
        kept: Kept | None,
        vision: torch.Tensor | None,
        counts: Sequence[int],
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots [B, R] of the rows in a layer and their weights [B, R]; R and the weights are known to the host.

        Args:
            kept: the prompt tokens that are left; None for all.
            vision: [B, S] bool, the vision tokens that are left; None for all.
            counts: how many those are.
        """
        if rows in _OF_VISION:
            return self._vision_rows(rows, kept, vision, counts, device)
        if self._text is None:
            assert rows != "raters", "raters are chosen in front of the first layer"
            self._text = _TextRows.of(self._prompt, rows)
        asked = self._text = self._text.to(device)
        if asked.from_end is not None:  # compaction is to the right: they are where they were, seen from the end
            slots = self._prompt.slots if kept is None else kept.slots
            return slots - asked.from_end, asked.weights
        return _chosen(_present(asked.marked, kept), asked.weights)

    def _vision_rows(
        self,
        rows: QueryRows,
        kept: Kept | None,
        vision: torch.Tensor | None,
        counts: Sequence[int],
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``at``, of rows that are dropped on the way, so that each layer has others."""
        left = self._marked("vision", device) if vision is None else vision.to(device)
        if rows == "last-vision":
            slots = torch.arange(left.shape[1], device=device)
            last = torch.where(left, slots, -1).amax(dim=1, keepdim=True)
            return last.clamp(min=0), torch.ones(last.shape, device=device, dtype=torch.float64)
        numbers = np.array(counts, dtype=np.int64)
        if rows == "every":
            left = _present(self._marked("asking", device), kept)
            numbers = numbers + (self._prompt.asking & ~self._prompt.vision).sum(axis=1)
        present = left.sum(dim=1, keepdim=True).clamp(min=1)
        places = torch.arange(max(int(numbers.max()), 1), device=device)
        return _chosen(left, (places < present).to(torch.float64) / present)

    def _marked(self, name: Literal["vision", "asking"], device: torch.device) -> torch.Tensor:
        """One of the prompt's masks [B, S0], on the device once per pass."""
        return self._prompt.once(
            (RowReader, name, device), lambda: torch.from_numpy(getattr(self._prompt, name)).to(device)
        )


def _present(marked: torch.Tensor, kept: Kept | None) -> torch.Tensor:
    """``marked`` [B, S0] bool of the prompt's slots, at the slots that are left."""
    if kept is None:
        return marked
    present = gather_tokens(marked, kept.position, 1)
    return present if kept.valid is None else present & kept.valid.to(present.device)


def _chosen(marked: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The marked slots [B, R] of [B, S], in order, and their weights.

    Where a sample has fewer than R, its first fills up: the row of a padding slot could see nothing at all.
    """
    order = marked_first(marked)
    return torch.where(weights > 0, order[:, : weights.shape[1]], order[:, :1]), weights


@dataclass(frozen=True)
class _TextRows:
    """Where the query rows of a prompt are, of rows that are text.

    Args:
        marked: [B, S0] bool.
        weights: [B, R], 1 / the sample's rows, 0 where it has fewer than R.
        from_end: [B, R] int64, distance of each row from the end of the prompt, its first row filling up; None if
            something behind a row may be squeezed out (vision tokens, right padding), so that it would change.
    """

    marked: torch.Tensor
    weights: torch.Tensor
    from_end: torch.Tensor | None

    @classmethod
    def of(cls, prompt: Prompt, kind: QueryRows) -> _TextRows:
        marked = query_rows(prompt, kind)
        counts = marked.sum(axis=1, keepdims=True)
        weights = (np.arange(counts.max()) < counts) / counts
        order = np.argsort(~marked, axis=1, kind="stable")
        rows = np.where(weights > 0, order[:, : weights.shape[1]], order[:, :1])
        settled = (prompt.real & ~prompt.vision) | (np.arange(prompt.slots) < rows[:, :1])
        from_end = torch.from_numpy(prompt.slots - rows) if settled.all() else None
        return cls(torch.from_numpy(marked), torch.from_numpy(weights), from_end)

    def to(self, device: torch.device) -> _TextRows:
        """The same on a device; itself if it is there."""
        if self.marked.device == device:
            return self
        from_end = None if self.from_end is None else self.from_end.to(device)
        return _TextRows(self.marked.to(device), self.weights.to(device), from_end)
