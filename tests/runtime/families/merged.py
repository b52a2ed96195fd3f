"""Families whose projector merges two by two patches: InternVL, Idefics3, SmolVLM, Mistral 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from tests.runtime.families.builder import CLIP, TEXT, Builder, Image, Sample, Tensors, pixels
from tests.runtime.tiny import IMAGE

TOWER: dict[str, Any] = {**CLIP, "num_hidden_layers": 2, "patch_size": 4}  # 12 x 12 patches, 36 tokens


class InternVLBuilder(Builder):
    model_class = transformers.InternVLForConditionalGeneration

    def __init__(self, decoder: str) -> None:
        self.name, self.decoder = f"internvl-{decoder}", decoder

    def config(self) -> Any:
        vision = transformers.InternVLVisionConfig(**{**TOWER, "image_size": [48, 48], "patch_size": [4, 4]})
        width = {"head_dim": 16} if self.decoder == "qwen3" else {}
        text = transformers.AutoConfig.for_model(self.decoder, **TEXT, **width)
        return transformers.InternVLConfig(
            vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=36, tie_word_embeddings=False
        )

    def image(self, size: str, generator: torch.Generator) -> Image:  # noqa: ARG002
        return Image(36, {"pixel_values": pixels(generator, 1, 3, 48, 48)})


class Idefics3Builder(Builder):
    name = "idefics3"
    model_class = transformers.Idefics3ForConditionalGeneration
    config_class: Any = transformers.Idefics3Config

    def config(self) -> Any:
        return self.config_class(
            vision_config=dict(TOWER),
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_id=IMAGE,
            scale_factor=2,
        )

    def image(self, size: str, generator: torch.Generator) -> Image:  # noqa: ARG002
        return Image(36, {"pixel_values": pixels(generator, 1, 3, 48, 48)})

    def collate(self, samples: Sequence[Sample]) -> Tensors:
        """[B, images, 3, H, W]; images that a sample does not have are zero."""
        most = max(len(sample.images) for sample in samples)
        stacked = torch.zeros(len(samples), most, 3, 48, 48)
        for row, sample in enumerate(samples):
            for index, image in enumerate(sample.images):
                stacked[row, index] = image.arguments["pixel_values"][0]
        return {"pixel_values": stacked}


class SmolVLMBuilder(Idefics3Builder):
    name = "smolvlm"
    model_class = transformers.SmolVLMForConditionalGeneration
    config_class = transformers.SmolVLMConfig


class Mistral3Builder(Builder):
    model_class = transformers.Mistral3ForConditionalGeneration
    varying = (("usual",), ("low",), ("usual", "low"))
    grid = None

    def __init__(self, decoder: str) -> None:
        self.name, self.decoder = f"mistral3-{decoder}", decoder

    def config(self) -> Any:
        # Ministral 3 scales queries by their position, in steps that a short prompt reaches too.
        scaling = {"llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 16}
        rotary = {"rope_type": "default", "rope_theta": 10000.0, **scaling}
        settings = {"rope_parameters": rotary} if self.decoder == "ministral3" else {}
        text = transformers.AutoConfig.for_model(self.decoder, **TEXT, head_dim=16, **settings)
        return transformers.Mistral3Config(
            vision_config=transformers.PixtralVisionConfig(**TOWER),
            text_config=text,
            image_token_index=IMAGE,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        )

    def image(self, size: str, generator: torch.Generator) -> Image:
        """Padded to the largest picture, as the processor does it."""
        height = {"usual": 48, "low": 32}[size]
        arguments = {"pixel_values": pixels(generator, 1, 3, 48, 48), "image_sizes": torch.tensor([[height, 48]])}
        return Image(height * 48 // 64, arguments)
