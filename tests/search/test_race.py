from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler_search.errors import SearchError
from scheduler_search.search import Observation, Race, Stage, decide, incumbent, observe, race_for
from tests.search.simulated import stage_of

CHUNK = 4
Table = NDArray[numpy.float64]
# How a candidate's scores are read: all of them, or the first ones.
Reader = Callable[[Stage, int, Table, Sequence[Observation]], Sequence[float]]


def raced(stage: Stage, candidate: int, scores: Table, observations: Sequence[Observation]) -> Sequence[float]:
    best = incumbent(stage, observations)
    race = race_for(stage, candidate, best, scores[best.candidate].tolist(), scores[stage.anchor].tolist())
    assert race is not None
    own: list[float] = scores[candidate].tolist()
    for start in range(0, len(own), CHUNK):
        if race.read(own[start : start + CHUNK]):
            return own[: start + CHUNK]
    return own


def looked_at_again_and_again(
    stage: Stage, candidate: int, scores: Table, observations: Sequence[Observation]
) -> Sequence[float]:
    """The usual mistake: after every chunk a paired test at level delta = 0.2, each time as if it were the only one."""
    best = incumbent(stage, observations)
    own: list[float] = scores[candidate].tolist()
    gaps = scores[best.candidate] - scores[candidate]
    for end in range(CHUNK, len(gaps), CHUNK):
        seen = gaps[:end]
        deviation = max(seen.std(ddof=1) / math.sqrt(end), 1e-9)
        if seen.mean() / deviation > 0.8416:
            return own[:end]
    return own


def decided(stage: Stage, scores: Table, read: Reader) -> tuple[int, int]:
    """The candidate that a stage decides on, and the samples that it read.

    The next candidate follows from what was seen: the neighbour of the best estimate that is free, or else the first.
    """
    anchor = scores[stage.anchor].tolist()
    observations = [observe(stage, stage.anchor, anchor, anchor)]
    while len(observations) < len(stage.candidates):
        seen = {one.candidate for one in observations}
        promising = max(observations, key=lambda one: one.objective).candidate
        free = [one for one in range(len(stage.candidates)) if one not in seen]
        candidate = min(free, key=lambda one: abs(one - promising))
        observations.append(observe(stage, candidate, read(stage, candidate, scores, observations), anchor))
    return decide(stage, observations).candidate, sum(one.samples for one in observations)


def wrong_decisions(curve: Sequence[float], read: Reader, delta: float, studies: int) -> tuple[int, float]:
    """How many of the stages decide otherwise than full evaluation would, and the share of the samples they read."""
    generator = numpy.random.default_rng(5)
    samples, wrong, share = 96, 0, 0.0
    stage = stage_of([(one + 1) / len(curve) for one in range(len(curve))], penalty=0.0, race_delta=delta)
    for _ in range(studies):
        # Candidates agree on most samples, as neighbours do; the curve is known, the order of the samples is random.
        difficulty = numpy.sort(generator.random(samples))
        scores = (difficulty[None, :] + 0.1 * generator.standard_normal((len(curve), samples))) < numpy.array(curve)[
            :, None
        ]
        ordered = scores.astype(float)[:, generator.permutation(samples)]
        whole = ordered.mean(axis=1)
        candidate, read_samples = decided(stage, ordered, read)
        wrong += bool(whole[candidate] < whole.max() - 1e-12)
        share += read_samples / ordered.size / studies
    return wrong, share


CURVES = {
    "alike": (0.6,) * 14,
    "a step": (0.2, 0.3, 0.3, 0.8, 0.82, 0.84, 0.85, 0.85),
    "nearly always right": (0.7, 0.9, 0.96, 0.97, 0.98, 0.99, 0.99, 0.99),
}


@pytest.mark.slow
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())
def test_a_stage_decides_as_full_evaluation_would(curve: tuple[float, ...]) -> None:
    wrong, share = wrong_decisions(curve, raced, 0.2, 300)
    # Were every stage wrong with the whole probability delta, more than 90 of 300 would be with probability 2e-5.
    assert wrong <= 90
    assert share < 1.0


