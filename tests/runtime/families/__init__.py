"""One tiny model per served family, for the laws in ``tests/runtime/test_families.py``.

A new family is one subclass of ``Builder`` (``builder.py``) in a file of this folder, and one line in BUILDERS.
"""

from tests.runtime.families.builder import SHAPES, Builder
from tests.runtime.families.llava import LlavaBuilder

BUILDERS: dict[str, Builder] = {
    builder.name: builder
    for builder in (
        LlavaBuilder("llama"),
        LlavaBuilder("qwen2"),
        LlavaBuilder("mistral"),
    )
}

__all__ = ["BUILDERS", "SHAPES", "Builder"]
