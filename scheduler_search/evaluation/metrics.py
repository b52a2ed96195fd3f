"""The metrics by name: each turns one generated text and the sample's answers into a score in [0, 1].

Knows: ``exact-match`` and ``vqa-accuracy``, their versions, and that ``fidelity`` is one without texts. Does not know:
how the text was generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler_search.errors import DataError
from scheduler_search.evaluation import vqa

# Part of the key of every evaluation that a fidelity enters.
FIDELITY_VERSION = 1

_TRAILING_PUNCTUATION = ".,;:!?"


@dataclass(frozen=True)
class Metric:
    """A named score. ``version`` is part of the key of every evaluation: raise it when a score can change.

    Args:
        normalise: the form in which the metric compares two texts.
        score: (prediction, answers) to a number in [0, 1]; the order of the answers does not matter. None for the
            fidelity, which compares distributions instead of texts.
    """

    name: str
    version: int
    normalise: Callable[[str], str]
    score: Callable[[str, Sequence[str]], float] | None


def normalise_exactly(text: str) -> str:
    """Lower case, white space joined, trailing punctuation (``. , ; : ! ?``) removed."""
    return " ".join(text.lower().split()).rstrip(_TRAILING_PUNCTUATION + " ")


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers, both normalised, else 0."""
    return float(normalise_exactly(prediction) in {normalise_exactly(answer) for answer in answers})


_METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact-match", 1, normalise_exactly, exact_match),
        Metric("vqa-accuracy", 1, vqa.normalise, vqa.soft_score),
        Metric("fidelity", FIDELITY_VERSION, normalise_exactly, None),
    )
}


def metric_of(name: str) -> Metric:
    """The metric of that name; DataError naming the known ones where there is none."""
    metric = _METRICS.get(name)
    if metric is None:
        raise DataError(
            "a metric must be a known one", actual=repr(name), remedy=f"known metrics: {', '.join(sorted(_METRICS))}"
        )
    return metric
