from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from scheduler_search.errors import SearchError
from scheduler_search.schedule.cost import mean_prefill_flops
from scheduler_search.schedule.families import step, uniform
from scheduler_search.search import Effort, GSearch, MeanKeepRate, PrefillFlops, PSigmoid, algorithm_for
from scheduler_search.search.refined import RefinedGSearch
from scheduler_search.search.sites import TowerLayers
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import SplitDescription
from tests.search.shapes import TINY

SPLIT = SplitDescription("search", "sha256:0", "sha256:1", 16, (64, 40), (10, 12))


def _definition(search: dict[str, object], **rule: object) -> StudyDefinition:
    data = {"source": "testbed", "search": {"samples": 2}}
    model = {"id": "testbed:tiny-llava"}
    return StudyDefinition.model_validate({"name": "one", "model": model, "data": data, "search": search, "rule": rule})


def test_g_search_takes_its_settings_and_the_largest_sample() -> None:
    keys: dict[str, object] = {"first_layer": 2, "stride": 4, "penalty": 0.02, "initial": 3, "iterations": 5}
    effort = Effort(3, 5, tolerance=0.001, race_delta=0.05)
    greedy = GSearch(12, 64, math.fsum, 2, 4, 0.02, "keep-rate", effort)
    assert algorithm_for(_definition({**keys, "refine": False}), 12, TINY, SPLIT) == greedy
    assert algorithm_for(_definition(keys), 12, TINY, SPLIT) == RefinedGSearch(greedy)


def test_a_faithful_search_is_the_one_of_the_paper() -> None:
    algorithm = algorithm_for(_definition({"faithful": True}), 12, TINY, SPLIT)
    assert algorithm == GSearch(12, 64, math.fsum, effort=Effort(10, 20, faithful=True))


def test_a_penalty_per_teraflop_charges_what_the_whole_schedule_costs() -> None:
    algorithm = algorithm_for(_definition({"penalty": {"tflop": 3.0}}), 12, TINY, SPLIT)
    stage = algorithm.next_stage([])
    assert stage is not None
    for one in stage.candidates:
        assert one.flops == pytest.approx(mean_prefill_flops(TINY, one.keep_rates, (64, 40), (10, 12)), rel=1e-12)
        assert one.penalty == 3.0 * (one.flops / 1e12)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0.125, MeanKeepRate(0.125)),
        ({"tflops": 2.5}, PrefillFlops(2.5e12)),
        (
            {"as": "step", "layer": 2, "keep": 0.25},
            PrefillFlops(mean_prefill_flops(TINY, step(12, 2, 0.25), SPLIT.vision_tokens, SPLIT.text_tokens)),
        ),
        (
            {"as": "uniform", "keep": 0.25},
            PrefillFlops(mean_prefill_flops(TINY, uniform(12, 0.25, 4), SPLIT.vision_tokens, SPLIT.text_tokens)),
        ),
    ],
)
def test_p_sigmoid_takes_every_kind_of_budget(budget: object, expected: object) -> None:
    search = {"algorithm": "p-sigmoid", "first_layer": 4, "budget": budget, "initial": 3, "iterations": 5}
    algorithm = algorithm_for(_definition(search), 12, TINY, SPLIT)
    assert algorithm == PSigmoid(
        12,
        4,
        expected,  # type: ignore[arg-type]
        TINY,
        (64, 40),
        (10, 12),
        Effort(3, 5, tolerance=0.002, race_delta=0.05),
    )
    assert algorithm.stages == 1


def test_a_rule_at_the_entry_is_one_stage_without_refinement() -> None:
    algorithm = algorithm_for(_definition({}, name="pooling"), 12, TINY, SPLIT)
    assert isinstance(algorithm, GSearch)
    assert (algorithm.places, algorithm.stages, algorithm.tower) == (("entry",), 1, None)


def test_what_smaller_images_save_is_in_the_cost() -> None:
    algorithm = algorithm_for(_definition({}, name="downsample", level="image"), 12, TINY, SPLIT)
    stage = algorithm.next_stage([])
    assert stage is not None
    found = next(one for one in stage.candidates if one.value == 0.5)
    assert found.keep_rates == (0.5,) * 12
    vision, text = SPLIT.vision_tokens, SPLIT.text_tokens
    cost = mean_prefill_flops(TINY, found.keep_rates, vision, text, image_rate=0.5)
    assert found.flops == cost < mean_prefill_flops(TINY, found.keep_rates, vision, text)


def test_what_a_tower_saves_is_in_the_cost(tower_rule: str) -> None:
    algorithm = algorithm_for(_definition({}, name=tower_rule, at="vision"), 12, TINY, SPLIT)
    assert isinstance(algorithm, GSearch)
    assert algorithm.tower == TowerLayers(2, 2, 2, 6, 64)
    stage = algorithm.next_stage([])
    assert stage is not None
    rates = (1.0, *(0.5,) * 13)
    found = next(one for one in stage.candidates if one.value == 0.5)
    assert found.keep_rates == rates
    cost = mean_prefill_flops(TINY, rates[2:], SPLIT.vision_tokens, SPLIT.text_tokens, rates[:2])
    assert found.flops == cost < mean_prefill_flops(TINY, rates[2:], SPLIT.vision_tokens, SPLIT.text_tokens)


def test_layers_whose_output_is_thrown_away_are_not_searched(tower_rule: str) -> None:
    assert TINY.vision is not None
    shape = replace(TINY, vision=replace(TINY.vision, layers=9, used_layers=8))
    search = {"vision_first_layer": 2, "vision_stride": 3}
    algorithm = algorithm_for(_definition(search, name=tower_rule, at="vision"), 12, shape, SPLIT)
    assert isinstance(algorithm, GSearch)
    assert [site.position for site in algorithm.sites.all] == [2, 5, 8]


def test_a_tower_that_is_too_short_or_not_there(tower_rule: str) -> None:
    definition = _definition({"vision_first_layer": 3}, name=tower_rule, at="vision")
    with pytest.raises(SearchError, match="vision_first_layer must be at most 2"):
        algorithm_for(definition, 12, TINY, SPLIT)
    with pytest.raises(SearchError, match="needs a model with one"):
        algorithm_for(definition, 12, replace(TINY, vision=None), SPLIT)


@pytest.mark.slow
def test_importing_the_search_loads_no_heavy_library() -> None:
    code = (
        "import sys, scheduler_search.search as search; search.baselines; search.next_batch;"
        "heavy = {'torch', 'botorch', 'gpytorch', 'optuna', 'sqlalchemy', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
