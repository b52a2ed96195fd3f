"""Newer families with images of one size: Llama 4, Cohere's, Ovis 2, DeepSeek-VL, Janus, LightOnOCR."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.runtime.families.builder import CLIP, TEXT, Builder, Image, pixels
from tests.runtime.families.merged import TOWER
from tests.runtime.tiny import IMAGE, VOCABULARY

WINDOWED: dict[str, Any] = {**TEXT, "sliding_window": 24}


class SquareBuilder(Builder):
    """Images of 48 x 48 pixels, 36 vision tokens each."""

    def image(self, size: str, generator: torch.Generator) -> Image:  # noqa: ARG002
        return Image(36, {"pixel_values": pixels(generator, 1, 3, 48, 48)})


class Llama4Builder(SquareBuilder):
    """Chunks of 32 tokens, shorter than the prompt; every second layer has experts, the fourth no rotary."""

    name = "llama4"
    flops = 0.12  # transformers runs every expert on every token; the arithmetic counts the chosen ones
    grid = None
    model_class = transformers.Llama4ForConditionalGeneration

    def config(self) -> Any:
        vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        vision |= {"image_size": 48, "patch_size": 4, "vision_output_dim": 64, "pixel_shuffle_ratio": 0.5}
        vision |= {"projector_input_dim": 64, "projector_output_dim": 64}
        experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
        text = transformers.Llama4TextConfig(
            **TEXT,
            **experts,
            head_dim=16,
            intermediate_size_mlp=96,
            attention_chunk_size=32,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
        return transformers.Llama4Config(
            vision_config=vision, text_config=text, image_token_index=IMAGE, boi_token_index=92, eoi_token_index=93
        )


class AyaVisionBuilder(SquareBuilder):
    name = "aya-vision"
    grid = None
    model_class = transformers.AyaVisionForConditionalGeneration

    def config(self) -> Any:
        return transformers.AyaVisionConfig(
            vision_config=transformers.SiglipVisionConfig(**TOWER),
            text_config=transformers.Cohere2Config(**WINDOWED),
            image_token_index=IMAGE,
            downsample_factor=2,
        )


class Cohere2VisionBuilder(SquareBuilder):
    name = "cohere2-vision"
    grid = None
    model_class = transformers.Cohere2VisionForConditionalGeneration

    def config(self) -> Any:
        return transformers.Cohere2VisionConfig(
            vision_config=transformers.SiglipVisionConfig(**TOWER),
            text_config=transformers.Cohere2Config(**WINDOWED),
            image_token_id=IMAGE,
            alignment_intermediate_size=64,
            downsample_factor=2,
        )


class Ovis2Builder(SquareBuilder):
    name = "ovis2"
    grid = None
    model_class = transformers.Ovis2ForConditionalGeneration

    def config(self) -> Any:
        words = {"vocab_size": 40, "hidden_stride": 2, "num_visual_indicator_tokens": 5}
        return transformers.Ovis2Config(
            vision_config={**TOWER, **words},
            text_config=transformers.Qwen2Config(**TEXT),
            image_token_id=IMAGE,
            visual_indicator_token_ids=[92, 93, 94, 95, 96],
            vocab_size=VOCABULARY,
            hidden_size=64,
        )


class DeepseekVLBuilder(SquareBuilder):
    name = "deepseek-vl"
    model_class = transformers.DeepseekVLForConditionalGeneration

    def config(self) -> Any:
        return transformers.DeepseekVLConfig(
            vision_config={**CLIP, "model_type": "siglip_vision_model"},
            text_config=transformers.LlamaConfig(**TEXT).to_dict(),
            image_token_id=IMAGE,
        )


class JanusBuilder(SquareBuilder):
    name = "janus"
    model_class = transformers.JanusForConditionalGeneration

    def config(self) -> Any:
        vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
        vision |= {"image_size": 48, "patch_size": 8, "projection_dim": 64, "num_image_tokens": 36}
        writer = {"embed_dim": 8, "num_embeddings": 32, "latent_channels": 8, "base_channels": 32}
        writer |= {"channel_multiplier": [1, 1], "num_res_blocks": 1, "double_latent": False, "projection_dim": 64}
        writer |= {"num_patches": 6, "image_token_embed_dim": 64, "num_hidden_layers": 1}
        return transformers.JanusConfig(
            vision_config=vision,
            vq_config=writer,
            text_config=transformers.LlamaConfig(**TEXT).to_dict(),
            image_token_id=IMAGE,
        )


class LightOnOcrBuilder(SquareBuilder):
    name = "lighton-ocr"
    grid = None
    model_class = transformers.LightOnOcrForConditionalGeneration

    def config(self) -> Any:
        return transformers.LightOnOcrConfig(
            vision_config={**TOWER, "model_type": "pixtral"},
            text_config=transformers.Qwen3Config(**TEXT, head_dim=16),
            image_token_id=IMAGE,
            spatial_merge_size=2,
        )

    def image(self, size: str, generator: torch.Generator) -> Image:  # noqa: ARG002
        sizes = torch.tensor([[48, 48]])
        return Image(36, {"pixel_values": pixels(generator, 1, 3, 48, 48), "image_sizes": sizes})
