"""DART against loops, one sample and one pivot at a time."""

import pytest
import torch

from scheduler_search.reducers import Grid, Tokens, reduce_tokens
from scheduler_search.reducers.attention import query_rows
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import make_rule
from tests.reducers.synthetic import Sample, tokens_of

SAMPLES = [
    Sample((Grid(4, 5),), before=1, after=4, keep=12, reduced=False, seed=3),
    Sample((Grid(3, 3), Grid(2, 4)), before=3, after=6, keep=7, reduced=True, seed=4),
    Sample((Grid(5, 5),), before=2, after=2, keep=3, reduced=True, seed=5),
    Sample((Grid(3, 4),), before=2, after=0, keep=9, reduced=False, seed=6),
    Sample((Grid(3, 4),), before=0, after=3, keep=0, reduced=False, seed=6),
]


def pivots_by_loops(tokens: Tokens, sample: int, among: list[int], count: int) -> list[int]:
    assert tokens.keys is not None
    size = {slot: float(tokens.keys[sample, slot].norm()) for slot in among}
    return sorted(among, key=lambda slot: (-size[slot], slot))[:count]


def kept_by_loops(tokens: Tokens, sample: int, image_pivots: int, text_pivots: int) -> list[int]:
    left = tokens.vision[sample].nonzero()[:, 0].tolist()
    asking = query_rows(tokens.prompt, "instruction")[sample] & ~tokens.prompt.vision[sample]
    count, slots = tokens.counts[sample], range(tokens.hidden.shape[1])
    text = [slot for slot in slots if asking[int(tokens.position[sample, slot])]]
    kept = pivots_by_loops(tokens, sample, left, min(image_pivots, count))
    pivots = kept + pivots_by_loops(tokens, sample, text, text_pivots)
    rest = count - len(kept)
    hidden = tokens.hidden[sample]
    for turn, pivot in enumerate(pivots):
        share = rest // len(pivots) + (turn < rest % len(pivots))
        free = [slot for slot in left if slot not in kept]
        likeness = {slot: float(torch.cosine_similarity(hidden[pivot], hidden[slot], dim=0)) for slot in free}
        kept = kept + sorted(free, key=lambda slot: (likeness[slot], slot))[:share]
    return sorted(kept)


@pytest.mark.parametrize(("image_pivots", "text_pivots"), [(4, 4), (1, 0), (3, 1), (9, 2)])
def test_pivots_choose_in_turn(image_pivots, text_pivots):
    rule = make_rule("dart", {"image_pivots": image_pivots, "text_pivots": text_pivots})
    reducer = load_reducer(rule, "decoder")
    tokens = tokens_of(SAMPLES, "decoder", reducer.reads, pad=2)
    reduced = reduce_tokens(reducer, tokens)
    assert torch.equal(reduced.hidden, tokens.hidden)
    for sample in range(len(SAMPLES)):
        kept = reduced.kept[sample].nonzero()[:, 0].tolist()
        assert kept == kept_by_loops(tokens, sample, image_pivots, text_pivots)
