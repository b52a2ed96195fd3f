"""Tiny LLaVA models with random weights, and batches for them. No downloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction

IMAGE, VIDEO, PAD, VOCABULARY, LAYERS, SIDE = 90, 91, 0, 100, 6, 6
TOKENS = SIDE * SIDE  # vision tokens of one image
DECODERS = ("llama", "qwen2", "mistral")
# (images, text before, text between images and after) of each sample
BATCHES: dict[str, list[tuple[int, int, int]]] = {
    "single": [(1, 3, 7)],
    "equal": [(1, 3, 7), (1, 3, 7)],
    "padded": [(1, 3, 7), (1, 5, 4), (1, 2, 5)],
    "varying": [(1, 3, 7), (2, 4, 4), (1, 2, 5)],
    "mixed": [(2, 3, 6), (0, 5, 4), (1, 2, 5)],
}
RATES = (1.0, 1.0, 0.7, 0.5, 0.5, 0.2)


def quick_first(values: Sequence[Any]) -> list[Any]:
    """Parameters of which only the first runs in `make test-fast`."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.slow) for value in values[1:])]


def build(decoder: str = "llama", attention: str = "sdpa", seed: int = 0, layers: int = LAYERS) -> Any:
    """A LLaVA whose attention is far from uniform, so that rankings and outputs are not degenerate."""
    torch.manual_seed(seed)
    window = {"sliding_window": 24} if decoder == "mistral" else {}
    text = transformers.AutoConfig.for_model(
        decoder,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        **window,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=48, patch_size=8
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.mul_(4.0 if "q_proj" in name or "k_proj" in name else 2.0)
    return model.requires_grad_(False)


def batch(name: str = "padded", seed: int = 0) -> dict[str, torch.Tensor]:
    """Left-padded inputs; the samples of a batch are the same alone (``single_of``)."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [_prompt(*shape, generator) for shape in BATCHES[name]]
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), PAD)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    images = sum(images for images, _, _ in BATCHES[name])
    pixels = torch.randn(images, 3, 48, 48, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def _prompt(images: int, before: int, after: int, generator: torch.Generator) -> torch.Tensor:
    parts = [torch.randint(3, 80, (before,), generator=generator)]
    for image in range(images):
        parts.append(torch.full((TOKENS,), IMAGE))
        parts.append(torch.randint(3, 80, (after if image == images - 1 else 2,), generator=generator))
    if not images:
        parts.append(torch.randint(3, 80, (after,), generator=generator))
    return torch.cat(parts)


def single_of(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One sample of a batch, without its padding."""
    real = inputs["attention_mask"][row].bool()
    images = (inputs["input_ids"] == IMAGE).sum(1) // TOKENS
    first = int(images[:row].sum())
    alone = {"input_ids": inputs["input_ids"][row, real][None], "attention_mask": torch.ones(1, int(real.sum()))}
    if images[row]:
        alone["pixel_values"] = inputs["pixel_values"][first : first + int(images[row])]
    return alone


def reduction(
    rates: Sequence[float] = RATES, rule: str = "attention-rank", entry: str | None = None, **parameters: Any
) -> Reduction:
    """A reduction with a rule by name."""
    rates = (*rates, *[rates[-1]] * (LAYERS - len(rates)))
    entry_rule = None if entry is None else make_rule(entry)
    return Reduction(tuple(map(float, rates)), make_rule(rule, parameters), entry_rule)


def generate(model: Any, inputs: dict[str, torch.Tensor], steps: int = 6, **settings: Any) -> Any:
    """Greedy tokens [B, steps] and logits [B, steps, V]."""
    output = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True, **settings
    )
    return output.sequences[:, -steps:], torch.stack(output.logits, dim=1), output.past_key_values
