"""SparseVLM's raters and recycling against loops, one sample and one pair of tokens at a time."""

import math
from fractions import Fraction

import pytest
import torch

from scheduler_search.reducers import Grid, Tokens, reduce_tokens
from scheduler_search.reducers.load import load_reducer
from scheduler_search.reducers.raters import rater_weights
from scheduler_search.rule import make_rule
from tests.reducers.synthetic import Sample, tokens_of

SAMPLES = [
    Sample((Grid(8, 8),), before=1, after=4, keep=20, reduced=False, seed=3),
    Sample((Grid(3, 3), Grid(6, 4)), before=3, after=6, keep=9, reduced=True, seed=4),
    Sample((Grid(7, 9),), before=2, after=2, keep=2, reduced=True, seed=5),
    Sample((Grid(3, 4),), before=0, after=3, keep=12, reduced=False, seed=6),
    Sample((Grid(3, 4),), before=0, after=3, keep=1, reduced=False, seed=7),
]


def distance(tokens: Tokens, sample: int, one: int, other: int) -> float:
    hidden = tokens.hidden[sample]
    return float((hidden[one] - hidden[other]).square().sum()) / hidden.shape[1]


def centres_by_loops(tokens: Tokens, sample: int, clustered: list[int], count: int) -> list[int]:
    gaps = {one: {other: distance(tokens, sample, one, other) for other in clustered} for one in clustered}
    number = min(max(count, 2), len(clustered))
    density = {one: math.exp(-sum(sorted(gaps[one].values())[:number]) / number) for one in clustered}
    score = {}
    for one in clustered:
        denser = [gaps[one][other] for other in clustered if (density[other], -other) > (density[one], -one)]
        score[one] = density[one] * math.sqrt(min(denser) if denser else max(gaps[one].values()))
    return sorted(clustered, key=lambda slot: (-score[slot], slot))[:count]


def recycled_by_loops(
    tokens: Tokens, sample: int, share: float, per_cluster: int
) -> tuple[list[int], dict[int, list[int]]]:
    """The tokens that stay as they are, and the clusters by their centres."""
    assert tokens.attention is not None
    vision = tokens.vision[sample].nonzero()[:, 0].tolist()
    ranking = sorted(vision, key=lambda slot: (-float(tokens.attention[sample, slot]), slot))
    count, lost = tokens.counts[sample], len(vision) - tokens.counts[sample]
    if lost == 0 or share == 0:
        return ranking[:count], {}
    taken = Fraction(str(share))
    centres = min(1 + math.floor(taken / per_cluster * lost / (1 - taken / per_cluster)), count // 2)
    if centres == 0:
        return ranking[:count], {}
    alone, others = ranking[: count - centres], ranking[count - centres :]
    clustered = others[: max(math.floor(taken * len(others)) + 1, centres)]
    clusters: dict[int, list[int]] = {centre: [] for centre in centres_by_loops(tokens, sample, clustered, centres)}
    for slot in clustered:
        near = min(clusters, key=lambda centre: (distance(tokens, sample, slot, centre), centre))
        clusters[slot if slot in clusters else near].append(slot)
    return alone, clusters


@pytest.mark.parametrize("reconstruction", ["mean", "sum"])
@pytest.mark.parametrize(("share", "per_cluster"), [(0.3, 10), (0.5, 3), (0.9, 5), (0.0, 10)])
def test_the_best_of_the_others_are_recycled(share, per_cluster, reconstruction):
    settings = {"recycled": share, "tokens_per_cluster": per_cluster, "reconstruction": reconstruction}
    reducer = load_reducer(make_rule("sparsevlm", settings), "decoder")
    tokens = tokens_of(SAMPLES, "decoder", reducer.reads, pad=2)
    reduced = reduce_tokens(reducer, tokens)
    for sample in range(len(SAMPLES)):
        alone, clusters = recycled_by_loops(tokens, sample, share, per_cluster)
        assert reduced.kept[sample].nonzero()[:, 0].tolist() == sorted([*alone, *clusters])
        for slot, value in enumerate(tokens.hidden[sample]):
            members = tokens.hidden[sample, clusters.get(slot, [slot])]
            expected = members.mean(0) if reconstruction == "mean" else members.sum(0)
            torch.testing.assert_close(reduced.hidden[sample, slot], expected if slot in clusters else value)


def test_numbers_are_those_of_the_published_code():
    """There 300 of 576, then 66 of 303 and 17 of 74 stay, and 9, 8 and 2 recycled ones are added."""
    for total, alone, centres, clustered in ((576, 300, 9, 83), (303, 66, 8, 72), (74, 17, 2, 18)):
        reducer = load_reducer(make_rule("sparsevlm"), "decoder")
        sample = Sample((Grid(1, total),), before=1, after=2, keep=alone + centres, reduced=False, seed=1)
        tokens = tokens_of([sample], "decoder", reducer.reads)
        found_alone, clusters = recycled_by_loops(tokens, 0, 0.3, 10)
        kept = reduce_tokens(reducer, tokens).kept[0].nonzero()[:, 0].tolist()
        assert (len(found_alone), len(clusters), sum(map(len, clusters.values()))) == (alone, centres, clustered)
        assert kept == sorted([*found_alone, *clusters])


def weights_by_loops(hidden: torch.Tensor, vision: list[int], rows: list[int]) -> list[float]:
    ratings = [0.0] * len(rows)
    for token in vision:
        products = [float(hidden[token] @ hidden[row]) for row in rows]
        total = sum(math.exp(product) for product in products)
        for place, product in enumerate(products):
            ratings[place] += math.exp(product) / total / len(vision)
    raters = [rating >= sum(ratings) / len(ratings) for rating in ratings]
    return [rater / sum(raters) for rater in raters]


def test_raters():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 12, 6, generator=generator, dtype=torch.float64)
    rows = torch.tensor([[8, 9, 10, 11], [9, 10, 11, 9], [11, 11, 11, 11]])
    shares = torch.tensor([[0.25] * 4, [1 / 3, 1 / 3, 1 / 3, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    vision = (torch.arange(12) >= 2) & (torch.arange(12) < 8) & torch.tensor([True, True, False])[:, None]
    hidden[1, 5] = float("nan")
    vision[1, 5] = False
    found = rater_weights(hidden, vision, rows, shares)
    assert found[0].tolist() == pytest.approx(weights_by_loops(hidden[0], [2, 3, 4, 5, 6, 7], [8, 9, 10, 11]))
    assert found[1].tolist() == pytest.approx([*weights_by_loops(hidden[1], [2, 3, 4, 6, 7], [9, 10, 11]), 0.0])
    assert found[2].tolist() == [1.0, 0.0, 0.0, 0.0], "without an image there is one row, and it rates"
    assert (found[0] == 0).any(), "not everybody is a rater"


def test_equal_rows_are_all_raters():
    hidden = torch.randn(1, 5, 4).index_select(1, torch.tensor([0, 1, 2, 2, 2]))
    shares = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    vision = torch.tensor([[True, True, False, False, False]])
    found = rater_weights(hidden, vision, torch.tensor([[2, 3, 4]]), shares)
    assert found[0].tolist() == pytest.approx([1 / 3] * 3)
