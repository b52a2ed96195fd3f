from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scheduler_search.errors import DataError
from scheduler_search.evaluation.samples import Sample, split_digest
from scheduler_search.evaluation.splits import check_disjoint, deal, permuted


def sample(image: int, question: int) -> Sample:
    return Sample(
        f"{image}/{question}", f"question {question}", ("yes",), f"image {image}", lambda: Image.new("RGB", (1, 1))
    )


# Data sets of some images with several questions each, and sizes that may or may not fit.
DATA = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), min_size=1, max_size=60, unique=True).map(
    lambda pairs: [sample(*pair) for pair in pairs]
)
SEED = st.integers(0, 2**32 - 1)


@given(data=DATA, seed=SEED, sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_dealt_splits_have_their_sizes_and_share_no_image(
    data: list[Sample], seed: int, sizes: tuple[int, int]
) -> None:
    try:
        splits = deal(data, {"search": sizes[0], "validation": sizes[1]}, seed, "data")
    except DataError:
        # Refused only where images could not have sufficed: at most one split's worth of a last image is lost.
        largest = max(sum(other.image_digest == one.image_digest for other in data) for one in data)
        assert sum(sizes) > len(data) - (largest - 1)
        return
    assert (len(splits["search"]), len(splits["validation"])) == sizes
    check_disjoint(splits)
    assert set(splits["search"]) <= set(data)
    assert len(set(splits["search"])) == sizes[0]


@given(data=DATA, seed=SEED, order=st.randoms(use_true_random=False))
def test_the_order_in_the_file_does_not_matter(data: list[Sample], seed: int, order: object) -> None:
    shuffled = list(data)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert permuted(shuffled, seed) == permuted(data, seed)
    assert deal(shuffled, {"search": 1}, seed, "data") == deal(data, {"search": 1}, seed, "data")


def test_an_earlier_split_does_not_depend_on_a_later_one() -> None:
    data = [sample(image, question) for image in range(20) for question in range(3)]
    small = deal(data, {"search": 10, "validation": 5}, 3, "data")
    large = deal(data, {"search": 10, "validation": 40, "test": 5}, 3, "data")
    assert small["search"] == large["search"]


def test_the_seed_changes_membership_and_order() -> None:
    data = [sample(image, 0) for image in range(40)]
    first, second = (deal(data, {"search": 20}, seed, "data")["search"] for seed in (0, 1))
    # By chance equal with probability 1 / C(40, 20), about 1e-11.
    assert set(first) != set(second)
    assert split_digest(first) != split_digest(second)


def test_prefixes_of_a_split_are_random_samples() -> None:
    """Over seeds, every sample is in the first quarter of the order a quarter of the time."""
    data = [sample(image, question) for image in range(8) for question in range(2)]
    counts = dict.fromkeys(data, 0)
    seeds = 2000
    for seed in range(seeds):
        for chosen in permuted(data, seed)[:4]:
            counts[chosen] += 1
    # Binomial(2000, 1/4): standard deviation 19.4; 6 deviations on 16 samples, false alarms below 1e-7. The seeds are
    # fixed, so a run that passed passes always.
    assert all(abs(count - seeds / 4) < 6 * 19.4 for count in counts.values())


def test_too_few_samples_are_told_with_numbers() -> None:
    data = [sample(image, question) for image in range(2) for question in range(3)]
    with pytest.raises(DataError, match=r"4 samples for validation.*but got 3 left of 6 samples with 2 images"):
        deal(data, {"search": 2, "validation": 4}, 0, "data")


def test_shared_images_name_one() -> None:
    one, two = [sample(1, 0), sample(2, 0)], [sample(2, 1)]
    with pytest.raises(DataError, match="search and validation must not share images, but got 1 shared: 2/0 and 2/1"):
        check_disjoint({"search": one, "validation": two})


@pytest.mark.parametrize("change", ["question", "answers", "image_digest"])
def test_the_split_digest_covers_contents_and_order(change: str) -> None:
    def changed(**values: object) -> Sample:
        fields = {"question": "q", "answers": ("a", "b"), "image_digest": "i"} | values
        return Sample("id", load_image=lambda: Image.new("RGB", (1, 1)), **fields)  # type: ignore[arg-type]

    base: Sequence[Sample] = [changed(), sample(0, 0)]
    assert split_digest(base) == split_digest([changed(), sample(0, 0)])
    assert split_digest(base) != split_digest(base[::-1])
    other = {"question": "r", "answers": ("b", "a"), "image_digest": "j"}[change]
    assert split_digest(base) != split_digest([changed(**{change: other}), sample(0, 0)])
