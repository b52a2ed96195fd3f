from dataclasses import replace

import pytest
import torch

from scheduler_search.reducers import Grid, Tokens, reduce_tokens
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import make_rule
from tests.reducers.synthetic import Sample, tokens_of

# Attention that the class token, slot 0, pays; the rest of its row goes to itself.
ATTENTION = [0.1, 0.3, 0.05, 0.1, 0.4, 0.05]


def tokens_with(keep: int) -> Tokens:
    """A class token and five patches, whose hidden states are powers of ten."""
    reducer = load_reducer(make_rule("evit"), "vision")
    tokens = tokens_of([Sample((Grid(1, 5),), 1, 0, keep, False, 0)], "vision", reducer.reads)
    hidden = torch.tensor([0.0, 1.0, 10.0, 100.0, 1000.0, 10000.0], dtype=torch.float64)[None, :, None]
    return replace(tokens, hidden=hidden, attention=torch.tensor(ATTENTION, dtype=torch.float64)[None])


def reduced(keep: int, normalise: bool = False) -> tuple[list[bool], list[float]]:
    reducer = load_reducer(make_rule("evit", {"normalise": normalise}), "vision")
    result = reduce_tokens(reducer, tokens_with(keep))
    return result.kept[0].tolist(), result.hidden[0, :, 0].tolist()


def test_the_fused_token_has_the_slot_of_its_most_attended_part_and_counts():
    kept, hidden = reduced(3)
    assert kept == [False, True, False, True, True, False]
    assert hidden == pytest.approx([0.0, 1.0, 10.0, 0.05 * 10 + 0.1 * 100 + 0.05 * 10000, 1000.0, 10000.0])


def test_weights_of_the_fused_token_can_be_normalised():
    _, hidden = reduced(3, normalise=True)
    assert hidden[3] == pytest.approx((0.05 * 10 + 0.1 * 100 + 0.05 * 10000) / 0.2)


def test_one_token_is_the_fused_one():
    kept, hidden = reduced(1)
    assert kept == [False] * 4 + [True, False]
    assert hidden[4] == pytest.approx(0.3 * 1 + 0.05 * 10 + 0.1 * 100 + 0.4 * 1000 + 0.05 * 10000)


def test_where_nothing_is_promised_nothing_is_left():
    kept, hidden = reduced(0)
    assert not any(kept)
    assert hidden == [0.0, 1.0, 10.0, 100.0, 1000.0, 10000.0]


def test_where_nothing_is_dropped_nothing_is_fused():
    kept, hidden = reduced(5)
    assert kept == [False] + [True] * 5
    assert hidden == [0.0, 1.0, 10.0, 100.0, 1000.0, 10000.0]


def test_of_equally_attended_tokens_the_last_kept_is_the_fused_one():
    tokens = replace(tokens_with(3), attention=torch.full((1, 6), 1 / 6, dtype=torch.float64))
    result = reduce_tokens(load_reducer(make_rule("evit"), "vision"), tokens)
    assert result.kept[0].tolist() == [False, True, True, True, False, False]
    assert result.hidden[0, :3, 0].tolist() == [0.0, 1.0, 10.0]
    assert result.hidden[0, 3, 0].item() == pytest.approx(11100 / 6)
