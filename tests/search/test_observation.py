from __future__ import annotations

import itertools

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.errors import SearchError
from scheduler_search.search import Observation, decide, incumbent, observe
from tests.search.simulated import scored, stage_of

STAGE = stage_of([0.0, 0.5, 1.0], penalty=0.1)


def test_an_observation_is_the_paired_difference_with_the_variance_of_its_mean() -> None:
    scores, anchor = [1.0, 0.0, 0.5, 1.0], [1.0, 1.0, 0.0, 1.0]
    seen = observe(STAGE, 1, scores, anchor)
    differences = numpy.subtract(scores, anchor)
    assert seen.score == 0.625
    assert seen.difference == differences.mean()
    assert seen.variance == pytest.approx(differences.var(ddof=1) / 4, rel=1e-15)
    assert seen.objective == 0.625 - 0.05


def test_the_anchor_differs_from_itself_by_nothing() -> None:
    seen = observe(STAGE, STAGE.anchor, [1.0], [1.0])
    assert (seen.difference, seen.variance) == (0.0, 0.0)


def test_one_sample_has_the_largest_variance_there_is() -> None:
    assert observe(STAGE, 0, [1.0], [1.0]).variance == 1.0


@pytest.mark.parametrize(("scores", "anchor"), [([], []), ([1.0, 0.0], [1.0])])
def test_scores_must_be_paired(scores: list[float], anchor: list[float]) -> None:
    with pytest.raises(SearchError, match="same samples"):
        observe(STAGE, 0, scores, anchor)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.randoms())
def test_the_order_of_samples_changes_nothing(scores: list[float], random: object) -> None:
    pairs = [(score, 1.0 - score / 3) for score in scores]
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = observe(STAGE, 1, *zip(*pairs, strict=True))
    assert observe(STAGE, 1, *zip(*shuffled, strict=True)) == first


def test_ties_go_to_fewer_tokens_whatever_the_order_of_trials() -> None:
    seen = [scored(index, 0.9, 0.9) for index in range(3)]
    for order in itertools.permutations(seen):
        assert decide(STAGE, order).candidate == 0


def test_a_tie_that_rounding_broke_is_still_a_tie() -> None:
    # 0.3 - 0.1 * 1.0 and 0.2 are equal on paper; in floating point the former, with more tokens, is smaller by 3e-17.
    cheap, dear = 0.1 + 0.2 - 0.1, 0.3 - 0.1
    assert cheap != dear
    for low, high in ((cheap, dear), (dear, cheap)):
        assert decide(STAGE, [scored(2, 1, high), scored(0, 1, low)]).candidate == 0


def test_one_sample_in_a_million_is_no_tie() -> None:
    assert decide(STAGE, [scored(0, 0, 0.9), scored(2, 0, 0.9 + 1e-6)]).candidate == 2


def test_a_decision_says_what_was_chosen() -> None:
    decision = decide(STAGE, [scored(1, 0.75, 0.7)])
    assert (decision.stage, decision.name, decision.parameter) == (0, "layer-01", "keep_rate")
    assert (decision.candidate, decision.value, decision.keep_rates) == (1, 0.5, (0.5,))
    assert (decision.score, decision.objective) == (0.75, 0.7)


def test_nothing_observed_decides_nothing() -> None:
    with pytest.raises(SearchError, match="at least one candidate that was scored on every sample"):
        decide(STAGE, [])


def test_a_trial_that_was_stopped_estimates_from_pairs() -> None:
    """The anchor's mean over all samples, and the mean difference over those that were read."""
    seen = observe(STAGE, 0, [0.0, 1.0], [1.0, 1.0, 1.0, 0.0])
    assert (seen.difference, seen.score, seen.samples, seen.total) == (-0.5, 0.25, 2, 4)
    assert seen.variance == 0.25
    assert seen.sampling_variance == 0.125
    assert not seen.complete


def test_no_stage_decides_on_a_candidate_that_was_stopped() -> None:
    stopped = observe(STAGE, 0, [1.0], [0.0, 0.0])
    whole = observe(STAGE, 1, [0.0, 0.0], [0.0, 0.0])
    assert stopped.objective > whole.objective
    assert incumbent(STAGE, [stopped, whole]) == whole
    with pytest.raises(SearchError, match="at least one candidate that was scored on every sample"):
        decide(STAGE, [stopped])


def test_figures_are_all_there_is() -> None:
    seen = observe(STAGE, 1, [0.0, 1.0], [1.0, 1.0, 0.5])
    assert Observation.of(1, seen.figures) == seen
