from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.errors import ScheduleError
from scheduler_search.schedule import families
from scheduler_search.schedule.families import free, mean_keep_rate, sigmoid, staircase, step, uniform, withdraw

shares = st.floats(0.0, 1.0)
steepnesses = st.one_of(
    st.just(0.0), st.floats(0.0, 1e-6), st.floats(0.0, 10.0), st.floats(10.0, 2000.0), st.floats(0.0, 1.7e308)
)
domains = st.integers(1, 64).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers)))


def test_hand_made_families() -> None:
    assert uniform(5, 0.25) == (1.0, 1.0, 0.25, 0.25, 0.25)
    assert step(5, 2, 0.5) == (1.0, 1.0, 0.5, 0.5, 0.5)
    assert step(3, 0, 0.5) == (0.5, 0.5, 0.5)
    assert withdraw(4, 3) == (1.0, 1.0, 1.0, 0.0)
    assert staircase(6, [2, 4], [0.5, 0.25]) == (1.0, 1.0, 0.5, 0.5, 0.25, 0.25)
    assert free(6, {5: 0.1, 3: 0.4}) == (1.0, 1.0, 0.4, 0.4, 0.1, 0.1)
    assert free(3, {}) == (1.0, 1.0, 1.0)


@given(domains, shares, steepnesses)
def test_sigmoid_has_its_budget_exactly_and_is_a_schedule(domain: tuple[int, int], budget: float, k: float) -> None:
    layers, first = domain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = sigmoid(layers, budget, k, first)
    assert len(rates) == layers
    assert abs(mean_keep_rate(rates, first) - budget) <= 1e-12
    assert all(0.0 <= rate <= 1.0 for rate in rates)
    assert all(after <= before for before, after in pairwise(rates))
    assert rates[: first - 1] == (1.0,) * (first - 1)


@given(domains, shares)
def test_sigmoid_of_steepness_zero_is_uniform(domain: tuple[int, int], budget: float) -> None:
    layers, first = domain
    assert sigmoid(layers, budget, 0.0, first) == uniform(layers, budget, first)


@given(domains, st.floats(0.0, 0.5), st.floats(0.0, 50.0))
def test_sigmoid_is_equation_3_where_it_does_not_exceed_one(domain: tuple[int, int], budget: float, k: float) -> None:
    layers, first = domain
    middle = (first + layers) / 2
    for layer, rate in enumerate(sigmoid(layers, budget, k, first), start=1):
        if layer >= first:
            exponent = k * (layer - middle)
            expected = 0.0 if exponent > 700 else 2 * budget / (1 + math.exp(exponent))
            assert rate == pytest.approx(expected, abs=1e-12)


@given(domains, st.floats(0.01, 0.99), st.floats(0.0, 20.0))
def test_clipped_sigmoid_is_the_root_in_the_logarithm(domain: tuple[int, int], budget: float, k: float) -> None:
    """The definition of DESIGN section 4, solved the slow way: c by brentq, r = min(1, exp(c - softplus(k(i - a))))."""
    from scipy.optimize import brentq

    layers, first = domain
    middle = (first + layers) / 2
    softplus = [
        max(x, 0.0) + math.log1p(math.exp(-abs(x))) for x in (k * (i - middle) for i in range(first, layers + 1))
    ]

    def curve(c: float) -> list[float]:
        return [math.exp(min(0.0, c - value)) for value in softplus]

    low, high = math.log(2 * budget), softplus[-1]
    excess = [math.fsum(curve(c)) / len(softplus) - budget for c in (low, high)]
    # At a bound that is itself the root, rounding may leave it on the wrong side; so does a curve that no c can clip.
    root = brentq(lambda c: math.fsum(curve(c)) / len(softplus) - budget, low - 1e-9, max(low, high) + 1e-9, xtol=1e-14)
    assert excess[0] <= 1e-12
    assert sigmoid(layers, budget, k, first)[first - 1 :] == pytest.approx(curve(root), abs=1e-9)


def test_clipped_mass_is_given_back() -> None:
    rates = sigmoid(12, 0.75, 4.0)
    assert rates[2:4] == pytest.approx((1.0, 1.0), abs=1e-9)
    assert rates[-1] < 0.75 < rates[2]


def test_steepness_beyond_the_cap_changes_nothing() -> None:
    assert sigmoid(31, 0.4, families._STEEPEST) == sigmoid(31, 0.4, 1e300)
    assert sigmoid(32, 0.4, families._STEEPEST / 2) == sigmoid(32, 0.4, 1e300)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: uniform(12, 1.5), "rate must be between 0.0 and 1.0, but got 1.5"),
        (lambda: uniform(12, True), "rate must be a number, but got True"),
        (lambda: uniform(0, 0.5), "layers must be at least 1, but got 0"),
        (lambda: uniform(12, 0.5, first=13), "first must be between 1 and 12, but got 13"),
        (lambda: step(12, 13, 0.5), "K must be between 0 and 12, but got 13"),
        (lambda: step(12, 2, math.nan), "q must be finite, but got nan"),
        (lambda: withdraw(12, -1), "K must be between 0 and 12, but got -1"),
        (lambda: staircase(12, [4, 8], [0.5]), "a staircase needs one rate per boundary"),
        (lambda: staircase(12, [8, 4], [0.5, 0.25]), "boundary must be between 9 and 12, but got 4"),
        (lambda: staircase(12, [4, 8], [0.25, 0.5]), "staircase must not increase from layer to layer"),
        (lambda: free(12, {3: 0.2, 6: 0.3}), "decisions must not increase from layer to layer, but got 0.3 after 0.2"),
        (lambda: free(12, {0: 0.2}), "layer must be between 1 and 12, but got 0"),
        (lambda: sigmoid(12, 0.5, -0.1), "k must be at least 0.0, but got -0.1"),
        (lambda: sigmoid(12, 0.5, math.inf), "k must be finite, but got inf"),
        (lambda: sigmoid(12, 1.1, 1.0), "budget must be between 0.0 and 1.0, but got 1.1"),
    ],
)
def test_what_cannot_be_a_family_is_refused(build: object, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        build()  # type: ignore[operator]
    assert message in str(caught.value)
