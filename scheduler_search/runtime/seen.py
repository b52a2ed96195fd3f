"""What a rule reads of one attention layer: taken while the layer runs, kept until the reduction behind it.

Knows: queries, keys and mask of one attention call, and the rows that are asked for. Does not know: which layer it is,
or where the rows come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from scheduler_search.reducers import AttentionRows
from scheduler_search.reducers.attention import Options, attention_matrix, attention_scores
from scheduler_search.rule import Reads
from scheduler_search.runtime.layout import to_device
from scheduler_search.runtime.tap import AttentionInputs


@dataclass(frozen=True)
class Seen:
    """The views of ``Tokens`` that come from attention, and its ``features``: see there."""

    attention: torch.Tensor | None = None
    rows: AttentionRows | None = None
    keys: torch.Tensor | None = None
    features: torch.Tensor | None = None

    def to(self, device: torch.device) -> Seen:
        """The same on a device; tensors that are there already are shared."""
        rows = self.rows
        if rows is not None:
            rows = AttentionRows(rows.values.to(device), rows.slots.to(device), rows.weights.to(device))
        return Seen(
            to_device(self.attention, device), rows, to_device(self.keys, device), to_device(self.features, device)
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that is held."""
        rows = () if self.rows is None else (self.rows.values, self.rows.slots, self.rows.weights)
        return tuple(one for one in (self.attention, *rows, self.keys, self.features) if one is not None)


def look(
    reads: Reads, inputs: AttentionInputs, rows: torch.Tensor, weights: torch.Tensor, *, padding: bool = False
) -> Seen:
    """What a rule reads of one attention call.

    Args:
        rows: [B, R] int64 slots of the query rows.
        weights: [B, R], summing to 1 per sample, 0 for rows that only fill up.
        padding: whether masks are [B, S] for padding alone, so that a sliding window is not in them.
    """
    seen = Seen(keys=inputs.key.transpose(1, 2) if reads.keys else None)
    if reads.rows is None:
        return seen
    options = Options(inputs.scaling, reads.heads, inputs.softcap, inputs.window if padding else None)
    if not reads.matrix:
        return replace(seen, attention=attention_scores(inputs.query, inputs.key, inputs.mask, rows, weights, options))
    values = attention_matrix(inputs.query, inputs.key, inputs.mask, rows, options)
    weights = weights.to(values.dtype)
    return replace(
        seen, attention=torch.matmul(weights[:, None], values)[:, 0], rows=AttentionRows(values, rows, weights)
    )
