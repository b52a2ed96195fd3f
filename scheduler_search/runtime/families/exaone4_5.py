"""EXAONE 4.5: a tower like that of Qwen2.5-VL, and an EXAONE 4 decoder with sliding windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler_search.runtime.families.packed import plain_fields
from scheduler_search.runtime.families.qwen_vl import Qwen25VL


class Exaone45(Qwen25VL):
    """``Exaone4_5_ForConditionalGeneration``. Its tower shares key heads; the arithmetic counts one for each query."""

    architecture = "Exaone4_5_ForConditionalGeneration"
    model_type = "exaone4_5"
    decoders = ("exaone4",)

    def vision_fields(self, vision: Any) -> Mapping[str, object]:
        """With the key heads of the tower."""
        return {**super().vision_fields(vision), **plain_fields(vision, "num_key_value_heads")}
