"""What the prefill benchmark runs: a random LLaVA, its prompt, and the schedules.

Weights are random, so nothing here says anything about answers. Shapes, kernels, hooks and cache are those of a
checkpoint of the same size: time does not depend on the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutputWithPooling

from scheduler_search.rule import make_rule
from scheduler_search.schedule.cost import DecoderShape, ModelShape, prefill_flops
from scheduler_search.schedule.counts import keep_counts
from scheduler_search.schedule.families import sigmoid, step
from scheduler_search.schedule.values import Reduction

LAYERS, GRID, PATCH = 32, 24, 14
VISION_TOKENS = GRID * GRID
IMAGE, PAD = 3, 0
FIRST = 3  # the first layer that may reduce (seed 003, section 3.2)


@dataclass(frozen=True)
class Shape:
    """Widths of the decoder; its depth is that of LLaVA-1.5-7B. ``dtype`` and ``device`` are the defaults for it."""

    width: int
    heads: int
    intermediate: int
    vocabulary: int
    batches: tuple[int, ...]
    dtype: str
    device: str


SHAPES = {
    "cpu": Shape(1024, 16, 2752, 4008, (1, 2), "float32", "cpu"),  # widths of LLaVA-1.5-7B over 4, heads of 64
    "llava-1.5-7b": Shape(4096, 32, 11008, 32064, (1, 4, 16), "bfloat16", "cuda"),
}


@dataclass(frozen=True)
class Variant:
    """One row of the comparison; ``rates`` is None for the model without hooks, ``bare`` is ``bare_cut``."""

    name: str
    rates: tuple[float, ...] | None
    bare: bool = False

    @property
    def idle(self) -> bool:
        """Whether this is hooks that drop nothing."""
        return self.rates is not None and keep_counts(self.rates, VISION_TOKENS)[-1] == VISION_TOKENS

    @property
    def keep_rates(self) -> tuple[float, ...]:
        """Rates for the arithmetic: the model without hooks keeps everything."""
        return (1.0,) * LAYERS if self.rates is None else self.rates

    def reduction(self) -> Reduction:
        """The schedule under the rule of the paper (attention-rank)."""
        return Reduction(self.keep_rates, make_rule("attention-rank"))


def sigmoid_of_mean(mean: float, k: float) -> tuple[float, ...]:
    """P-Sigmoid's rates whose mean over *all* layers is ``mean``: the figure that seed 003 prints as memory cost."""
    before = FIRST - 1
    return sigmoid(LAYERS, (mean * LAYERS - before) / (LAYERS - before), k, FIRST)


def variants(means: Sequence[float], k: float, idle: bool = True) -> list[Variant]:
    """The model as it is first, then hooks that drop nothing if ``idle``, one step, and the sigmoids.

    ``hooks, nothing to drop`` has every hook and listener in place on a prompt whose counts all round to N; the hooks
    of ``hooks, rates 1.0`` know beforehand that nothing will ever be dropped. The last sigmoid also comes
    bare.
    """
    sigmoids = [Variant(f"sigmoid {mean:.3f} k={k:g}", sigmoid_of_mean(mean, k)) for mean in means]
    hooks = [
        Variant("hooks, rates 1.0", (1.0,) * LAYERS),
        Variant("hooks, nothing to drop", (1.0, 1.0) + (1.0 - 1e-6,) * (LAYERS - 2)),
    ]
    return [
        Variant("vanilla", None),
        *(hooks if idle else ()),
        Variant("step K=2 q=0.5", step(LAYERS, 2, 0.5)),
        *(Variant(f"bare {variant.name}", variant.rates, bare=True) for variant in sigmoids[-1:]),
        *sigmoids,
    ]


def build_model(shape: Shape, dtype: torch.dtype, device: torch.device, attention: str) -> Any:
    """A LLaVA with random weights, made on the device. The tower is as deep as LLaVA's; it is never run."""
    tower = shape.width // 4
    text = transformers.LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=LAYERS,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=tower,
        intermediate_size=4 * tower,
        num_hidden_layers=24,
        num_attention_heads=tower // 64 if tower % 64 == 0 else 1,
        image_size=GRID * PATCH,
        patch_size=PATCH,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    torch.manual_seed(0)
    with device:
        model = transformers.LlavaForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval().requires_grad_(False)


def build_prompt(
    shape: Shape, samples: int, text: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Arguments of ``forward`` and ``generate``: text, 576 vision tokens whose features are ready, text.

    Args:
        text: text tokens before the image and after it; the latter rank the vision tokens.
    """
    generator = torch.Generator().manual_seed(1)
    before, after = (torch.randint(IMAGE + 1, shape.vocabulary, (samples, size), generator=generator) for size in text)
    ids = torch.cat([before, torch.full((samples, VISION_TOKENS), IMAGE), after], dim=1).to(device)
    features = torch.randn(samples, VISION_TOKENS, shape.width, generator=generator).to(device, dtype)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(features))},
    }


@dataclass(frozen=True)
class Predicted:
    """Ratios of FLOPs, unreduced over reduced.

    Args:
        decoder: the decoder layers, which are nearly all that the clock sees; attention counted in full.
        causal: the same with half of the attention: kernels may skip what the causal mask hides.
        prefill: with tower, projector and lm head; the first two are computed beforehand here.
    """

    decoder: float
    causal: float
    prefill: float


def predict(shape: ModelShape, variant: Variant, text_tokens: int) -> Predicted:
    """The speed-ups that ``schedule.cost`` predicts; ranking and gathering count as nothing."""
    layers = ModelShape(shape.decoder, None, (), 0)

    def ratio(flops: Callable[[Sequence[float]], float]) -> float:
        return flops((1.0,) * LAYERS) / flops(variant.keep_rates)

    return Predicted(
        decoder=ratio(lambda rates: prefill_flops(layers, rates, VISION_TOKENS, text_tokens)),
        causal=ratio(lambda rates: _causal_flops(shape.decoder, rates, text_tokens)),
        prefill=ratio(lambda rates: prefill_flops(shape, rates, VISION_TOKENS, text_tokens)),
    )


def _causal_flops(decoder: DecoderShape, keep_rates: Sequence[float], text_tokens: int) -> float:
    tokens = [count + text_tokens for count in keep_counts(keep_rates, VISION_TOKENS)]
    return sum(decoder.linear_flops * n + decoder.attention_flops * n * (n + 1) / 2 for n in tokens)
