"""One tiny model per served family, for the laws in ``tests/runtime/test_families.py``.

A new family is one subclass of ``Builder`` (``builder.py``) in a file of this folder, and one line in BUILDERS.
"""

from tests.runtime.families.builder import SHAPES, Builder
from tests.runtime.families.gemma import (
    Gemma3Builder,
    Gemma4Builder,
    Gemma4MoeBuilder,
    PaliGemma2Builder,
    PaliGemmaBuilder,
)
from tests.runtime.families.llava import LlavaBuilder, VipLlavaBuilder
from tests.runtime.families.merged import Idefics3Builder, InternVLBuilder, Mistral3Builder, SmolVLMBuilder
from tests.runtime.families.newer import (
    AyaVisionBuilder,
    Cohere2VisionBuilder,
    DeepseekVLBuilder,
    JanusBuilder,
    LightOnOcrBuilder,
    Llama4Builder,
    Ovis2Builder,
)
from tests.runtime.families.packed import (
    Exaone45Builder,
    Glm4vBuilder,
    Glm4vMoeBuilder,
    Glm46VBuilder,
    GlmOcrBuilder,
    PaddleOCRVLBuilder,
    Qwen2VLBuilder,
    Qwen3VLBuilder,
    Qwen3VLMoeBuilder,
    Qwen25VLBuilder,
    VideoLlama3Builder,
)
from tests.runtime.families.tiled import LlavaNextBuilder, LlavaNextVideoBuilder, LlavaOnevisionBuilder

BUILDERS: dict[str, Builder] = {
    builder.name: builder
    for builder in (
        LlavaBuilder("llama"),
        LlavaBuilder("qwen2"),
        LlavaBuilder("mistral"),
        VipLlavaBuilder(),
        LlavaNextBuilder(),
        LlavaNextVideoBuilder(),
        LlavaOnevisionBuilder(),
        InternVLBuilder("qwen2"),
        InternVLBuilder("qwen3"),
        Idefics3Builder(),
        SmolVLMBuilder(),
        Mistral3Builder("mistral"),
        Mistral3Builder("ministral3"),
        Qwen2VLBuilder(),
        Qwen25VLBuilder(),
        Qwen3VLBuilder(),
        Qwen3VLMoeBuilder(),
        PaliGemmaBuilder(),
        PaliGemma2Builder(),
        Gemma3Builder(),
        Gemma4Builder(),
        Gemma4MoeBuilder(),
        Llama4Builder(),
        Glm4vBuilder(),
        Glm4vMoeBuilder(),
        Glm46VBuilder(),
        GlmOcrBuilder(),
        AyaVisionBuilder(),
        Cohere2VisionBuilder(),
        Ovis2Builder(),
        DeepseekVLBuilder(),
        JanusBuilder(),
        LightOnOcrBuilder(),
        Exaone45Builder(),
        PaddleOCRVLBuilder(),
        VideoLlama3Builder(),
    )
}

__all__ = ["BUILDERS", "SHAPES", "Builder"]
