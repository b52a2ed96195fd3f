from __future__ import annotations

import subprocess
import sys

import pytest

from scheduler_search.schedule.cost import mean_prefill_flops
from scheduler_search.schedule.families import step, uniform
from scheduler_search.search import GSearch, MeanKeepRate, PrefillFlops, PSigmoid, algorithm_for
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import SplitDescription
from tests.search.shapes import TINY

SPLIT = SplitDescription("search", "sha256:0", "sha256:1", 16, (64, 40), (10, 12))


def _definition(search: dict[str, object]) -> StudyDefinition:
    data = {"source": "testbed", "search": {"samples": 2}}
    return StudyDefinition.model_validate(
        {"name": "one", "model": {"id": "testbed:tiny-llava"}, "data": data, "search": search}
    )


def test_g_search_takes_its_settings_and_the_largest_sample() -> None:
    definition = _definition({"first_layer": 2, "stride": 4, "penalty": 0.02, "initial": 3, "iterations": 5})
    assert algorithm_for(definition, 12, TINY, SPLIT) == GSearch(12, 64, 2, 4, 0.02, 3, 5)


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
    assert algorithm == PSigmoid(12, 4, expected, TINY, (64, 40), (10, 12), 3, 5)  # type: ignore[arg-type]
    assert algorithm.stages == 1


@pytest.mark.slow
def test_importing_the_search_loads_no_heavy_library() -> None:
    code = (
        "import sys, scheduler_search.search as search; search.baselines; search.next_batch;"
        "heavy = {'torch', 'botorch', 'gpytorch', 'optuna', 'sqlalchemy', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy; search.GivenSampler; assert 'optuna' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import scheduler_search.search as search

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        search.nothing  # noqa: B018
