"""Families whose processor packs the patches of images of any size: Qwen-VL, GLM-V and their kin."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.runtime.families.builder import TEXT, VIDEO, Builder, Image, Tensors, pixels
from tests.runtime.tiny import IMAGE

GRIDS = {"usual": (12, 12), "wide": (8, 12), "small": (8, 8), "video": (8, 8)}  # patches, four to a vision token
ROTARY: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
TEXT_3D: dict[str, Any] = {**TEXT, "rope_parameters": ROTARY}
PATCHES: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
TIMED: dict[str, Any] = {**PATCHES, "temporal_patch_size": 2}
TOWER: dict[str, Any] = {**TIMED, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


class PackedBuilder(Builder):
    """Images of three sizes; patches of 4 x 4 pixels, two frames thick."""

    grid = None
    videos = True
    frames = 2  # of a video, each of two pictures
    varying = (("usual",), ("wide", "small"), ("small",))
    values = 3 * 2 * 4 * 4  # in one patch

    def image(self, size: str, generator: torch.Generator) -> Image:
        height, width = GRIDS[size]
        frames = self.frames if size == "video" else 1
        patches = pixels(generator, frames * height * width, self.values)
        grid = torch.tensor([[frames, height, width]])
        tokens = frames * height * width // 4
        if size == "video":
            return Image(tokens, {"pixel_values_videos": patches, "video_grid_thw": grid}, VIDEO)
        return Image(tokens, {"pixel_values": patches, "image_grid_thw": grid})

    def extras(self, input_ids: torch.Tensor) -> Tensors:
        return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}


class QwenBuilder(PackedBuilder):
    ids: dict[str, int] = {  # noqa: RUF012
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": 92,
        "vision_end_token_id": 93,
    }


class Qwen2VLBuilder(QwenBuilder):
    name = "qwen2-vl"
    model_class = transformers.Qwen2VLForConditionalGeneration

    def config(self) -> Any:
        vision = {**TIMED, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        return transformers.Qwen2VLConfig(vision_config=vision, text_config=dict(TEXT_3D), **self.ids)


class Qwen25VLBuilder(QwenBuilder):
    name = "qwen2.5-vl"
    model_class = transformers.Qwen2_5_VLForConditionalGeneration

    def config(self) -> Any:
        vision = {**TOWER, "window_size": 16, "fullatt_block_indexes": [1]}
        return transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=dict(TEXT_3D), **self.ids)


class Qwen3VLBuilder(QwenBuilder):
    """Features are added behind the first four decoder layers: dropping starts in front of the third."""

    name = "qwen3-vl"
    frames = 1  # of more, each is a run of its own
    model_class = transformers.Qwen3VLForConditionalGeneration
    config_class: Any = transformers.Qwen3VLConfig
    text: dict[str, Any] = {**TEXT_3D, "head_dim": 16}  # noqa: RUF012

    def config(self) -> Any:
        vision = {**TOWER, "depth": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2, 3]}
        return self.config_class(vision_config=vision, text_config=dict(self.text), **self.ids)


class Qwen3VLMoeBuilder(Qwen3VLBuilder):
    name = "qwen3-vl-moe"
    flops = 0.08  # torch does not count the experts' grouped products
    model_class = transformers.Qwen3VLMoeForConditionalGeneration
    config_class = transformers.Qwen3VLMoeConfig
    text = {**Qwen3VLBuilder.text, **EXPERTS, "num_experts": 4, "decoder_sparse_step": 2}  # noqa: RUF012


class Glm4vBuilder(PackedBuilder):
    name = "glm4v"
    videos = False  # their frames have the ids of images, and a batch cannot have both
    model_class = transformers.Glm4vForConditionalGeneration
    config_class: Any = transformers.Glm4vConfig
    text: dict[str, Any] = {  # noqa: RUF012
        **TEXT,
        "rope_parameters": {**ROTARY, "partial_rotary_factor": 1.0},
        "model_type": "glm4v_text",
    }

    def config(self) -> Any:
        marks = {"image_start_token_id": 92, "image_end_token_id": 93}
        frames = {"video_start_token_id": 94, "video_end_token_id": 95}
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, **marks, **frames}
        vision = {**TOWER, "image_size": 48, **({"model_type": "glm4v_vision"} if self.name == "glm46v" else {})}
        return self.config_class(vision_config=vision, text_config=dict(self.text), **ids)


class Glm46VBuilder(Glm4vBuilder):
    name = "glm46v"
    model_class = transformers.Glm46VForConditionalGeneration
    config_class = transformers.Glm46VConfig


class GlmOcrBuilder(Glm4vBuilder):
    name = "glm-ocr"
    model_class = transformers.GlmOcrForConditionalGeneration
    config_class = transformers.GlmOcrConfig
    text = {**Glm4vBuilder.text, "model_type": "glm_ocr_text"}  # noqa: RUF012


class Glm4vMoeBuilder(Glm4vBuilder):
    name = "glm4v-moe"
    flops = 0.2  # torch does not count the experts' grouped products
    model_class = transformers.Glm4vMoeForConditionalGeneration
    config_class = transformers.Glm4vMoeConfig
    text = {  # noqa: RUF012
        **Glm4vBuilder.text,
        **EXPERTS,
        "model_type": "glm4v_moe_text",
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "head_dim": 16,
    }


class Exaone45Builder(PackedBuilder):
    name = "exaone4.5"
    model_class = transformers.Exaone4_5_ForConditionalGeneration

    def config(self) -> Any:
        vision = {**TOWER, "window_size": 16, "fullatt_block_indexes": [1], "num_key_value_heads": 2}
        text = transformers.Exaone4Config(**TEXT, sliding_window=24, sliding_window_pattern=3).to_dict()
        return transformers.Exaone4_5_Config(
            vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO
        )

    def extras(self, input_ids: torch.Tensor) -> Tensors:  # noqa: ARG002
        return {}


class PaddleOCRVLBuilder(PackedBuilder):
    name = "paddleocr-vl"
    videos = False
    model_class = transformers.PaddleOCRVLForConditionalGeneration

    def config(self) -> Any:
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = {**vision, "image_size": 48, "patch_size": 4, "spatial_merge_size": 2}
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 92}
        text = {**TEXT_3D, "head_dim": 16}
        return transformers.PaddleOCRVLConfig(vision_config=vision, text_config=text, vision_end_token_id=93, **ids)

    def image(self, size: str, generator: torch.Generator) -> Image:
        height, width = GRIDS[size]
        patches = pixels(generator, height * width, 3, 4, 4)
        grid = torch.tensor([[1, height, width]])
        return Image(height * width // 4, {"pixel_values": patches, "image_grid_thw": grid})


class VideoLlama3Builder(PackedBuilder):
    """Images are not merged: as many vision tokens as patches."""

    name = "video-llama-3"
    videos = False
    flops = 0.03  # its lm head runs over the whole prompt, whatever is asked for
    model_class = transformers.VideoLlama3ForConditionalGeneration

    def config(self) -> Any:
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = transformers.Qwen2Config(**TEXT).to_dict()
        return transformers.VideoLlama3Config(
            vision_config={**vision, "patch_size": 4}, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO
        )

    def image(self, size: str, generator: torch.Generator) -> Image:
        height, width = (side // 2 for side in GRIDS[size])
        arguments = {"pixel_values": pixels(generator, height * width, 48)}
        arguments["image_grid_thw"] = torch.tensor([[1, height, width]])
        return Image(height * width, {**arguments, "image_merge_sizes": torch.ones(1, dtype=torch.long)})

    def extras(self, input_ids: torch.Tensor) -> Tensors:  # noqa: ARG002
        return {}
