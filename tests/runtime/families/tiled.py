"""LLaVA-NeXT and LLaVA-OneVision: a small picture, and a mosaic of tiles with a newline token behind each row."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.runtime.families.builder import CLIP, TEXT, Builder, Image, pixels
from tests.runtime.tiny import IMAGE, VIDEO

PINPOINTS = [[48, 96], [96, 48], [96, 96]]
SIZES = {"usual": (96, 96), "wide": (48, 96), "cut": (64, 96)}  # "cut" is padded to 96 x 96, and unpadded again


class LlavaNextBuilder(Builder):
    name = "llava-next"
    model_class = transformers.LlavaNextForConditionalGeneration
    varying = (("usual",), ("wide",), ("cut",))
    grid = None
    flops = 0.03  # see LlavaNext.shape; with six patches on a side newlines weigh more than in real models
    tokens = {"usual": 36 + 12 * 13, "wide": 36 + 6 * 13, "cut": 36 + 8 * 13}  # noqa: RUF012

    def config(self) -> Any:
        return transformers.LlavaNextConfig(
            vision_config=transformers.CLIPVisionConfig(**CLIP),
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            image_grid_pinpoints=PINPOINTS,
        )

    def image(self, size: str, generator: torch.Generator) -> Image:
        """Five tiles as the processor pads them; of "wide" only three are read."""
        arguments = {"pixel_values": pixels(generator, 1, 5, 3, 48, 48), "image_sizes": torch.tensor([SIZES[size]])}
        return Image(self.tokens[size], arguments)


class LlavaNextVideoBuilder(LlavaNextBuilder):
    name = "llava-next-video"
    model_class = transformers.LlavaNextVideoForConditionalGeneration
    videos = True

    def config(self) -> Any:
        return transformers.LlavaNextVideoConfig(
            vision_config=transformers.CLIPVisionConfig(**CLIP),
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
        )

    def image(self, size: str, generator: torch.Generator) -> Image:
        """A video is two frames, 6 x 6 patches of each pooled to 3 x 3."""
        if size == "video":
            return Image(2 * 9, {"pixel_values_videos": pixels(generator, 1, 2, 3, 48, 48)}, VIDEO)
        return super().image(size, generator)


class LlavaOnevisionBuilder(LlavaNextBuilder):
    name = "llava-onevision"
    model_class = transformers.LlavaOnevisionForConditionalGeneration
    flops = 0.1
    videos = True
    # Mosaics of more than two tiles are scaled down: 12 x 12 to 8 x 8, 8 x 12 to 6 x 10.
    tokens = {"usual": 36 + 8 * 9, "wide": 36 + 6 * 13, "cut": 36 + 6 * 11}  # noqa: RUF012

    def config(self) -> Any:
        return transformers.LlavaOnevisionConfig(
            vision_config=transformers.SiglipVisionConfig(**CLIP, vision_use_head=False),
            text_config=transformers.Qwen2Config(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
            vision_aspect_ratio="anyres_max_2",
        )

    def image(self, size: str, generator: torch.Generator) -> Image:
        """A video is two frames, 6 x 6 patches of each scaled to 3 x 3, and one newline."""
        if size == "video":
            return Image(2 * 9 + 1, {"pixel_values_videos": pixels(generator, 1, 2, 3, 48, 48)}, VIDEO)
        return super().image(size, generator)
