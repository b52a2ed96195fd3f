"""The tiny LLaVA: its shape, its initial weights, how it grows, and how it is stored.

Knows: one ``LlavaForConditionalGeneration``. Does not know: scenes, questions, losses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from scheduler_search.testbed.processor import PATCH_PIXELS, PIXEL_DEVIATION, PIXEL_MEAN, build_processor
from scheduler_search.testbed.scenes import IMAGE_PIXELS
from scheduler_search.testbed.vocabulary import BOS, EOS, IMAGE, PAD, WORD_IDS

PATCHES_PER_SIDE = IMAGE_PIXELS // PATCH_PIXELS
VISION_TOKENS = PATCHES_PER_SIDE**2

HIDDEN = 128
INITIAL_DEVIATION = 0.09
"""Standard deviation of the decoder's initial weights; with the usual 0.02 it does not learn in minutes."""
VALUE_COPY = 0.7
"""The attention output starts as this times the transposed value projection, so attended words pass through."""
EMBEDDING_DEVIATION = 0.3

GROWTH = (
    *((0, 1 / 2),) * 2,
    *((1, 1 / 3),) * 3,
    *((2, 1 / 3),) * 3,
    *((3, 1 / 2),) * 2,
    *((3, 0.0),) * 2,
)
"""For each of the 12 layers: (layer it copies, scale of its two output projections). The last two start as no-ops."""


def build_config(layers: int) -> LlavaConfig:
    """The configuration with ``layers`` decoder layers."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(WORD_IDS),
        hidden_size=HIDDEN,
        intermediate_size=352,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=WORD_IDS[PAD],
        bos_token_id=WORD_IDS[BOS],
        eos_token_id=WORD_IDS[EOS],
        tie_word_embeddings=False,
        initializer_range=INITIAL_DEVIATION,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=WORD_IDS[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=VISION_TOKENS,
        tie_word_embeddings=False,
    )


def build_model(layers: int, seed: int) -> LlavaForConditionalGeneration:
    """A model with initial weights that depend on ``seed`` alone."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(layers))
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            attention = layer.self_attn
            attention.v_proj.weight.normal_(std=HIDDEN**-0.5)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T * VALUE_COPY)
            layer.mlp.down_proj.weight.mul_((2 * layers) ** -0.5)
        projector = model.model.multi_modal_projector
        for linear in (projector.linear_1, projector.linear_2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        model.get_input_embeddings().weight.normal_(std=EMBEDDING_DEVIATION)
    return model


def grow(
    small: LlavaForConditionalGeneration, plan: Sequence[tuple[int, float]] = GROWTH
) -> LlavaForConditionalGeneration:
    """A deeper model: layer j copies layer ``plan[j][0]`` of ``small``, its outputs scaled by ``plan[j][1]``."""
    large = LlavaForConditionalGeneration(build_config(len(plan)))
    large.load_state_dict(small.state_dict(), strict=False)
    with torch.no_grad():
        for layer, (source, scale) in zip(large.model.language_model.layers, plan, strict=True):
            layer.load_state_dict(small.model.language_model.layers[source].state_dict())
            layer.self_attn.o_proj.weight.mul_(scale)
            layer.mlp.down_proj.weight.mul_(scale)
    return large


def pixel_values(images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    """[B, 3, 64, 64] float32 from uint8 images [64, 64, 3]: what the processor does, without the processor."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (stacked - PIXEL_MEAN) / PIXEL_DEVIATION


def vision_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Projected patch features [B, 64, 128] (without the class token)."""
    hidden = model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
    return cast(Tensor, model.model.multi_modal_projector(hidden))


def save_checkpoint(model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Write model and processor; weights are stored in half precision, the configuration says float32.

    Half precision halves the file; computing in it is slow and inexact on CPUs, so loading gives float32 by default.
    """
    build_processor().save_pretrained(directory)
    half = LlavaForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in directory.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read


def load_checkpoint(directory: Path) -> LlavaForConditionalGeneration:
    """The model of ``directory`` in float32, ready for inference."""
    model = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    return cast(LlavaForConditionalGeneration, model.eval())
