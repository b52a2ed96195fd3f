"""LLaVA with each of its decoders, and VipLLaVA."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.runtime.families.builder import CLIP, TEXT, Builder, Image, pixels
from tests.runtime.tiny import IMAGE


class LlavaBuilder(Builder):
    model_class = transformers.LlavaForConditionalGeneration

    def __init__(self, decoder: str) -> None:
        self.name, self.decoder = f"llava-{decoder}", decoder

    def config(self) -> Any:
        window = {"sliding_window": 24} if self.decoder == "mistral" else {}
        text = transformers.AutoConfig.for_model(self.decoder, **TEXT, **window)
        return transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**CLIP), text_config=text, image_token_index=IMAGE
        )

    def image(self, size: str, generator: torch.Generator) -> Image:  # noqa: ARG002
        return Image(36, {"pixel_values": pixels(generator, 1, 3, 48, 48)})


class VipLlavaBuilder(Builder):
    name = "vipllava"
    model_class = transformers.VipLlavaForConditionalGeneration

    def config(self) -> Any:
        vision = transformers.CLIPVisionConfig(**{**CLIP, "num_hidden_layers": 12})
        text = transformers.LlamaConfig(**TEXT)
        return transformers.VipLlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)

    def image(self, size: str, generator: torch.Generator) -> Image:  # noqa: ARG002
        return Image(36, {"pixel_values": pixels(generator, 1, 3, 48, 48)})
