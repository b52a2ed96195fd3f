import math

import numpy as np
import pytest
import torch

from scheduler_search.reducers import Prompt
from scheduler_search.reducers.attention import AttentionRank, LastRowRank, attention_scores, query_rows
from scheduler_search.rule import make_rule

B, H, SHARED, S, E = 2, 4, 2, 9, 8


def full_attention(query, key, mask, scaling, softcap=None):
    """The whole matrix [B, H, S, S], in float64."""
    key = key.repeat_interleave(H // SHARED, 1)
    logits = query.double() @ key.double().transpose(2, 3) * scaling
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    return logits.masked_fill(~mask, float("-inf")).softmax(-1)


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(B, heads, S, E, generator=generator) * 2 for heads in (H, SHARED))


CAUSAL = torch.ones(S, S).tril().bool().expand(1, 1, S, S)
PADDED = CAUSAL.expand(B, 1, S, S) & (torch.arange(S) >= torch.tensor([0, 2])[:, None])[:, None, None, :]


@pytest.mark.parametrize("heads", ["mean", "max", "sum"])
@pytest.mark.parametrize("form", ["none", "bool", "additive"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_scores_are_rows_of_the_full_matrix(states, heads, form, softcap):
    query, key = states
    mask = CAUSAL if form == "none" else PADDED
    given = {
        "none": None,
        "bool": PADDED,
        "additive": torch.zeros(PADDED.shape).masked_fill(~PADDED, torch.finfo(torch.float32).min),
    }[form]
    rows, weights = torch.tensor([[6, 7, 8], [8, 8, 8]]), torch.tensor([[1 / 3] * 3, [1.0, 0, 0]])
    scaling = 1 / math.sqrt(E)
    found = attention_scores(query, key, given, rows, weights, scaling=scaling, heads=heads, softcap=softcap)
    matrix = full_attention(query, key, mask, scaling, softcap)
    by_row = {"mean": matrix.mean(1), "sum": matrix.sum(1), "max": matrix.max(1).values}[heads]
    expected = torch.stack([by_row[0, 6:9].mean(0), by_row[1, 8]])
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_low_precision_states_are_scored_in_float32(states):
    query, key = (part.to(torch.bfloat16) for part in states)
    rows, weights = torch.tensor([[8], [8]]), torch.ones(2, 1)
    found = attention_scores(query, key, None, rows, weights, scaling=0.3)
    assert found.dtype == torch.float32
    expected = full_attention(query, key, CAUSAL, 0.3).mean(1)[:, 8]
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def prompt(*rows: str) -> Prompt:
    """``.`` padding, ``t`` text, ``v`` vision."""
    marks = np.array([list(row) for row in rows])
    return Prompt(np.zeros(marks.shape, dtype=np.int64), marks != ".", marks == "v")


@pytest.mark.parametrize(
    ("text", "rows", "expected"),
    [
        ("..ttvvtt", "instruction", "......xx"),
        ("..ttvvtt", "last", ".......x"),
        ("..ttvvtt", "all", "..xx..xx"),
        ("tvvttvvt", "instruction", ".......x"),
        ("tttvvvvv", "instruction", ".......x"),
        ("vvvvvvvv", "all", ".......x"),
        ("..tttttt", "instruction", "..xxxxxx"),
        ("tvvtt...", "instruction", "...xx..."),
        ("tvvtt...", "last", "....x..."),
    ],
)
def test_query_rows(text, rows, expected):
    assert query_rows(prompt(text), rows)[0].tolist() == [mark == "x" for mark in expected]


def test_the_rules_name_their_slices():
    rank = AttentionRank(make_rule("attention-rank", {"query_rows": "all", "head_reduction": "max"}))
    assert (rank.attention.rows, rank.attention.heads) == ("all", "max")
    last = LastRowRank(make_rule("fastv"))
    assert (last.attention.rows, last.attention.heads) == ("last", "mean")
