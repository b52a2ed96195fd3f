"""Towers, rates and rules that cannot be served are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler_search.errors import UnsupportedError
from scheduler_search.rule import make_rule
from scheduler_search.runtime import apply_reduction
from scheduler_search.schedule.values import Reduction
from tests.runtime import towers
from tests.runtime.families import BUILDERS
from tests.runtime.test_tower import RULE, TOWER, model_of, reducing
from tests.runtime.tiny import batch


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((0.5,) * 4, "first tower layer must get every patch"),
        ((1.0, 0.5, 0.5, 0.25), "behind the 3 that the decoder reads"),
        ((1.0, 0.5), "the tower has 4 layers"),
    ],
)
def test_rates_that_a_tower_cannot_follow(rates: tuple[float, ...], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        apply_reduction(model_of(), reducing((rates[-1],), rates))


def test_rules_that_need_a_class_token() -> None:
    with pytest.raises(UnsupportedError, match="needs a tower that has one") as error:
        apply_reduction(model_of("siglip"), reducing((0.5,), None, "fastervlm"))
    assert "fastervlm" in str(error.value)
    with pytest.raises(UnsupportedError, match="needs a tower that has one"):
        apply_reduction(model_of("siglip"), reducing())


def test_rules_that_need_whole_images() -> None:
    with pytest.raises(UnsupportedError, match="grid of the patches"):
        apply_reduction(model_of(), reducing((0.25,), TOWER, "pooling"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layer": [-2, -1]}, "several tower layers"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
    ],
)
def test_towers_whose_patches_are_not_the_vision_tokens(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        apply_reduction(towers.build(**changes), reducing())


def test_another_layer_than_the_configured_one() -> None:
    with (
        apply_reduction(model_of(), reducing((0.5,), (1.0, 1.0, 0.5, 0.5))),
        pytest.raises(UnsupportedError, match="behind tower layer 3"),
    ):
        model_of()(**batch("single"), vision_feature_layer=-3)


@pytest.mark.parametrize("name", ["llava-next", "vipllava", "qwen2.5-vl", "internvl-qwen2", "idefics3", "gemma3"])
def test_families_whose_projector_needs_all_patches(name: str) -> None:
    model = BUILDERS[name].build("sdpa")
    layers = model.config.text_config.num_hidden_layers
    with pytest.raises(UnsupportedError, match="one by one") as error:
        apply_reduction(model, Reduction((0.5,) * layers, RULE, make_rule("fastervlm")))
    assert type(model).__name__ in str(error.value)
