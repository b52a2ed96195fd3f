from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest
from optuna.trial import Trial, TrialState

from scheduler_search.errors import SearchError
from scheduler_search.search import CANDIDATE, Observation, Stage, decide, sampler_for, suggest
from tests.search.simulated import observe_candidate, stage_of, threshold_scores

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


def _study(storage: optuna.storages.BaseStorage) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name="stage", direction="maximize", load_if_exists=True)


def _attach(storage: optuna.storages.BaseStorage, sampler: str, stage: Stage, number: int) -> Trial:
    """What a coordinator does that has just started: everything anew, the running trial taken up again."""
    study = _study(storage)
    study.sampler = sampler_for(sampler, stage, SEED, number)
    trials = study.get_trials(deepcopy=False)
    return Trial(study, trials[number]._trial_id) if number < len(trials) else study.ask()


def _tell(trial: Trial, observation: Observation) -> None:
    for name in ("score", "difference", "variance", "objective"):
        trial.set_user_attr(name, getattr(observation, name))
    trial.study.tell(trial, observation.objective)


def _run(sampler: str, stage: Stage, *, killed: bool) -> list[int]:
    storage = optuna.storages.InMemoryStorage()
    tried = []
    for number in range(stage.trials):
        trial = _attach(storage, sampler, stage, number)
        if killed:  # between the trial's creation and its parameter
            trial = _attach(storage, sampler, stage, number)
        candidate = trial.suggest_int(CANDIDATE, 0, len(stage.candidates) - 1)
        if killed:  # between its parameter and its end
            trial = _attach(storage, sampler, stage, number)
            assert trial.suggest_int(CANDIDATE, 0, len(stage.candidates) - 1) == candidate
        _tell(trial, observe_candidate(stage, candidate, SCORES))
        tried.append(candidate)
    assert [one.state for one in _study(storage).trials] == [TrialState.COMPLETE] * stage.trials
    return tried


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interruption_at_every_trial_changes_nothing(sampler: str) -> None:
    undisturbed = _run(sampler, STAGE, killed=False)
    assert undisturbed[0] == STAGE.anchor
    assert _run(sampler, STAGE, killed=True) == undisturbed


@pytest.mark.slow
def test_samplers_start_alike_and_go_on_differently() -> None:
    runs = [_run(sampler, STAGE, killed=False) for sampler in SAMPLERS]
    start = 1 + STAGE.initial
    assert len({tuple(run[:start]) for run in runs}) == 1
    assert len({tuple(run[start:]) for run in runs}) == len(SAMPLERS)


def test_the_sampler_suggests_what_the_pure_function_does() -> None:
    tried = _run("expected-improvement", STAGE, killed=False)
    observations = [observe_candidate(STAGE, candidate, SCORES) for candidate in tried]
    assert tried == [suggest(STAGE, observations[:number], SEED, number) for number in range(STAGE.trials)]
    assert decide(STAGE, observations).objective == max(one.objective for one in observations)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_sampler_enumerates_a_small_domain(sampler: str, size: int) -> None:
    stage = stage_of([(index + 1) / size for index in range(size)])
    assert _run(sampler, stage, killed=True) == list(stage.order)


def test_a_pruned_trial_is_an_observation_and_a_failed_one_is_none() -> None:
    storage = optuna.storages.InMemoryStorage()
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study = _study(storage)
        trial = _attach(storage, "random", STAGE, len(study.trials))
        candidate = trial.suggest_int(CANDIDATE, 0, len(STAGE.candidates) - 1)
        for name in ("score", "difference", "variance", "objective"):
            trial.set_user_attr(name, 0.0)
        study.tell(trial, state=state)
        assert candidate != STAGE.anchor or trial.number == 0
    from scheduler_search.search.sampler import observations_before

    assert [one.candidate for one in observations_before(_study(storage), 2)] == [STAGE.anchor]
    assert observations_before(_study(storage), 0) == ()


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(SearchError, match="expected-improvement, random, tpe, gp"):
        sampler_for("cma-es", STAGE, SEED, 0)


def test_another_parameter_is_refused() -> None:
    trial = _attach(optuna.storages.InMemoryStorage(), "random", STAGE, 0)
    with pytest.raises(SearchError, match="one parameter 'candidate'"):
        trial.suggest_int("layer", 0, 3)
