from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.reducers import Grid, Prompt, Tokens, reduce_tokens
from scheduler_search.reducers.bipartite import best_edge, partners
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import make_rule
from tests.reducers.synthetic import Sample, tokens_of

TOME = load_reducer(make_rule("tome"), "vision")
SAMPLES = st.builds(
    Sample,
    grids=st.builds(Grid, st.integers(1, 6), st.integers(1, 6)).map(lambda grid: (grid,)),
    before=st.integers(0, 1),
    after=st.just(0),
    keep=st.integers(0, 40),
    reduced=st.booleans(),
    seed=st.integers(0, 1 << 16),
)


def line(keys: list[list[float]], keep: int, class_token: bool = False) -> Tokens:
    """Tokens of one image with one head; hidden states are their numbers."""
    slots = len(keys)
    vision = np.ones((1, slots), dtype=np.bool_)
    vision[0, : int(class_token)] = False
    grid = Grid(1, slots - int(class_token))
    prompt = Prompt(np.zeros(vision.shape, np.int64), np.ones_like(vision), vision, ((grid,),))
    return Tokens(
        hidden=torch.arange(float(slots))[None, :, None],
        vision=torch.from_numpy(vision),
        position=torch.arange(slots)[None],
        attention=None,
        keep=torch.tensor([keep]),
        counts=(keep,),
        prompt=prompt,
        keys=torch.tensor(keys)[None, :, None, :],
        sizes=torch.ones(1, slots),
    )


# Tokens 0 and 3 are alike, so are 2 and 1 but a little less; 4 is like nothing.
KEYS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.1], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]


def test_each_token_of_the_first_set_has_one_edge_to_the_second():
    tokens = line(KEYS, keep=4)
    redundancy = best_edge(tokens, TOME.rule)[0]
    assert redundancy[0] > redundancy[2] > redundancy[4]
    assert (redundancy[1::2] == float("-inf")).all()
    kept = torch.tensor([[False, True, False, True, True, True]])
    correlation = partners(tokens, kept, TOME.rule)[0]
    finite = correlation.isfinite().nonzero().tolist()
    assert finite == [[source, target] for source in (0, 2) for target in (1, 3, 5)]


def test_the_most_similar_pairs_merge_in_the_slot_of_the_second_set():
    result = reduce_tokens(TOME, line(KEYS, keep=4))
    assert result.kept[0].tolist() == [False, True, False, True, True, True]
    assert result.hidden[0, :, 0].tolist() == [0.0, 1.5, 2.0, 1.5, 4.0, 5.0]  # dropped slots are as they were
    assert result.sizes[0, result.kept[0]].tolist() == [2.0, 2.0, 1.0, 1.0]


def test_the_class_token_has_the_first_place_and_stays():
    result = reduce_tokens(TOME, line([[1.0, 0.0, 0.0], *KEYS], keep=5, class_token=True))
    # Behind the class token patches 1, 3, 5 are the first set: 3 goes into 0, and 1 into 2 would be next.
    assert result.kept[0].tolist() == [False, True, True, True, False, True, True]
    assert result.hidden[0, :2, 0].tolist() == [0.0, 2.5]


def test_merged_tokens_weigh_what_they_stand_for():
    tokens = line(KEYS, keep=5)
    tokens = replace(tokens, sizes=torch.tensor([[3.0, 1.0, 1.0, 1.0, 1.0, 1.0]]))
    result = reduce_tokens(TOME, tokens)
    assert result.hidden[0, 3, 0] == (3 * 0 + 1 * 3) / 4
    assert result.sizes[0, 3] == 4


@given(SAMPLES)
@settings(max_examples=50)
def test_no_patch_is_lost(sample):
    tokens = tokens_of([sample], "vision", TOME.reads)
    result = reduce_tokens(TOME, tokens)
    assert result.kept.sum(1).tolist() == list(tokens.counts)
    if not tokens.counts[0]:
        return
    before, after = tokens.sizes[tokens.vision], result.sizes[result.kept]
    assert after.sum() == before.sum()
    mass = (tokens.hidden[tokens.vision] * before[:, None]).sum(0)
    torch.testing.assert_close((result.hidden[result.kept] * after[:, None]).sum(0), mass, atol=1e-9, rtol=0)


@given(st.integers(1, 12), st.booleans())
@settings(max_examples=25)
def test_all_go_where_nothing_is_promised(patches, class_token):
    """One token is never halved: the rounds end."""
    keys = torch.randn(patches + class_token, 3, generator=torch.Generator().manual_seed(0)).tolist()
    result = reduce_tokens(TOME, line(keys, keep=0, class_token=class_token))
    assert not result.kept.any()
