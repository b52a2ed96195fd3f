"""What several stages work out of the same tokens is worked out once, and never of others."""

from dataclasses import replace

import pytest

from scheduler_search.reducers import Grid, bipartite, load, mustdrop, reduce_tokens, visiontrim
from scheduler_search.rule import make_rule
from tests.reducers.synthetic import Sample, tokens_of


def test_other_tokens_remember_nothing_of_these() -> None:
    tokens = tokens_of([Sample((Grid(2, 3),), 1, 2, 3, reduced=False, seed=0)], "decoder", _reads("fastv", "decoder"))
    assert tokens.once("key", lambda: 1) == 1
    assert tokens.once("key", lambda: 2) == 1
    assert replace(tokens).once("key", lambda: 2) == 2


@pytest.mark.parametrize(
    ("rule", "place", "module", "work"),
    [
        ("tome", "vision", bipartite, "cosine"),
        ("mustdrop", "vision", mustdrop, "_pyramid"),
        ("visiontrim-decoder", "decoder", visiontrim, "local_affinity"),
    ],
)
def test_filter_and_correlate_share_their_work(rule, place, module, work, monkeypatch) -> None:
    calls, original = [], getattr(module, work)
    monkeypatch.setattr(module, work, lambda *given: (calls.append(1), original(*given))[1])
    before = 0 if place == "vision" else 2
    after = 0 if place == "vision" else 3
    reducer = load.load_reducer(make_rule(rule), place)
    reduce_tokens(
        reducer, tokens_of([Sample((Grid(3, 4),), before, after, 8, reduced=False, seed=1)], place, reducer.reads)
    )
    assert len(calls) == 1


def _reads(rule: str, place: str):
    return load.load_reducer(make_rule(rule), place).reads
