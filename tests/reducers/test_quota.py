from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.reducers import Prompt, Tokens, image_runs, least_redundant
from scheduler_search.reducers.quota import image_shares, spread_over_images

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=6)


def handed_out(sizes: list[int], count: int) -> list[int]:
    """Webster's method as a book has it: each seat to the largest N / (2 s + 1), ties to the first."""
    shares = [0] * len(sizes)
    for _ in range(count):
        claims = [Fraction(size, 2 * share + 1) for size, share in zip(sizes, shares, strict=True)]
        shares[claims.index(max(claims))] += 1
    return shares


@given(SIZES, st.data())
def test_shares_are_those_of_webster(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    shares = image_shares(sizes, count)
    assert list(shares) == handed_out(sizes, count)
    assert sum(shares) == count
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))


@given(SIZES)
def test_shares_are_nested(sizes):
    before = image_shares(sizes, 0)
    for count in range(1, sum(sizes) + 1):
        shares = image_shares(sizes, count)
        assert sorted(after - share for after, share in zip(shares, before, strict=True))[:-1] == [0] * (len(sizes) - 1)
        before = shares


def test_the_largest_remainder_would_not_be_nested():
    """Why this rule and not the usual one: from 10 to 11 tokens the third image would lose one (Alabama paradox)."""
    sizes = [6, 6, 2]

    def by_remainder(count: int) -> list[int]:
        exact = [Fraction(count * size, sum(sizes)) for size in sizes]
        shares = [int(value) for value in exact]
        order = sorted(range(3), key=lambda image: -(exact[image] - shares[image]))
        for image in order[: count - sum(shares)]:
            shares[image] += 1
        return shares

    assert (by_remainder(10), by_remainder(11)) == ([4, 4, 2], [5, 5, 1])
    assert (image_shares(sizes, 10), image_shares(sizes, 11)) == ((5, 4, 1), (5, 5, 1))


@given(st.integers(1, 8), st.integers(1, 40), st.data())
def test_equal_images_have_equal_shares(images, size, data):
    count = data.draw(st.integers(0, images * size))
    shares = image_shares([size] * images, count)
    assert max(shares) - min(shares) <= 1
    assert sorted(shares, reverse=True) == list(shares)  # what is over goes to the first


def test_the_shares_of_many_tokens():
    """A video's worth: proportional to within one token."""
    sizes = [576, 2880, 1200, 3]
    for count in (0, 1, 17, 1000, 4658, 4659):
        for share, size in zip(image_shares(sizes, count), sizes, strict=True):
            assert abs(share - Fraction(count * size, sum(sizes))) < 1


@pytest.mark.parametrize(
    ("row", "cut", "expected"),
    [
        ("..vvv.vv.", None, [-1, -1, 0, 0, 0, -1, 1, 1, -1]),
        ("vvvv..vv", 2, [0, 0, 1, 1, -1, -1, 2, 2]),
        ("vvv.vv", 2, [0, 0, 0, -1, 1, 1]),  # three tokens are not whole images of two: one image
        ("...", 2, [-1, -1, -1]),
    ],
)
def test_images_are_runs(row, cut, expected):
    assert image_runs(np.array([[letter == "v" for letter in row]]), cut).tolist() == [expected]


@st.composite
def batches(draw):
    """Samples of several images with scores, some tokens gone already, and a count for each."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        sizes = draw(st.lists(st.integers(1, 6), min_size=0, max_size=4))
        marks = "." + "".join("v" * size + "." for size in sizes)
        rows.append(marks)
    length = max(map(len, rows))
    marks = np.array([["p"] * (length - len(row)) + list(row) for row in rows])
    vision = torch.from_numpy(marks == "v")
    gone = torch.tensor(draw(st.lists(st.booleans(), min_size=marks.size, max_size=marks.size))).view(marks.shape)
    scores = draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, float("nan")]), min_size=marks.size, max_size=marks.size))
    left = vision & ~gone if draw(st.booleans()) else vision
    keep = torch.tensor([draw(st.integers(0, int(row.sum()))) for row in left])
    prompt = Prompt(np.zeros(marks.shape, np.int64), marks != "p", marks == "v", (), image_runs(marks == "v"))
    return prompt, torch.tensor(scores).view(marks.shape), left, keep


def kept_of(prompt, scores, left, keep):
    position = torch.arange(prompt.slots).expand(prompt.samples, -1)
    hidden = torch.zeros(*position.shape, 2)
    tokens = Tokens(hidden, left, position, None, keep, tuple(keep.tolist()), prompt)
    return least_redundant(spread_over_images(scores, tokens), left, keep)


@given(batches())
def test_each_image_keeps_its_share_of_its_best(drawn):
    prompt, scores, left, keep = drawn
    kept = kept_of(*drawn)
    assert torch.equal(kept.sum(1), keep)
    assert not (kept & ~left).any()
    scores = torch.nan_to_num(scores, nan=9.0)
    for row, images in enumerate(torch.from_numpy(prompt.images)):
        sizes = [int((images == image).sum()) for image in range(int(images.max()) + 1)]
        shares = image_shares(sizes, int(keep[row])) if sizes else ()
        for image, share in enumerate(shares):
            mine = images == image
            held = int((left[row] & mine).sum())
            if bool((left[row] == torch.from_numpy(prompt.vision)[row]).all()):
                assert int((kept[row] & mine).sum()) == share
            elif int((kept[row] & mine).sum()) < share:
                assert held == int((kept[row] & mine).sum())  # all it had left
            dropped = left[row] & mine & ~kept[row]
            if (kept[row] & mine).any() and dropped.any():
                assert scores[row][kept[row] & mine].max() <= scores[row][dropped].min()


@given(batches())
def test_a_batch_is_its_samples_and_choices_are_nested(drawn):
    prompt, scores, left, keep = drawn
    kept = kept_of(*drawn)
    for row in range(prompt.samples):
        real = prompt.real[row]
        first = int(real.argmax())
        images = prompt.images[row : row + 1, first:]
        vision = prompt.vision[row : row + 1, first:]
        alone = Prompt(np.zeros(vision.shape, np.int64), real[None, first:], vision, (), images)
        single = kept_of(alone, scores[row : row + 1, first:], left[row : row + 1, first:], keep[row : row + 1])
        assert torch.equal(single[0], kept[row, first:])
    fewer = kept_of(prompt, scores, left, (keep - 1).clamp(min=0))
    assert not (fewer & ~kept).any()
