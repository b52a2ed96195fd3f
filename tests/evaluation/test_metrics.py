import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.errors import DataError
from scheduler_search.evaluation.metrics import metric_of
from scheduler_search.evaluation.vqa import normalise, soft_score

WORDS = st.sampled_from(["yes", "no", "a cat", "cat.", "2", "two", "1,000", "dont", "", "?"])
ANSWERS = st.lists(WORDS, min_size=1, max_size=12)
NAMES = st.sampled_from(["exact-match", "vqa-accuracy"])


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Red.", ["red"], 1.0),
        ("  dark \n RED !", ["dark red"], 1.0),
        ("red", ["blue", "Red"], 1.0),
        ("reddish", ["red"], 0.0),
        ("3.5", ["3.5"], 1.0),
        ("3.5", ["35"], 0.0),
        ("", ["red"], 0.0),
    ],
)
def test_exact_match(prediction: str, answers: list[str], expected: float) -> None:
    assert metric_of("exact-match").score(prediction, answers) == expected


@pytest.mark.parametrize(
    ("raw", "normalised"),
    [
        ("The Cat", "cat"),
        ("a dog and an apple", "dog and apple"),
        ("Two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("1,000 people", "1000 people"),
        ("$3.50", "$3.50"),
        ("mr. smith", "mr smith"),
        ("end.", "end"),
        ("yes!", "yes "),  # no space around the mark: it becomes one, which the words then lose
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("black-and-white", "black and white"),
        ("black - white", "black white"),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("were", "were"),
        ("12:30", "12:30"),
        ("dog's", "dog's"),
        ("line\none\ttab", "line 1 tab"),
    ],
)
def test_vqa_normalisation_by_hand(raw: str, normalised: str) -> None:
    assert normalise(raw) == normalised.strip()


@given(st.text(max_size=30))
def test_vqa_normalisation_settles(text: str) -> None:
    # Removing marks can join what was apart ("a-" beside others), so only white space and case are laws for all texts.
    once = normalise(text)
    assert once == " ".join(once.split())
    assert normalise(f"  {text}\n") == once


@pytest.mark.parametrize(
    ("matches", "expected"),
    # Ten answers, m of them agree: (m * min(1, (m - 1) / 3) + (10 - m) * min(1, m / 3)) / 10, worked by hand.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_of_ten_answers(matches: int, expected: float) -> None:
    answers = ["cat"] * matches + ["dog"] * (10 - matches)
    assert soft_score("The cat.", answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["cat"], 1.0),
        (["dog"], 0.0),
        (["cat", "cat"], 1.0),
        (["cat", "dog"], 0.5),
        (["cat", "dog", "dog"], 1 / 3),  # left out: 0; each other left out: 1 of 2 needed
        (["cat"] * 4, 1.0),
    ],
)
def test_vqa_accuracy_of_fewer_answers(answers: list[str], expected: float) -> None:
    assert soft_score("cat", answers) == pytest.approx(expected, abs=1e-12)


def test_vqa_accuracy_is_the_mean_over_left_out_answers() -> None:
    """Against the definition written as loops."""
    answers = ["cat", "cat", "a cat", "dog", "dog", "bird", "two", "2", "cat!", "fish"]
    for prediction in ("cat", "dog", "two", "horse"):
        shares = []
        for left_out in range(10):
            others = [answer for index, answer in enumerate(answers) if index != left_out]
            agreeing = sum(normalise(other) == normalise(prediction) for other in others)
            shares.append(min(1.0, agreeing / 3))
        assert soft_score(prediction, answers) == pytest.approx(sum(shares) / 10, abs=1e-12)


@given(name=NAMES, prediction=WORDS, answers=ANSWERS, data=st.data())
def test_scores_are_shares_and_ignore_the_order_of_answers(
    name: str, prediction: str, answers: list[str], data: st.DataObject
) -> None:
    metric = metric_of(name)
    score = metric.score(prediction, answers)
    assert 0.0 <= score <= 1.0
    assert metric.score(prediction, data.draw(st.permutations(answers))) == score


@given(name=NAMES, answer=WORDS, count=st.integers(1, 12))
def test_what_everybody_said_scores_one(name: str, answer: str, count: int) -> None:
    assert metric_of(name).score(answer, [answer] * count) == 1.0


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="known metrics: exact-match, fidelity, vqa-accuracy"):
        metric_of("bleu")
