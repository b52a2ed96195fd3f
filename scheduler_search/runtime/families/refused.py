"""Families that a schedule of keep rates cannot serve, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CROSS_ATTENTION = "vision tokens must stand in the prompt, not in cross-attention layers"
_ENCODER = "vision tokens must stand in the decoder's prompt, not in an encoder before it"
_QUERY_TRANSFORMER = "a model must give the decoder its image's patches, not the few outputs of a query transformer"
_RECURRENT = "decoder layers must read tokens by attention alone, not by a recurrence or convolution over all of them"
_STREAMS = "decoder layers must have one stream of hidden states, and keys and values of their own"

# ``config.model_type`` -> the rule that its models break.
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "mllama": _CROSS_ATTENTION,
        "idefics": _CROSS_ATTENTION,
        "florence2": _ENCODER,
        "t5gemma2": _ENCODER,
        "blip-2": _QUERY_TRANSFORMER,
        "instructblip": _QUERY_TRANSFORMER,
        "instructblipvideo": _QUERY_TRANSFORMER,
        "aria": _QUERY_TRANSFORMER,
        "idefics2": _QUERY_TRANSFORMER,
        "kosmos-2": _QUERY_TRANSFORMER,
        "lfm2_vl": _RECURRENT,
        "lfm3_vl": _RECURRENT,
        "minicpmv4_6": _RECURRENT,
        "nemotron_h_omni": _RECURRENT,
        "qwen3_5": _RECURRENT,
        "qwen3_5_moe": _RECURRENT,
        "gemma3n": _STREAMS,
    }
)
