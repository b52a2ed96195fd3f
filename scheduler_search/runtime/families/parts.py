"""Pieces that several families share: decoders and towers as the cost arithmetic and the config digest see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler_search.reducers import Grid
from scheduler_search.schedule.cost import DecoderShape, VisionShape


def decoder_shape(text: Any) -> DecoderShape:
    """Widths of a decoder with a gated MLP, head count and head width resolved."""
    heads = int(text.num_attention_heads)
    return DecoderShape(
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        heads=heads,
        key_value_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dimension=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        intermediate=int(text.intermediate_size),
    )


def decoder_fields(text: Any) -> Mapping[str, object]:
    """What fixes the tensor shapes of a decoder."""
    shape = decoder_shape(text)
    return {
        "model_type": text.model_type,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_dimension,
        "vocab_size": int(text.vocab_size),
    }


def tower_fields(vision: Any) -> Mapping[str, object]:
    """What fixes the tensor shapes and the patches of a tower with the usual names; sizes are a number or a pair."""
    return {
        "model_type": vision.model_type,
        "hidden_size": int(vision.hidden_size),
        "intermediate_size": int(vision.intermediate_size),
        "num_hidden_layers": int(vision.num_hidden_layers),
        "num_attention_heads": int(vision.num_attention_heads),
        "image_size": plain_size(vision.image_size),
        "patch_size": plain_size(vision.patch_size),
    }


def plain_size(size: Any) -> int | list[int]:
    """A size as JSON: one number for a square, whichever way it was written, else height and width."""
    height, width = pair(size)
    return height if height == width else [height, width]


def pair(size: Any) -> tuple[int, int]:
    """Height and width of a size that is one number or a pair."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def patch_grid(vision: Any) -> Grid:
    """The patches of one image of the size that the tower was configured for."""
    (height, width), (patch_height, patch_width) = pair(vision.image_size), pair(vision.patch_size)
    return Grid(height // patch_height, width // patch_width)


def tower_shape(
    vision: Any,
    tokens_per_image: int,
    *,
    class_tokens: int = 0,
    gated: bool = False,
    pooling_head: bool = False,
    native: bool = False,
) -> VisionShape:
    """Widths of a tower with the usual names over one image, or tile, of its configured size; see VisionShape."""
    patch_height, patch_width = pair(vision.patch_size)
    return VisionShape(
        layers=int(vision.num_hidden_layers),
        hidden=int(vision.hidden_size),
        heads=int(vision.num_attention_heads),
        intermediate=int(vision.intermediate_size),
        patches=patch_grid(vision).tokens,
        patch_values=int(getattr(vision, "num_channels", 3)) * patch_height * patch_width,
        tokens_per_image=tokens_per_image,
        class_tokens=class_tokens,
        gated=gated,
        pooling_head=pooling_head,
        native=native,
    )
