from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.rule import make_rule
from scheduler_search.schedule.cost import mean_prefill_flops
from scheduler_search.schedule.families import free, uniform, withdraw
from scheduler_search.schedule.values import Reduction, VisionReduction
from scheduler_search.search import Baseline, baselines
from tests.search.shapes import LLAVA_7B, TINY

VISION, TEXT = (576, 576), (40, 80)
RULE = make_rule("attention-rank")
SEARCHED = Reduction(free(32, {3: 0.6, 9: 0.3, 15: 0.1, 21: 0.05}), RULE)
NAMES = ["uniform", "fastv", "random", "random-uniform", "pooling", "pyramid-drop", "withdraw"]


@pytest.fixture(scope="module")
def found() -> dict[str, Baseline]:
    return {one.name: one for one in baselines(SEARCHED, LLAVA_7B, VISION, TEXT, 3, 7)}


def test_all_of_them_are_there(found: dict[str, Baseline]) -> None:
    assert list(found) == NAMES


def test_flops_match_but_for_whole_tokens_and_layers(found: dict[str, Baseline]) -> None:
    target = mean_prefill_flops(LLAVA_7B, SEARCHED.keep_rates, VISION, TEXT)
    for name, one in found.items():
        cost = mean_prefill_flops(LLAVA_7B, one.reduction.keep_rates, VISION, TEXT)
        assert one.flops_ratio == cost / target
        if name not in ("withdraw", "pyramid-drop"):
            assert 0.99 < one.flops_ratio <= 1.0
    assert found["random"].flops_ratio == 1.0
    assert 0.98 < found["pyramid-drop"].flops_ratio <= 1.0


def test_rules_and_shapes(found: dict[str, Baseline]) -> None:
    rules = {name: one.reduction.rule.name for name, one in found.items()}
    assert [rules[name] for name in NAMES[:4]] == ["attention-rank", "fastv", "random", "random"]
    assert found["random"].reduction.rule.parameter("seed") == 7
    assert found["random"].reduction.keep_rates == SEARCHED.keep_rates
    flat = found["uniform"].reduction.keep_rates
    assert flat == uniform(32, flat[-1], 3) == found["random-uniform"].reduction.keep_rates
    assert found["fastv"].reduction.keep_rates[:3] == (1.0, 1.0, flat[-1])


def test_pooling_acts_before_the_first_layer(found: dict[str, Baseline]) -> None:
    pooling = found["pooling"].reduction
    assert len(set(pooling.keep_rates)) == 1
    assert pooling.entry_rule == make_rule("pooling")
    assert pooling.keep_rates[0] > found["uniform"].reduction.keep_rates[-1]


def test_the_staircase_has_the_shape_of_pyramid_drop(found: dict[str, Baseline]) -> None:
    rates = found["pyramid-drop"].reduction.keep_rates
    q = rates[8]
    assert rates == (1.0,) * 8 + (q,) * 8 + (q**2,) * 8 + (q**3,) * 8


def test_withdrawal_gets_the_next_larger_cost(found: dict[str, Baseline]) -> None:
    one = found["withdraw"]
    kept = one.reduction.keep_rates.count(1.0)
    assert one.reduction.keep_rates == withdraw(32, kept)
    assert one.flops_ratio >= 1.0
    earlier = mean_prefill_flops(LLAVA_7B, withdraw(32, kept - 1), VISION, TEXT)
    assert earlier < mean_prefill_flops(LLAVA_7B, SEARCHED.keep_rates, VISION, TEXT)


def test_what_cannot_be_so_cheap_gets_its_cheapest_form_and_says_so() -> None:
    searched = Reduction(free(32, {2: 0.0}), RULE)
    found = {one.name: one for one in baselines(searched, LLAVA_7B, VISION, TEXT, 2, 0)}
    assert found["fastv"].reduction.keep_rates == withdraw(32, 2)
    assert found["fastv"].flops_ratio > 1.0
    assert found["pyramid-drop"].reduction.keep_rates == withdraw(32, 8)
    assert found["pyramid-drop"].flops_ratio > found["fastv"].flops_ratio
    assert found["withdraw"].flops_ratio == 1.0
    assert found["uniform"].reduction.keep_rates == searched.keep_rates


def test_keeping_everything_has_no_baselines() -> None:
    assert baselines(Reduction((1.0,) * 32, RULE), LLAVA_7B, VISION, TEXT, 3, 0) == ()
    # 0.9999 of 576 tokens is 576: nothing is dropped either.
    assert baselines(Reduction(uniform(32, 0.9999), RULE), LLAVA_7B, VISION, TEXT, 3, 0) == ()


