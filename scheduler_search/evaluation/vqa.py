"""The answer normalisation and the soft score of VQA v2.

Knows: the published definition of the metric (Antol et al. 2015, visualqa.org/evaluation.html): lower case,
punctuation, number words, articles, contractions; then agreement with ten people. Does not know: models, data sets,
other metrics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

AGREEING_PEOPLE = 3

_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_DIGIT_COMMA = re.compile(r"\d,\d")

# Contractions whose spelling without apostrophe is no word of its own ("we're" and "were" cannot be told apart).
_CONTRACTIONS = tuple(
    """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
    """.split()  # noqa: SIM905 (a list literal of it is ninety lines)
)


def _spellings(contraction: str) -> list[str]:
    parts = contraction.split("'")
    marks = product(("", "'"), repeat=len(parts) - 1)
    return ["".join(part + mark for part, mark in zip(parts, (*choice, ""), strict=True)) for choice in marks]


_WITH_APOSTROPHES = {spelling: whole for whole in _CONTRACTIONS for spelling in _spellings(whole)}


def normalise(answer: str) -> str:
    """``answer`` as VQA v2 compares it.

    White space is joined; the text is lower-cased; punctuation other than apostrophe and colon is removed where it
    touches a space or where the text has a comma between digits ("1,000" is "1000"), and becomes a space elsewhere;
    periods go unless a digit follows; number words up to ten (and "none") become digits; articles go; contractions get
    their apostrophes back.
    """
    text = _without_punctuation(" ".join(answer.split()).lower())
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(_WITH_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    joined = _DIGIT_COMMA.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if joined or touches_space else " ")
    return _PERIOD.sub("", result)


def soft_score(prediction: str, answers: Sequence[str]) -> float:
    """Mean, over leaving out each answer in turn, of min(1, agreeing others / 3).

    The definition has ten answers. With n < 10 the same mean is taken, and the number of others that must agree for a
    full score is min(3, n - 1): a prediction that everybody gave scores 1 for every n. A single answer is compared
    as it is.
    """
    wanted = normalise(prediction)
    matches = sum(normalise(answer) == wanted for answer in answers)
    if len(answers) == 1:
        return float(matches)
    needed = min(AGREEING_PEOPLE, len(answers) - 1)
    agreeing = matches * min(1.0, max(matches - 1, 0) / needed)
    others = (len(answers) - matches) * min(1.0, matches / needed)
    return (agreeing + others) / len(answers)
