"""The synthetic visual questions: ``generate(split, count, seed)``.

Knows: how one index of one split becomes an image with a question. Does not know: torch,
transformers, prompts, metrics.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from scheduler_search.errors import DataError
from scheduler_search.testbed.questions import MIXTURE, Asked, sample_question, view
from scheduler_search.testbed.scenes import Scene, draw_scene, random_stream, render, split_classes


@dataclass(frozen=True)
class Question:
    """One image of 64 x 64 pixels with one question; the answer is one word of the vocabulary."""

    image: Image.Image
    question: str
    answer: str
    category: str
    image_id: str


@dataclass(frozen=True)
class Draft:
    """A question before its image is rendered; ``stream`` stands where rendering goes on."""

    scene: Scene
    category: str
    asked: Asked
    stream: random.Random


def draft(split: str, seed: int, index: int) -> Draft:
    """The scene and the question of one index: a function of (split, seed, index) alone."""
    stream = random_stream(split, seed, index)
    scene = draw_scene(stream, split)
    category, asked = sample_question(view(scene), stream, MIXTURE)
    return Draft(scene, category, asked, stream)


def generate(split: str, count: int, seed: int) -> list[Question]:
    """The first ``count`` questions of a split, one image each.

    A shorter list is a prefix of a longer one. Images of different splits differ, whatever the seeds (see ``scenes``).

    Args:
        split: "train", "search", "validation" or "test".
        count: number of questions, 0 or more.
        seed: picks the sequence within the split.

    Raises:
        DataError: unknown split, or a negative count.
    """
    split_classes(split)
    if count < 0:
        raise DataError("The number of questions must be 0 or more", actual=count, place=f"testbed, split {split}")
    return [_question(split, seed, index) for index in range(count)]


def _question(split: str, seed: int, index: int) -> Question:
    drafted = draft(split, seed, index)
    words, answer = drafted.asked
    image = Image.fromarray(render(drafted.scene, drafted.stream))
    return Question(image, " ".join(words), answer, drafted.category, f"{split}-{seed}-{index}")
