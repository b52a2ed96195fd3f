"""Pieces that the families with packed images share: towers for images of any size, and decoders with experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scheduler_search.reducers import Grid
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.parts import decoder_shape, pair
from scheduler_search.schedule.cost import DecoderShape, VisionShape


class PackedFamily(Family):
    """A family whose processor packs the patches of all images, of any size, into one sequence (``image_grid_thw``)."""

    merges = "images are packed into one sequence, and their patches merged"

    def grids(self, config: Any, vision_tokens: int) -> tuple[Grid, ...]:  # noqa: ARG002
        """Refused: as many rows as the image is high."""
        raise self.no_grid(f"{vision_tokens} tokens of images of any height and width")


def packed_tower(
    vision: Any,
    *,
    hidden: int,
    intermediate: int,
    merge: int,
    frames: int = 1,
    gated: bool = False,
    windows: tuple[int | None, ...] = (),
) -> VisionShape:
    """A tower over images of any size; ``merge`` x ``merge`` patches become one vision token, ``frames`` one patch."""
    height, width = pair(vision.patch_size)
    channels = getattr(vision, "in_channels", getattr(vision, "num_channels", 3))
    return VisionShape(
        layers=int(vision.num_hidden_layers),
        hidden=hidden,
        heads=int(vision.num_attention_heads),
        intermediate=intermediate,
        patches=merge**2,
        patch_values=int(channels) * frames * height * width,
        tokens_per_image=1,
        class_tokens=0,
        gated=gated,
        native=True,
        windows=windows,
    )


def plain_fields(config: Any, *names: str) -> dict[str, object]:
    """Configuration values as JSON."""
    values = {name: getattr(config, name) for name in names}
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in values.items()}


def active_decoder(text: Any, widths: list[int]) -> DecoderShape:
    """A decoder with experts: ``widths`` is how wide the MLPs are that one token passes, for each layer.

    The arithmetic has one width for all layers: their mean. What the router costs is not counted.
    """
    return replace(decoder_shape(text), intermediate=round(sum(widths) / len(widths)))
