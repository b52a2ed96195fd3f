"""The modules of a vision tower: of one whose patches are the decoder's vision tokens, one for one and in their order,
and of one whose images can be made smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from scheduler_search.reducers import Grid


@dataclass(frozen=True)
class Tower:
    """A vision tower whose layers take [K, S, D] of K images: class tokens first, then the patches.

    Args:
        module: runs over all images of a batch in one call.
        layers: called with (hidden states, attention mask or None); each has ``self_attn``.
        projector: turns the patches that the tower leaves, [K, n, D], into what the decoder gets for them.
        grid: the patches of one image.
        class_tokens: tokens in front of the patches; the projector does not get them.
        used_layers: how many layers there are in front of the projector; those behind run and are thrown away.
    """

    module: nn.Module
    layers: tuple[nn.Module, ...]
    projector: nn.Module
    grid: Grid
    class_tokens: int
    used_layers: int

    @property
    def patches(self) -> int:
        """P, vision tokens of one image."""
        return self.grid.tokens

    @property
    def attention_modules(self) -> list[nn.Module]:
        """Of each layer."""
        return [layer.self_attn for layer in self.layers]  # type: ignore[misc]

    @property
    def implementation(self) -> str:
        """Name of the attention implementation that the tower runs with now; it may differ from the decoder's."""
        return str(self.module.config._attn_implementation)  # type: ignore[union-attr]


@dataclass(frozen=True)
class ScalableTower:
    """A vision tower over images of any size, whose patches come packed: all of an image, then those of the next.

    Those of an image are in blocks of ``merge`` x ``merge``, one for each vision token; blocks, and patches within one,
    are row by row. A patch is [values, patch, patch] flattened, values being its channels and frames.

    Args:
        module: called with (patches [n, ...], grid_thw [K, 3]); what it gives has one row for each vision token.
        patch: pixels of a patch's side.
        merge: patches of a vision token's side.
    """

    module: nn.Module
    patch: int
    merge: int
