"""One tiny model per served family, for the laws in ``tests/runtime/test_families.py``.

A new family is one subclass of ``Builder`` (``builder.py``) in a file of this folder, and one line in BUILDERS.
"""

from tests.runtime.families.builder import SHAPES, Builder
from tests.runtime.families.llava import LlavaBuilder, VipLlavaBuilder
from tests.runtime.families.merged import Idefics3Builder, InternVLBuilder, Mistral3Builder, SmolVLMBuilder
from tests.runtime.families.tiled import LlavaNextBuilder, LlavaOnevisionBuilder

BUILDERS: dict[str, Builder] = {
    builder.name: builder
    for builder in (
        LlavaBuilder("llama"),
        LlavaBuilder("qwen2"),
        LlavaBuilder("mistral"),
        VipLlavaBuilder(),
        LlavaNextBuilder(),
        LlavaOnevisionBuilder(),
        InternVLBuilder("qwen2"),
        InternVLBuilder("qwen3"),
        Idefics3Builder(),
        SmolVLMBuilder(),
        Mistral3Builder("mistral"),
        Mistral3Builder("ministral3"),
    )
}

__all__ = ["BUILDERS", "SHAPES", "Builder"]
