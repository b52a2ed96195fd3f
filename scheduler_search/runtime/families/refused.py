"""Families that a schedule of keep rates cannot serve, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_QUERY_TRANSFORMER = "a model must give the decoder its image's patches, not the few outputs of a query transformer"

# ``config.model_type`` -> the rule that its models break.
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "mllama": "vision tokens must stand in the prompt, not in cross-attention layers",
        "blip-2": _QUERY_TRANSFORMER,
        "instructblip": _QUERY_TRANSFORMER,
        "instructblipvideo": _QUERY_TRANSFORMER,
    }
)
