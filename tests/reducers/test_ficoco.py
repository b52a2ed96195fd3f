"""FiCoCo against loops over its equations, one sample and one pair of tokens at a time."""

import math

import pytest
import torch

from scheduler_search.reducers import Grid, Reducer, Tokens, reduce_tokens
from scheduler_search.reducers.ficoco import replaceable_in_context, replaceable_patches
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import Place, make_rule
from tests.reducers.synthetic import Sample, tokens_of

SAMPLES = [
    Sample((Grid(4, 5),), before=1, after=4, keep=7, reduced=False, seed=3),
    Sample((Grid(3, 3), Grid(2, 4)), before=3, after=6, keep=5, reduced=True, seed=4),
    Sample((Grid(5, 5),), before=2, after=2, keep=24, reduced=True, seed=5),
    Sample((Grid(3, 4),), before=0, after=3, keep=0, reduced=False, seed=6),
]
IMAGES = [
    Sample((Grid(4, 6),), before=1, after=0, keep=9, reduced=False, seed=3),
    Sample((Grid(5, 5),), before=1, after=0, keep=6, reduced=True, seed=4),
]


def batch(place: Place, reducer: Reducer, samples: list[Sample]) -> Tokens:
    return tokens_of(samples, place, reducer.reads, pad=2)


def attention_of(tokens: Tokens, sample: int) -> dict[int, list[float]]:
    """The row of every token of one sample, by slot."""
    assert tokens.rows is not None
    rows = zip(tokens.rows.slots[sample], tokens.rows.weights[sample], tokens.rows.values[sample], strict=True)
    return {int(slot): values.tolist() for slot, weight, values in rows if weight > 0}


def slots_of(tokens: Tokens, sample: int) -> tuple[list[int], list[int]]:
    """Slots of its vision tokens, and of the other tokens that have a row."""
    vision = tokens.vision[sample].nonzero()[:, 0].tolist()
    return vision, [slot for slot in attention_of(tokens, sample) if slot not in vision]


def score_by_loops(tokens: Tokens, sample: int, share: float) -> dict[int, float]:
    """Eq. 11 and 14: the class token of a tower stands where text does in a decoder."""
    attention, (vision, others) = attention_of(tokens, sample), slots_of(tokens, sample)
    scores = {}
    for i in vision:
        local = sum(attention[i][j] for j in vision) / len(vision)
        if others or len(tokens.prompt.grids) == 0:
            task = sum(attention[k][i] for k in others)
        else:
            task = sum(attention[j][i] for j in vision) / len(vision)
        scores[i] = share * local - (1 - share) * task
    return scores


def penalised_by_loops(tokens: Tokens, sample: int, scores: dict[int, float], window: int, by: float) -> None:
    """Every window's highest score is raised, in place."""
    (grid,) = tokens.prompt.grids[sample]
    patches = tokens.prompt.vision[sample].nonzero()[0].tolist()
    for top in range(0, grid.height, window):
        for left in range(0, grid.width, window):
            cells = [
                patches[row * grid.width + column]
                for row in range(top, min(top + window, grid.height))
                for column in range(left, min(left + window, grid.width))
            ]
            here = [slot for slot in scores if int(tokens.position[sample, slot]) in cells]
            if here:
                best = max(here, key=lambda slot: (scores[slot], -slot))
                scores[best] = scores[best] * by if scores[best] > 0 else scores[best] / by


def kept_by_loops(scores: dict[int, float], count: int) -> list[int]:
    return sorted(sorted(scores, key=lambda slot: (scores[slot], slot))[:count])


def correlation_by_loops(tokens: Tokens, sample: int, i: int, j: int, gamma: float | None) -> float:
    attention, (_, others) = attention_of(tokens, sample), slots_of(tokens, sample)
    if gamma is None:
        return attention[i][j]
    return gamma * attention[i][j] + (1 - gamma) * sum(attention[k][i] * attention[k][j] for k in others)


