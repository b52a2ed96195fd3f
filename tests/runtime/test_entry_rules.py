"""Rules in front of the decoder, in whole forward passes: with what the runtime gives them, one batch or one sample."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Reducer, Tokens
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import make_rule
from scheduler_search.runtime import apply_reduction
from scheduler_search.schedule.values import Reduction
from tests.runtime import towers
from tests.runtime.tiny import LAYERS, batch, quick_first, single_of

RULES = {
    "downsample": {},
    "fastervlm": {},
    "visionzip": {"contextual": 0.4},
    "prumerge": {"neighbours": 3},
    "divprune": {},
    "cdpruner": {},
    "visiontrim": {"complement": 0.4},
}


@cache
def model_of() -> Any:
    return towers.build("clip")


def reducing(name: str, **parameters: Any) -> Reduction:
    return Reduction((0.25,) * LAYERS, make_rule("attention-rank"), make_rule(name, parameters))


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_is_its_samples(rule: str) -> None:
    model, inputs = model_of(), batch("varying")
    with torch.inference_mode(), apply_reduction(model, reducing(rule, **RULES[rule])) as handle:
        together = model(**inputs).logits[:, -1]
        counts = handle.report().layers[0].vision_tokens
        for row, count in enumerate(counts):
            alone = model(**single_of(inputs, row)).logits[0, -1]
            torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)
            assert handle.report().layers[0].vision_tokens == (count,)
    images = (inputs["input_ids"] == model.config.image_token_id).sum(1)
    assert counts == tuple((images // 4).tolist())


@pytest.mark.parametrize("rule", quick_first(["visiontrim", "visionzip", "divprune", "cdpruner"]))
def test_under_a_quota(rule: str) -> None:
    """Both images of a sample keep their share, whatever the rule thinks of them."""
    model, inputs = model_of(), batch("varying")
    with torch.inference_mode(), apply_reduction(model, reducing(rule, quota="per-image")) as handle:
        model(**inputs)
        assert handle.report().layers[0].vision_tokens == (9, 18, 9)


def test_visiontrim_in_both_stages() -> None:
    model, inputs, rule = model_of(), batch("varying"), make_rule("visiontrim")
    with (
        torch.inference_mode(),
        apply_reduction(model, Reduction((0.5, 0.5, 0.25, 0.25, 0.25, 0.25), rule, rule)) as handle,
    ):
        together = model(**inputs).logits[:, -1]
        assert handle.report().layers[0].vision_tokens == (18, 36, 18)
        assert handle.report().layers[2].vision_tokens == (9, 18, 9)
        for row in range(len(together)):
            alone = model(**single_of(inputs, row)).logits[0, -1]
            torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("level", "layer"), [(-2, 2), (-1, 3), (2, 1)])
def test_class_attention_is_of_the_layer_whose_features_the_decoder_gets(
    level: int, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[Tokens]()

    def watching(tokens: Tokens, _rule: object) -> torch.Tensor:
        read.append(tokens)
        return torch.zeros(tokens.vision.shape)

    reads = load_reducer(make_rule("fastervlm"), "entry").reads
    towers.use_reducer(monkeypatch, "entry", Reducer(make_rule("random"), reads, watching))
    inputs, eager = batch("varying"), towers.build(attention="eager", vision_feature_layer=level)
    with torch.inference_mode(), towers.seen_attention(eager) as found:
        eager(**inputs)
    model = towers.build(vision_feature_layer=level)
    with torch.inference_mode(), apply_reduction(model, reducing("random")):
        model(**inputs)
    (tokens,) = read
    assert tokens.attention is not None
    classes = found[layer].mean(1)[:, 0, 1:]  # of each of the images, over its patches
    torch.testing.assert_close(tokens.attention[tokens.vision], classes.flatten(), rtol=1e-4, atol=1e-5)


def test_a_class_row_in_front_of_the_first_layer_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="in front of the first layer"):
        apply_reduction(towers.build(vision_feature_layer=0), reducing("fastervlm"))
