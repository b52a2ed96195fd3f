"""Model shapes for the arithmetic of costs."""

from __future__ import annotations

from scheduler_search.schedule.cost import DecoderShape, ModelShape, VisionShape

LLAVA_7B = ModelShape(
    decoder=DecoderShape(32, 4096, 32, 32, 128, 11008),
    vision=VisionShape(24, 1024, 16, 4096, 576, 588, 576),
    projector=(1024, 4096, 4096),
    vocabulary=32064,
)
TINY = ModelShape(
    decoder=DecoderShape(12, 64, 4, 4, 16, 128),
    vision=VisionShape(2, 32, 2, 64, 64, 48, 64),
    projector=(32, 64, 64),
    vocabulary=100,
)
