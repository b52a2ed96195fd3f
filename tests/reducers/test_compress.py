from dataclasses import replace

import torch

from scheduler_search.reducers import Tokens
from scheduler_search.reducers.compress import into_the_best
from scheduler_search.rule import make_rule
from tests.reducers.test_bipartite import line

NEVER = float("-inf")
RULE = make_rule("tome")


def weights_of(correlation: list[list[float]], kept: list[bool], sizes: list[float] | None) -> list[list[float]]:
    tokens: Tokens = line([[1.0]] * len(kept), sum(kept))
    tokens = replace(tokens, sizes=None if sizes is None else torch.tensor([sizes]))
    return into_the_best(tokens, torch.tensor([kept]), torch.tensor([correlation]), RULE)[0].tolist()


def test_sources_go_into_their_best_target_and_weigh_their_sizes():
    # Token 0 prefers dropped token 1, then 3 to 2; token 1 likes both alike and takes the first.
    correlation = [[0.0, 9.0, 0.1, 0.2], [0.0, 0.0, 0.5, 0.5], [0.0] * 4, [0.0] * 4]
    kept = [False, False, True, True]
    assert weights_of(correlation, kept, None) == [[0, 0, 0, 0.5], [0, 0, 0.5, 0], [0, 0, 0.5, 0], [0, 0, 0, 0.5]]
    sized = weights_of(correlation, kept, [3.0, 1.0, 1.0, 1.0])
    assert [row[3] for row in sized] == [0.75, 0.0, 0.0, 0.25]


def test_a_source_without_a_target_leaves_nothing():
    assert weights_of([[NEVER, NEVER], [0.0, 0.0]], [False, True], None) == [[0.0, 0.0], [0.0, 1.0]]
