from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest

from scheduler_search.search import Observation, next_batch
from tests.search.simulated import observe_candidate, run_stage, stage_of, threshold_scores

SAMPLERS = ["expected-improvement", "random", "tpe", "gp"]
pytestmark = pytest.mark.usefixtures("one_thread")

STAGE = stage_of([index / 200 for index in range(201)], initial=4, iterations=5)
SCORES = threshold_scores(200, needed=0.4, spread=0.1, seed=0)
SEED = 11


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(verbosity)


def _run(name: str) -> list[int]:
    _, observations = run_stage(STAGE, SCORES, lambda stage, seen: next_batch(stage, seen, SEED, name=name))
    return [one.candidate for one in observations]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_fills_a_stage_the_same_way_again(name: str) -> None:
    tried = _run(name)
    assert tried[0] == STAGE.anchor
    assert len(tried) == STAGE.trials
    assert _run(name) == tried


@pytest.mark.slow
def test_samplers_go_on_differently() -> None:
    assert len({tuple(_run(name)) for name in SAMPLERS}) == len(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_sampler_enumerates_a_small_domain(name: str, size: int) -> None:
    stage = stage_of([(index + 1) / size for index in range(size)])
    _, observations = run_stage(stage, SCORES, lambda stage, seen: next_batch(stage, seen, SEED, name=name))
    assert [one.candidate for one in observations] == list(stage.order)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_stand_ins_leave_studies_and_random_generators_alone(name: str) -> None:
    import numpy

    observations: list[Observation] = [observe_candidate(STAGE, candidate, SCORES) for candidate in _run("random")[:6]]
    numpy.random.seed(0)
    first = next_batch(STAGE, observations, SEED, name=name)
    numpy.random.seed(1)
    assert next_batch(STAGE, observations, SEED, name=name) == first