@pytest.mark.slow
def test_that_test_notices_tests_repeated_at_a_fixed_level() -> None:
    wrong, _ = wrong_decisions(CURVES["alike"], looked_at_again_and_again, 0.2, 300)
    assert wrong > 90


@pytest.mark.slow
def test_what_is_far_worse_costs_little() -> None:
    _, share = wrong_decisions((0.2,) * 7 + (0.9,), raced, 0.05, 20)
    assert share < 0.5


@pytest.mark.slow
@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=5, max_size=5), st.data())
def test_under_the_hypothesis_a_stake_keeps_its_mean(scores: list[float], data: st.DataObject) -> None:
    """Over all orders of the samples: a martingale if the goal is the true mean, less if it is below."""
    reference = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=5, max_size=5))
    lower = data.draw(st.sampled_from([0.0, 0.1, 0.4]))
    goal = math.fsum(scores) / 5 - lower
    for length in range(1, 6):
        total = 0.0
        for order in itertools.permutations(range(5)):
            race = Race(goal, 5, 0.05, [(0.5, [reference[index] for index in order])])
            race.read([scores[index] for index in order[:length]])
            total += math.exp(race.log_stake)
        mean = total / math.factorial(5)
        assert mean <= 1 + 1e-9
        if lower == 0.0:
            assert mean == pytest.approx(1.0)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.floats(-0.5, 1.5),
    st.integers(0, 40),
)
def test_what_can_still_win_is_never_given_up_for_certain(scores: list[float], goal: float, later: int) -> None:
    total = len(scores) + later
    race = Race(goal, total, 1e-300)
    if race.read(scores) and race.log_stake < 690:
        assert math.fsum(scores) + later < goal * total + 1e-6


def test_a_candidate_that_reaches_the_goal_exactly_goes_on() -> None:
    scores = [1.0, 0.0] * 50
    race = Race(0.5, 100, 0.05)
    assert not race.read(scores)


def test_the_order_of_chunks_is_all_that_chunks_decide() -> None:
    scores = numpy.random.default_rng(0).random(60).tolist()
    whole, parts = Race(0.9, 60, 0.05), Race(0.9, 60, 0.05)
    whole.read(scores)
    for start in range(0, 60, 7):
        parts.read(scores[start : start + 7])
    assert whole.log_stake == parts.log_stake


def test_pairs_tell_sooner_where_the_reference_is_often_wrong() -> None:
    generator = numpy.random.default_rng(1)
    best = (generator.random(400) < 0.5).astype(float)
    worse = best * (generator.random(400) < 0.75)
    goal = float(best.mean())

    def stop(references: Sequence[tuple[float, Sequence[float]]]) -> int:
        race = Race(goal, 400, 1e-4, references)
        return next(index for index, score in enumerate(worse.tolist()) if race.read([score]))

    assert stop([(0.5, best.tolist())]) < stop([])


def test_no_race_for_the_anchor_and_none_where_races_are_off() -> None:
    scores = [1.0] * 10
    for delta, candidate in ((0.0, 0), (0.05, 2)):
        stage = stage_of([0.2, 0.5, 1.0], race_delta=delta)
        best = observe(stage, 2, scores, scores)
        assert race_for(stage, candidate, best, scores, scores) is None


def test_a_margin_gives_up_what_promises_less() -> None:
    scores = [1.0, 0.0] * 20
    for margin, expected in ((0.0, False), (0.6, True)):
        stage = stage_of([0.2, 0.5, 1.0], penalty=0.0, race_delta=0.05, race_margin=margin)
        best = observe(stage, 2, scores, scores)
        race = race_for(stage, 0, best, scores, scores)
        assert race is not None
        assert race.read(scores) is expected


@pytest.mark.parametrize(("level", "share", "samples"), [(0.0, 0.5, 4), (1.0, 0.5, 4), (0.05, 1.0, 4), (0.05, 0.5, 3)])
def test_a_race_without_sense_is_refused(level: float, share: float, samples: int) -> None:
    with pytest.raises(SearchError, match="a race needs a level"):
        Race(0.5, 4, level, [(share, [1.0] * samples)])
