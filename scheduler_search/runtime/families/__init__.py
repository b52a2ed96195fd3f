"""The model families that can be served: one file for what one family needs, and this registry."""

from __future__ import annotations

from typing import Any

from torch import nn

from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime.families.cohere import AyaVision, Cohere2Vision
from scheduler_search.runtime.families.deepseek_vl import DeepseekVL, Janus
from scheduler_search.runtime.families.exaone4_5 import Exaone45
from scheduler_search.runtime.families.family import Family
from scheduler_search.runtime.families.gemma import Gemma3, Gemma4, PaliGemma
from scheduler_search.runtime.families.glm4v import Glm4v, Glm4vMoe, Glm46V, GlmOcr
from scheduler_search.runtime.families.idefics3 import Idefics3, SmolVLM
from scheduler_search.runtime.families.internvl import InternVL
from scheduler_search.runtime.families.lighton_ocr import LightOnOcr
from scheduler_search.runtime.families.llama4 import Llama4
from scheduler_search.runtime.families.llava import Llava
from scheduler_search.runtime.families.llava_next import LlavaNext, LlavaOnevision
from scheduler_search.runtime.families.llava_next_video import LlavaNextVideo
from scheduler_search.runtime.families.mistral3 import Mistral3
from scheduler_search.runtime.families.ovis2 import Ovis2
from scheduler_search.runtime.families.paddleocr_vl import PaddleOCRVL
from scheduler_search.runtime.families.qwen_vl import Qwen2VL, Qwen3VL, Qwen3VLMoe, Qwen25VL
from scheduler_search.runtime.families.refused import REFUSED
from scheduler_search.runtime.families.video_llama_3 import VideoLlama3
from scheduler_search.runtime.families.vipllava import VipLlava

_FAMILIES: tuple[Family, ...] = (
    AyaVision(),
    Cohere2Vision(),
    DeepseekVL(),
    Exaone45(),
    Gemma3(),
    Gemma4(),
    Glm46V(),
    Glm4v(),
    Glm4vMoe(),
    GlmOcr(),
    Idefics3(),
    InternVL(),
    Janus(),
    LightOnOcr(),
    Llama4(),
    Llava(),
    LlavaNext(),
    LlavaNextVideo(),
    LlavaOnevision(),
    Mistral3(),
    Ovis2(),
    PaddleOCRVL(),
    PaliGemma(),
    Qwen2VL(),
    Qwen25VL(),
    Qwen3VL(),
    Qwen3VLMoe(),
    SmolVLM(),
    VideoLlama3(),
    VipLlava(),
)

__all__ = ["Family", "family_of", "family_of_config"]


def family_of(model: nn.Module) -> Family:
    """The family of a loaded model, by its class; UnsupportedError for an unknown one."""
    name = type(model).__name__
    for family in _FAMILIES:
        if family.architecture == name:
            family.check(model.config)
            return family
    raise _not_served(name, getattr(getattr(model, "config", None), "model_type", None))


def family_of_config(config: Any) -> Family:
    """The family of a configuration, by its model type; UnsupportedError for an unknown one."""
    for family in _FAMILIES:
        if family.model_type == config.model_type:
            family.check(config)
            return family
    raise _not_served(config.model_type, config.model_type)


def _not_served(name: str, model_type: str | None) -> UnsupportedError:
    reason = REFUSED.get(model_type or "")
    if reason is not None:
        remedy = "run it without a schedule, or choose a model whose decoder reads vision tokens in its prompt"
        return UnsupportedError(reason, actual=name, remedy=remedy)
    supported = ", ".join(sorted(family.architecture for family in _FAMILIES))
    return UnsupportedError(
        f"the model must be of a supported architecture ({supported})",
        actual=name,
        remedy="pass the model as from_pretrained returns it, not wrapped or compiled; other families are not served",
    )
