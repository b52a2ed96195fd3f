"""ToMe, EViT and MustDrop inside a tiny CLIP tower, against the tower written out one image at a time.

The reference takes the weights of the tower, its own attention in float64, and merges as ``originals`` does.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from scheduler_search.rule import make_rule
from scheduler_search.runtime import apply_reduction
from scheduler_search.schedule.values import Reduction, VisionReduction
from tests.reducers.originals import Token, attentive_and_fused, merged_to, windows_merged
from tests.runtime.tiny import IMAGE, LAYERS, SIDE, TOKENS, batch, build, quick_first

RULES = ("tome", "evit", "mustdrop")
# 36 patches: at most half of them, and more than half, where ToMe needs two rounds.
RATES = {"one": (1.0, 0.6, 0.6), "two": (1.0, 0.75, 0.3), "many": (1.0, 0.2, 0.1), "none": (1.0, 0.5, 0.0)}
COUNTS = {"one": (36, 22, 22), "two": (36, 27, 11), "many": (36, 7, 4), "none": (36, 18, 0)}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Of each attention implementation, a model whose projector reads the last of three tower layers."""
    models = {attention: build(attention=attention) for attention in ("sdpa", "eager")}
    for model in models.values():
        model.config.vision_feature_layer = -1
    return models


def reduction(rule: str, rates: tuple[float, ...], **parameters: Any) -> Reduction:
    vision = VisionReduction(rates, make_rule(rule, parameters))
    return Reduction((rates[-1],) * LAYERS, make_rule("attention-rank"), None, vision)


def projected(model: Any, inputs: dict[str, torch.Tensor], applied: Reduction) -> tuple[torch.Tensor, Any, Any]:
    """What the projector gets of the tower, [images, tokens, D], the logits, and the report."""
    seen = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        with apply_reduction(model, applied) as handle:
            logits = model(**inputs).logits
            return seen[0], logits, handle.report()
    finally:
        hook.remove()


@dataclass
class Image:
    """The tokens of one image in front of a tower layer, the class token first, and what the layer before showed."""

    index: list[int]  # 0 for the class token, then the patch from 1
    hidden: torch.Tensor  # [n, D]
    sizes: torch.Tensor  # [n]
    keys: torch.Tensor | None = None  # [n, E], heads averaged
    attended: torch.Tensor | None = None  # [n], by the class token


def run_layer(layer: Any, image: Image) -> Image:
    """One CLIP layer with proportional attention: softmax(Q K^T / sqrt(E) + log sizes)."""
    attention = layer.self_attn
    normed = layer.layer_norm1(image.hidden)

    def heads(projection: Any) -> torch.Tensor:
        return projection(normed).unflatten(1, (attention.num_heads, -1)).transpose(0, 1)

    query, key, value = heads(attention.q_proj), heads(attention.k_proj), heads(attention.v_proj)
    logits = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5 + image.sizes.log()
    shares = logits.softmax(-1)
    mixed = (shares @ value).transpose(0, 1).flatten(1)
    hidden = image.hidden + attention.out_proj(mixed)
    hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return Image(image.index, hidden, image.sizes, key.mean(0), shares.mean(0)[0])


def tome(image: Image, count: int) -> Image:
    tokens = [
        Token(index, image.hidden[at].numpy(), image.keys[at].numpy(), float(image.sizes[at]), at == 0)
        for at, index in enumerate(image.index)
    ]
    left = merged_to(tokens, count) if count else tokens[:1]
    values = torch.from_numpy(np.array([token.value for token in left]))
    return Image([token.index for token in left], values, torch.tensor([token.size for token in left]).double())


def evit(image: Image, count: int) -> Image:
    values, attended = image.hidden[1:].numpy(), image.attended[1:].numpy()
    order = np.argsort(-attended, kind="stable")[:count]
    found = attentive_and_fused(values, attended, count, normalise=False) if count else values[:0]
    by_place = np.argsort(order)
    hidden = torch.cat([image.hidden[:1], torch.from_numpy(found[by_place])])
    return Image([0, *(image.index[1:][at] for at in sorted(order))], hidden, torch.ones(count + 1).double())


