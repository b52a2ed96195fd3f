"""PaliGemma 1 and 2, Gemma 3, Gemma 4: masks that see both ways, and sliding windows shorter than the prompt."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.runtime.families.builder import CLIP, TEXT, VIDEO, Builder, Image, Tensors, pixels
from tests.runtime.tiny import IMAGE, VOCABULARY

TEXT_GEMMA: dict[str, Any] = {**TEXT, "head_dim": 16}
LAYERS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
WINDOWED: dict[str, Any] = {**TEXT_GEMMA, "sliding_window": 24, "layer_types": LAYERS}


class PaliGemmaBuilder(Builder):
    name = "paligemma"
    model_class = transformers.PaliGemmaForConditionalGeneration

    def text(self) -> Any:
        return transformers.GemmaConfig(**TEXT_GEMMA)

    def config(self) -> Any:
        vision = transformers.SiglipVisionConfig(**CLIP, projection_dim=64)
        return transformers.PaliGemmaConfig(
            vision_config=vision,
            text_config=self.text(),
            image_token_index=IMAGE,
            projection_dim=64,
            vocab_size=VOCABULARY,
        )

    def image(self, size: str, generator: torch.Generator) -> Image:  # noqa: ARG002
        return Image(36, {"pixel_values": pixels(generator, 1, 3, 48, 48)})

    def extras(self, input_ids: torch.Tensor) -> Tensors:
        """The whole prompt is prefix, which sees both ways."""
        return {"token_type_ids": torch.zeros_like(input_ids)}


class PaliGemma2Builder(PaliGemmaBuilder):
    """Gemma 2: softcap on attention and logits; transformers has no sdpa for it."""

    name = "paligemma2"
    attention = ("eager",)

    def text(self) -> Any:
        return transformers.Gemma2Config(**TEXT_GEMMA, sliding_window=24)


class Gemma3Builder(Builder):
    name = "gemma3"
    model_class = transformers.Gemma3ForConditionalGeneration

    def config(self) -> Any:
        return transformers.Gemma3Config(
            vision_config=transformers.SiglipVisionConfig(**CLIP),
            text_config=transformers.Gemma3TextConfig(**WINDOWED),
            image_token_index=IMAGE,
            mm_tokens_per_image=36,
        )

    def image(self, size: str, generator: torch.Generator) -> Image:  # noqa: ARG002
        return Image(36, {"pixel_values": pixels(generator, 1, 3, 48, 48)})

    def extras(self, input_ids: torch.Tensor) -> Tensors:
        return {"token_type_ids": (input_ids == IMAGE).long()}


class Gemma4Builder(Builder):
    """The dense sibling without shared keys and per-layer embeddings; images see both ways."""

    name = "gemma4"
    grid = None
    flops = 0.03  # widths of heads are a mean over the layers
    model_class = transformers.Gemma4ForConditionalGeneration
    text: dict[str, Any] = {  # noqa: RUF012
        **WINDOWED,
        "global_head_dim": 32,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "use_bidirectional_attention": "vision",
    }

    def config(self) -> Any:
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2}
        marks = {"image_token_id": IMAGE, "video_token_id": VIDEO, "boi_token_id": 92, "eoi_token_id": 93}
        return transformers.Gemma4Config(
            vision_config={**vision, "model_type": "gemma4_vision", "position_embedding_size": 64},
            audio_config=None,
            text_config=transformers.Gemma4TextConfig(**self.text),
            **marks,
        )

    def image(self, size: str, generator: torch.Generator) -> Image:  # noqa: ARG002
        row, column = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
        positions = torch.stack([column, row], dim=-1).view(1, 144, 2)
        patches = pixels(generator, 1, 144, 48).clamp(0, 1)
        return Image(36, {"pixel_values": patches, "image_position_ids": positions})

    def extras(self, input_ids: torch.Tensor) -> Tensors:
        return {"mm_token_type_ids": (input_ids == IMAGE).long()}


class Gemma4MoeBuilder(Gemma4Builder):
    name = "gemma4-moe"
    flops = 0.21  # torch does not count the experts' grouped products
    text = {  # noqa: RUF012
        **Gemma4Builder.text,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "attention_k_eq_v": True,
    }
