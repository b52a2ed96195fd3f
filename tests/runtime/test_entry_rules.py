"""Rules in front of the decoder, in whole forward passes: with what the runtime gives them, one batch or one sample."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

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