def test_of_an_entry_study_random_tokens_go_at_the_entry_too() -> None:
    searched = Reduction((0.25,) * 32, RULE, make_rule("pooling"))
    found = {one.name: one for one in baselines(searched, LLAVA_7B, VISION, TEXT, 3, 7)}
    random = make_rule("random", {"seed": 7})
    assert list(found) == NAMES
    assert found["random"].reduction == Reduction(searched.keep_rates, random, random)
    assert found["random"].flops_ratio == 1.0
    assert found["random-uniform"].reduction.keep_rates[:2] == (1.0, 1.0)
    assert found["pooling"].reduction.counts(576) == searched.counts(576)
    assert {name: found[name].reduction.rule for name in ("uniform", "pyramid-drop", "withdraw")} == dict.fromkeys(
        ("uniform", "pyramid-drop", "withdraw"), RULE
    )


def test_what_a_study_saves_in_the_tower_its_baselines_save_in_the_decoder(tower_rule: str) -> None:
    tower = VisionReduction((1.0,) * 4 + (0.5,) * 20, make_rule(tower_rule))
    searched = Reduction((0.5,) * 8 + (0.25,) * 24, RULE, None, tower)
    target = mean_prefill_flops(LLAVA_7B, searched.keep_rates, VISION, TEXT, tower.keep_rates)
    assert target < mean_prefill_flops(LLAVA_7B, searched.keep_rates, VISION, TEXT)
    for one in baselines(searched, LLAVA_7B, VISION, TEXT, 3, 7):
        assert one.reduction.vision is None
        assert one.flops_ratio == mean_prefill_flops(LLAVA_7B, one.reduction.keep_rates, VISION, TEXT) / target
        assert one.flops_ratio >= 1.0 if one.name == "withdraw" else 0.98 < one.flops_ratio <= 1.0
        if one.name == "random":
            rates = one.reduction.keep_rates
            assert rates[0] < 0.5
            assert rates[0] == pytest.approx(2 * rates[-1])
            assert one.reduction.entry_rule == one.reduction.rule == make_rule("random", {"seed": 7})


def test_what_a_study_saves_by_smaller_images_its_baselines_save_in_the_decoder() -> None:
    searched = Reduction((0.5,) * 32, RULE, make_rule("downsample", {"level": "image"}))
    target = mean_prefill_flops(LLAVA_7B, searched.keep_rates, VISION, TEXT, image_rate=0.5)
    assert target < mean_prefill_flops(LLAVA_7B, searched.keep_rates, VISION, TEXT)
    for one in baselines(searched, LLAVA_7B, VISION, TEXT, 3, 7):
        assert one.flops_ratio == mean_prefill_flops(LLAVA_7B, one.reduction.keep_rates, VISION, TEXT) / target
        assert one.reduction.image_rate == 1.0


def test_a_study_that_reduces_in_the_tower_alone_has_baselines(tower_rule: str) -> None:
    tower = VisionReduction((1.0,) * 23 + (0.9,), make_rule(tower_rule))
    assert len(baselines(Reduction((0.9,) * 32, RULE, None, tower), LLAVA_7B, VISION, TEXT, 3, 0)) == len(NAMES)


@settings(max_examples=60)
@given(
    rates=st.lists(st.integers(0, 64), min_size=10, max_size=10),
    vision=st.lists(st.integers(0, 64), min_size=1, max_size=3),
    first=st.integers(2, 5),
)
def test_only_shapes_that_cannot_be_so_cheap_cost_more(rates: list[int], vision: list[int], first: int) -> None:
    decided = sorted((rate / 64 for rate in rates), reverse=True)
    searched = Reduction((*(1.0,) * (first - 1), *decided[: 13 - first], *[decided[-1]] * (3 - first))[:12], RULE)
    text = [9] * len(vision)
    cheapest = {
        "uniform": first - 1,
        "random-uniform": first - 1,
        "random": 0,
        "fastv": 2,
        "pooling": 0,
        "pyramid-drop": 3,
    }
    found = baselines(searched, TINY, vision, text, first, 0)
    target = mean_prefill_flops(TINY, searched.keep_rates, vision, text)
    for one in found:
        if one.name == "withdraw":
            assert one.flops_ratio >= 1.0
        elif one.flops_ratio > 1.0:
            assert mean_prefill_flops(TINY, withdraw(12, cheapest[one.name]), vision, text) >= target