def mustdrop(image: Image, count: int) -> Image:
    patches = {
        divmod(index - 1, SIDE): (index, [value.numpy()])
        for index, value in zip(image.index[1:], image.hidden[1:], strict=True)
    }
    left = sorted(windows_merged(patches, count, 3).items()) if count else []
    values = [image.hidden[0].numpy(), *(value for _, value in left)]
    return Image([0, *(slot for slot, _ in left)], torch.from_numpy(np.array(values)), torch.ones(count + 1).double())


MERGES: dict[str, Callable[[Image, int], Image]] = {"tome": tome, "evit": evit, "mustdrop": mustdrop}


def by_hand(model: Any, pixels: torch.Tensor, counts: tuple[int, ...], rule: str) -> list[Image]:
    """What each image is behind the tower."""
    tower = in_double(model.model.vision_tower)
    images = []
    for one in pixels.double():
        hidden = tower.pre_layrnorm(tower.embeddings(one[None]))[0]
        image = Image(list(range(TOKENS + 1)), hidden, torch.ones(TOKENS + 1).double())
        for layer, count in zip(tower.encoder.layers, counts, strict=True):
            if count < len(image.index) - 1:
                image = MERGES[rule](image, count)
            image = run_layer(layer, image)
        images.append(image)
    return images


def in_double(tower: Any) -> Any:
    """A copy of the tower in float64, without the hooks and forwards of the original."""
    copied = copy.deepcopy(tower).double()
    return getattr(copied, "vision_model", copied)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
def test_the_tower_equals_the_one_written_out(models, attention, rule, rates):
    """Counts are exact, and of ToMe the attention is proportional."""
    model, inputs = models[attention], batch("varying")
    features, _, report = projected(model, inputs, reduction(rule, RATES[rates]))
    counts = COUNTS[rates]
    assert [layer.vision_tokens for layer in report.tower] == list(counts)
    assert features.shape[:2] == (len(inputs["pixel_values"]), counts[-1])
    per_sample = (inputs["input_ids"] == IMAGE).sum(1) // TOKENS * counts[-1]
    assert all(layer.vision_tokens == tuple(per_sample.tolist()) for layer in report.layers)
    for found, expected in zip(features, by_hand(model, inputs["pixel_values"], counts, rule), strict=True):
        torch.testing.assert_close(found.double(), expected.hidden[1:], atol=2e-5, rtol=1e-5)


def test_proportional_attention_is_what_tome_adds(models):
    """Where every token weighed the same, the tower would give something else: the test above would see it."""
    model, inputs = models["sdpa"], batch("single")
    image, *_ = by_hand(model, inputs["pixel_values"], COUNTS["one"], "tome")
    assert image.sizes[1:].sum() == TOKENS
    assert image.sizes.max() > 1
    first = model.model.vision_tower
    layer = in_double(first).encoder.layers[-1]
    alike = run_layer(layer, Image(image.index, image.hidden, torch.ones_like(image.sizes)))
    sized = run_layer(layer, image)
    assert (alike.hidden - sized.hidden).abs().max() > 1e-2


@pytest.mark.parametrize("quota", ["pooled", "per-image"])
@pytest.mark.parametrize("name", ["varying", "mixed"])
def test_mustdrop_in_all_three_places(models, name, quota):
    """Merged in the tower, filtered by class attention in front of the decoder and by text's inside it."""
    model, inputs, rule = models["sdpa"], batch(name), make_rule("mustdrop", {"quota": quota})
    rates = (0.5, 0.5, 0.3, 0.3, 0.1, 0.0)
    applied = Reduction(rates, rule, rule, VisionReduction((1.0, 0.8, 0.7), rule))
    with apply_reduction(model, applied) as handle:
        logits = model(**inputs).logits
        report = handle.report()
    assert [layer.vision_tokens for layer in report.tower] == [36, 29, 25]
    vision = (inputs["input_ids"] == IMAGE).sum(1).tolist()
    counts = [tuple(int(rate * size + 0.5) for size in vision) for rate in rates]
    assert [layer.vision_tokens for layer in report.layers] == counts
    assert logits.isfinite().all()
