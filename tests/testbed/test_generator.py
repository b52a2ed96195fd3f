from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.errors import DataError
from scheduler_search.testbed import Question, generate
from scheduler_search.testbed.generator import draft
from scheduler_search.testbed.questions import MIXTURE
from scheduler_search.testbed.scenes import SPLIT_CLASSES, layout_class

SPLITS = tuple(SPLIT_CLASSES)
splits = st.sampled_from(SPLITS)

# SHA-256 over what is asked of 50 images per split: a change means that published numbers no longer apply.
GOLDEN = "2378d9cb7b6548a5e23ab3f54ee299d82987ef60fb399b966866021138a09d91"


def _text(questions: list[Question]) -> str:
    return "\n".join(f"{q.image_id} {q.category} {q.question} -> {q.answer}" for q in questions)


def _pixels(question: Question) -> str:
    return hashlib.sha256(question.image.tobytes()).hexdigest()


@settings(max_examples=20, deadline=None)
@given(split=splits, seed=st.integers(), count=st.integers(0, 6), more=st.integers(0, 3))
def test_a_shorter_list_is_a_prefix_of_a_longer_one(split: str, seed: int, count: int, more: int) -> None:
    short, long = generate(split, count, seed), generate(split, count + more, seed)
    assert _text(short) == _text(long[:count])
    assert [*map(_pixels, short)] == [*map(_pixels, long[:count])]


@settings(deadline=None)
@given(first=st.tuples(splits, st.integers()), second=st.tuples(splits, st.integers()), index=st.integers(0, 10**6))
def test_splits_never_share_a_layout(first: tuple[str, int], second: tuple[str, int], index: int) -> None:
    classes = [layout_class(draft(split, seed, index).scene) for split, seed in (first, second)]
    assert (first[0] == second[0]) or classes[0] != classes[1]


@pytest.mark.slow
def test_no_two_images_are_the_same_pixels() -> None:
    pixels = [_pixels(q) for split in SPLITS for seed in (0, 1) for q in generate(split, 100, seed)]
    assert len(set(pixels)) == len(pixels)


def test_image_ids_are_unique() -> None:
    ids = [q.image_id for split in SPLITS for seed in (0, 1) for q in generate(split, 20, seed)]
    assert len(set(ids)) == len(ids)


def test_the_questions_are_the_published_ones() -> None:
    text = "\n".join(_text(generate(split, 50, 0)) for split in SPLITS)
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


def test_categories_come_in_the_share_of_the_mixture() -> None:
    # 1,000 questions; `same` and `rel` are redrawn where a scene allows none, hence the wide bound of 5 points,
    # more than 3.5 standard deviations of the most frequent category.
    found = [draft("test", 3, index).category for index in range(1000)]
    for category, weight in MIXTURE.items():
        assert found.count(category) / 1000 == pytest.approx(weight / sum(MIXTURE.values()), abs=0.05)


@pytest.mark.parametrize(("split", "count", "message"), [("dev", 1, "one of train"), ("test", -1, "0 or more")])
def test_bad_requests_are_refused(split: str, count: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(split, count, 0)


def _python(code: str, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.slow
def test_hash_randomisation_changes_nothing() -> None:
    code = (
        "from scheduler_search.testbed import generate\n"
        "for q in generate('search', 30, 7): print(q.question, q.answer, q.image.tobytes().hex()[:200])"
    )
    assert _python(code, "1") == _python(code, "2")


@pytest.mark.slow
def test_importing_the_generator_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, scheduler_search.testbed.generator\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert _python(code, "0").strip() == "[]"
