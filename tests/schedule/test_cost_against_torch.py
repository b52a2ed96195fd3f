"""FLOPs against torch's own counter, on tiny random models.

With eager attention, because the counter has no entry for the CPU's fused kernel and would count no attention at all.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from scheduler_search.schedule.cost import DecoderShape, ModelShape, VisionShape, prefill_flops

pytestmark = pytest.mark.slow

# 1 % is promised; the counts are equal, and a test that allows 1 % would not notice a missing pooling head.
TOLERANCE = 1e-9
PATCHES = 144
TEXT = 20
IMAGE_ID = 299
CLIP = VisionShape(3, 48, 4, 100, patches=PATCHES, patch_values=192, tokens_per_image=PATCHES)
SIGLIP = replace(CLIP, class_tokens=0, pooling_head=True)
DECODER = DecoderShape(layers=4, hidden=96, heads=6, key_value_heads=2, head_dimension=16, intermediate=200)
TOWER_FIELDS = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 96,
    "patch_size": 8,
}
TEXT_FIELDS = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def shape(vision: VisionShape) -> ModelShape:
    return ModelShape(DECODER, vision, projector=(48, 96, 96), vocabulary=300)


def llava(tower: str, text: str) -> LlavaForConditionalGeneration:
    vision_config = CLIPVisionConfig(**TOWER_FIELDS) if tower == "clip" else SiglipVisionConfig(**TOWER_FIELDS)
    text_config = LlamaConfig(**TEXT_FIELDS) if text == "llama" else Qwen2Config(**TEXT_FIELDS)
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=IMAGE_ID,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()


def counted_prefill(model: LlavaForConditionalGeneration, images: int, **options: int) -> int:
    ids = torch.full((1, TEXT + images * PATCHES), 7)
    ids[0, 10 : 10 + images * PATCHES] = IMAGE_ID
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, pixel_values=torch.zeros(images, 3, 96, 96), **options)
    return counter.get_total_flops()


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("tower", "text"), [("clip", "llama"), ("siglip", "qwen2")])
def test_unreduced_prefill_is_what_torch_counts(tower: str, text: str, images: int) -> None:
    model = llava(tower, text)
    ours = shape(CLIP if tower == "clip" else SIGLIP)
    rates = (1.0,) * 4
    counted = counted_prefill(model, images, logits_to_keep=1)
    assert prefill_flops(ours, rates, images * PATCHES, TEXT) == pytest.approx(counted, rel=TOLERANCE)
    counted = counted_prefill(model, images)
    assert prefill_flops(ours, rates, images * PATCHES, TEXT, logits="all") == pytest.approx(counted, rel=TOLERANCE)


def test_reduced_prefill_is_the_sum_of_the_layers_at_their_reduced_lengths() -> None:
    model = llava("clip", "llama")
    decoder = model.get_decoder()
    rates = (1.0, 0.5, 0.25, 0.0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for layer, count in zip(decoder.layers, (144, 72, 36, 0), strict=True):
            hidden = torch.zeros(1, count + TEXT, 96)
            positions = torch.arange(count + TEXT)[None]
            layer(hidden, position_embeddings=decoder.rotary_emb(hidden, positions), attention_mask=None)
        model.lm_head(torch.zeros(1, 1, 96))
        model.get_image_features(pixel_values=torch.zeros(1, 3, 96, 96))
    assert prefill_flops(shape(CLIP), rates, PATCHES, TEXT) == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


def test_reduced_tower_is_the_sum_of_its_layers_at_their_reduced_lengths() -> None:
    tower = llava("clip", "llama").get_encoder(modality="image")
    rates = (1.0, 0.5, 0.25)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower.embeddings(torch.zeros(1, 3, 96, 96))
        for layer, count in zip(tower.encoder.layers, (144, 72, 36), strict=True):
            layer(torch.zeros(1, count + 1, 48), None)
    assert CLIP.image_flops(rates) == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)