def merged_by_loops(
    tokens: Tokens, sample: int, kept: list[int], gamma: float | None, epsilon: float
) -> dict[int, torch.Tensor]:
    """Eq. 13."""
    hidden = tokens.hidden[sample]
    total = {j: hidden[j].clone() for j in kept}
    weight = dict.fromkeys(kept, 1.0)
    for i in slots_of(tokens, sample)[0]:
        if i in kept or not kept:
            continue
        row = {j: correlation_by_loops(tokens, sample, i, j, gamma) for j in kept}
        ordered = sorted(row.values())
        place = round((len(ordered) - 1) * epsilon, 9)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        threshold = low + (high - low) * (place - math.floor(place))
        linked = {j: value for j, value in row.items() if value >= threshold}
        for j, value in linked.items():
            share = value / sum(linked.values()) if sum(linked.values()) else 0.0
            total[j] += share * hidden[i]
            weight[j] += share
    return {j: total[j] / weight[j] for j in kept}


def check(tokens: Tokens, reducer: Reducer, gamma: float | None, scores: list[dict[int, float]]) -> None:
    reduced = reduce_tokens(reducer, tokens)
    for sample, count in enumerate(tokens.counts):
        kept = kept_by_loops(scores[sample], count)
        assert reduced.kept[sample].nonzero()[:, 0].tolist() == kept
        merged = merged_by_loops(tokens, sample, kept, gamma, reducer.rule.number("epsilon"))
        for slot, value in enumerate(tokens.hidden[sample]):
            torch.testing.assert_close(reduced.hidden[sample, slot], merged.get(slot, value), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("epsilon", [0.998, 0.6, 0.0, 1.0])
def test_in_the_decoder(epsilon):
    rule = make_rule("ficoco-l", {"epsilon": epsilon, "beta": 0.55, "gamma": 0.3})
    reducer = load_reducer(rule, "decoder")
    tokens = batch("decoder", reducer, SAMPLES)
    scores = [score_by_loops(tokens, sample, 0.55) for sample in range(len(SAMPLES))]
    found = replaceable_in_context(tokens, rule)
    for sample, expected in enumerate(scores):
        assert found[sample, list(expected)].tolist() == pytest.approx(list(expected.values()))
    check(tokens, reducer, 0.3, scores)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("window", "penalty"), [(2, 2.0), (3, 4.0), (1, 2.0), (2, 1.0)])
def test_in_the_tower(window, penalty, class_token):
    rule = make_rule("ficoco-v", {"window": window, "penalty": penalty, "epsilon": 0.7})
    reducer = load_reducer(rule, "vision")
    images = [Sample(one.grids, int(class_token), 0, one.keep, one.reduced, one.seed) for one in IMAGES]
    tokens = batch("vision", reducer, images)
    scores = [score_by_loops(tokens, sample, 0.35) for sample in range(len(images))]
    for sample, one in enumerate(scores):
        penalised_by_loops(tokens, sample, one, window, penalty)
    found = replaceable_patches(tokens, rule)
    for sample, expected in enumerate(scores):
        assert found[sample, list(expected)].tolist() == pytest.approx(list(expected.values()))
    check(tokens, reducer, None, scores)


def test_a_source_without_correlation_leaves_nothing():
    """The first vision token of a causal prompt attends to no target, and no text attends to it."""
    reducer = load_reducer(make_rule("ficoco-l", {"gamma": 1.0}), "decoder")
    tokens = batch("decoder", reducer, SAMPLES[:1])
    kept = tokens.vision.clone()
    kept[0, int(tokens.vision[0].nonzero()[0])] = False
    assert reducer.correlate is not None
    assert reducer.compress is not None
    correlation = reducer.correlate(tokens, kept, reducer.rule)
    first = int(tokens.vision[0].nonzero()[0])
    weights = reducer.compress(tokens, kept, correlation, reducer.rule)
    assert not weights[0, first].any()
    assert torch.equal(weights[0].diagonal()[kept[0]], torch.ones(int(kept.sum()), dtype=weights.dtype))


@pytest.mark.parametrize("place", ["vision", "decoder"])
def test_the_combined_rule_has_the_stages_of_both(place):
    single = {"vision": "ficoco-v", "decoder": "ficoco-l"}[place]
    both, one = (load_reducer(make_rule(name), place) for name in ("ficoco-vl", single))
    assert (both.filter, both.correlate, both.compress) == (one.filter, one.correlate, one.compress)
    assert both.reads == one.reads
