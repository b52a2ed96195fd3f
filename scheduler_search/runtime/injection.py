"""Features that a model adds to its vision tokens between decoder layers (DeepStack), for tokens that are left.

The models index full-length masks into the hidden states; after a reduction those are shorter. So the features are
taken away from the decoder before it starts, and added here to the rows that are still there. Knows: tensors. Does not
know: models, or why a token was dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from scheduler_search.runtime.layout import Kept


@dataclass(frozen=True)
class Injection:
    """Features to add behind decoder layers.

    Args:
        vision: [B, P] bool, the slots that get features, in the order of the features' rows.
        features: layer (0-based) -> [V, D], one row for each marked slot of the batch, added to the layer's output.
    """

    vision: torch.Tensor
    features: Mapping[int, torch.Tensor]

    def add(self, layer: int, hidden: torch.Tensor, kept: Kept | None) -> torch.Tensor:
        """``hidden`` [B, M, D] of a layer's output, with the features of its vision tokens added."""
        features = self.features.get(layer)
        if features is None or not features.shape[0]:
            return hidden
        vision = self.vision.to(hidden.device)
        rows = (vision.flatten().cumsum(0) - 1).clamp(min=0).view(vision.shape)
        if kept is not None:
            position = kept.position.to(hidden.device)
            vision, rows = vision.gather(1, position), rows.gather(1, position)
        if kept is not None and kept.valid is not None:
            vision = vision & kept.valid.to(hidden.device)
        added = hidden + features.to(hidden.device, hidden.dtype)[rows]
        return torch.where(vision[..., None], added, hidden)
