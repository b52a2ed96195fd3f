import math

import numpy as np
import pytest
import torch

from scheduler_search.reducers import AttentionRows, Prompt, Tokens
from scheduler_search.reducers.attention import (
    Options,
    attention_matrix,
    attention_scores,
    last_in_order,
    least_attended,
    most_attended,
    query_rows,
    unimportant_or_alike,
)
from scheduler_search.rule import declaration_of, make_rule

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
    options = Options(scaling, heads, softcap)
    found = attention_scores(query, key, given, rows, weights, options)
    matrix = full_attention(query, key, mask, scaling, softcap)
    by_row = {"mean": matrix.mean(1), "sum": matrix.sum(1), "max": matrix.max(1).values}[heads]
    expected = torch.stack([by_row[0, 6:9].mean(0), by_row[1, 8]])
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    each = attention_matrix(query, key, given, rows, options)
    torch.testing.assert_close(each[0].double(), by_row[0, 6:9], atol=1e-6, rtol=0)
    torch.testing.assert_close(each[1, 0].double(), by_row[1, 8], atol=1e-6, rtol=0)


def test_many_rows_are_read_in_pieces(states, monkeypatch):
    query, key = states
    rows = torch.arange(S).expand(B, S)
    weights, options = torch.full((B, S), 1 / S), Options(0.3)
    whole = (
        attention_scores(query, key, None, rows, weights, options),
        attention_matrix(query, key, None, rows, options),
    )
    monkeypatch.setattr("scheduler_search.reducers.attention._MOST_LOGITS", B * H * S * 2)
    pieces = (
        attention_scores(query, key, None, rows, weights, options),
        attention_matrix(query, key, None, rows, options),
    )
    torch.testing.assert_close(pieces[0], whole[0])
    torch.testing.assert_close(pieces[1], whole[1])


def test_low_precision_states_are_scored_in_float32(states):
    query, key = (part.to(torch.bfloat16) for part in states)
    rows, weights = torch.tensor([[8], [8]]), torch.ones(2, 1)
    found = attention_scores(query, key, None, rows, weights, Options(0.3))
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
        ("..tvvtvt", "last-vision", "......x."),
        ("..tvvtvt", "vision", "...xx.x."),
        ("..tvvtvt", "every", "..xxxxxx"),
        ("..tttttt", "vision", ".......x"),
    ],
)
def test_query_rows(text, rows, expected):
    assert query_rows(prompt(text), rows)[0].tolist() == [mark == "x" for mark in expected]


def reads(name, parameters=None, version=None):
    rule = make_rule(name, parameters or {}, version=version)
    return declaration_of(name, version).stages["decoder"].reads(rule)


def test_the_rules_name_their_slices():
    rank = reads("attention-rank", {"query_rows": "all", "head_reduction": "max"})
    assert (rank.rows, rank.heads) == ("all", "max")
    last = reads("fastv", {})
    assert (last.rows, last.heads) == ("last", "mean")
    assert reads("fastv", {"query_rows": "every"}).rows == "every"
    assert reads("fastv-vision").rows == "last-vision"
    assert reads("fastv-window").grids
    assert not reads("fastv-window", {"shape": "run"}).grids
    assert not reads("vtw").layer
    pyramid = reads("pyramid-drop")
    assert (pyramid.rows, pyramid.own_layer, pyramid.layer, pyramid.layer_before) == ("last", True, True, False)


def test_the_second_version_of_fastv_reads_what_the_first_did():
    assert reads("fastv", version=1) == reads("fastv", version=2)
    assert make_rule("fastv").version == 2
    assert dict(make_rule("fastv", version=1).parameters) == {
        name: value for name, value in make_rule("fastv").parameters if name != "query_rows"
    }


def tokens_of(attention: torch.Tensor, hidden: torch.Tensor) -> Tokens:
    """Five vision tokens between two of text; the last is the one that asks, a filler in front."""
    vision = torch.tensor([[False, False, True, True, True, True, True, False]])
    rows = AttentionRows(attention[:, None], torch.tensor([[7]]), torch.ones(1, 1))
    prompt = Prompt(np.zeros((1, 8), np.int64), np.ones((1, 8), np.bool_), vision.numpy())
    position = torch.tensor([[0, 0, 3, 4, 9, 11, 12, 13]])
    return Tokens(hidden, vision, position, attention, torch.tensor([2]), (2,), prompt, rows)


@pytest.fixture
def scored():
    """Attention that eight slots receive, and their hidden states."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 8, generator=generator), torch.randn(1, 8, 4, generator=generator)


def test_filters(scored):
    attention, hidden = scored
    tokens = tokens_of(attention, hidden)
    assert torch.equal(least_attended(tokens, make_rule("fastv")), -attention)
    assert torch.equal(most_attended(tokens, make_rule("fastv-reverse")), attention)
    assert last_in_order(tokens, make_rule("vtw")).tolist() == tokens.position.tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_importance_and_redundancy_are_scaled_among_the_vision_tokens(scored, alpha):
    attention, hidden = scored
    attention[0, 0] = 50.0  # text, and a filler: of no account
    found = unimportant_or_alike(tokens_of(attention, hidden), make_rule("importance-redundancy", {"alpha": alpha}))
    important = attention[0, 2:7].double()
    alike = torch.nn.functional.cosine_similarity(hidden[0, 2:7].double(), hidden[0, 7:].double(), dim=-1)
    important, alike = ((part - part.min()) / (part.max() - part.min()) for part in (important, alike))
    torch.testing.assert_close(
        found[0, 2:7].double(), -(alpha * important + (1 - alpha) * (1 - alike)), atol=1e-6, rtol=0
    )


def test_equal_importance_leaves_the_rest_to_decide(scored):
    attention, hidden = scored
    found = unimportant_or_alike(tokens_of(torch.ones(1, 8), hidden), make_rule("importance-redundancy"))
    alone = unimportant_or_alike(tokens_of(attention, hidden), make_rule("importance-redundancy", {"alpha": 0.0}))
    assert found[0, 2:7].argsort().tolist() == alone[0, 2:7].argsort().tolist()
