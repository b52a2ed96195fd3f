"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, and videos whose frames are pooled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler_search.runtime.families.llava_next import LlavaNext
from scheduler_search.runtime.families.packed import plain_fields


class LlavaNextVideo(LlavaNext):
    """``LlavaNextVideoForConditionalGeneration``. Frames are counted like the tiles of a picture."""

    architecture = "LlavaNextVideoForConditionalGeneration"
    model_type = "llava_next_video"

    def own_fields(self, config: Any) -> Mapping[str, object]:
        """As LLaVA-NeXT, and how frames are pooled."""
        return {**super().own_fields(config), **plain_fields(config, "spatial_pool_mode", "spatial_pool_stride")}
