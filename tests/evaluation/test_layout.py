"""Chunks of mixed lengths run as several batches, which nobody can tell from the values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.evaluation import LocalExecutor, scoring
from scheduler_search.evaluation.batches import make_parts
from scheduler_search.evaluation.layout import padding, parts_of
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.evaluation.conftest import FULL, REDUCED, write_image, write_jsonl
from tests.evaluation.test_prefixes import LARGE, assert_same, recorded, results, tasks_of

pytestmark = pytest.mark.slow

__all__ = ["recorded"]
Make = Callable[..., StudyDefinition]
WORDS = (3, 30, 4, 90, 5, 200, 80, 31)  # of the questions; 64 vision tokens and one more come with each


@pytest.fixture
def mixed(definition: Make, tmp_path: Path) -> StudyDefinition:
    """Eight questions of very different lengths, in two chunks."""
    vocabulary = ["where", "is", "red", "blue", "circle", "ring", "left", "of"]
    records = []
    for index, words in enumerate(WORDS):
        write_image(tmp_path / f"{index}.png", index)
        question = " ".join(vocabulary[(index + word) % len(vocabulary)] for word in range(words))
        records.append({"image": f"{index}.png", "question": question, "answers": ["red"]})
    path = write_jsonl(tmp_path / "mixed.jsonl", records)
    return definition(data={"path": str(path), "search": {"samples": 8}, "validation": None})


LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=40)


@given(LENGTHS)
def test_every_sample_is_in_one_part_whose_longest_is_no_more_than_a_third_longer(lengths: list[int]) -> None:
    parts = parts_of(lengths)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        assert list(part) == sorted(part)
        assert 4 * min(lengths[row] for row in part) >= 3 * max(lengths[row] for row in part)
    longest = [max(lengths[row] for row in part) for part in parts]
    assert all(4 * second < 3 * first for first, second in pairwise(longest))
    assert 4 * padding(lengths, parts) <= sum(len(part) * most for part, most in zip(parts, longest, strict=True))


@given(LENGTHS, st.randoms(use_true_random=False))
def test_who_runs_together_does_not_depend_on_the_order(lengths: list[int], order: Any) -> None:
    """Samples of equal length are always together, so lengths say it all."""
    shuffled = list(lengths)
    order.shuffle(shuffled)
    first, second = (
        sorted(sorted(values[row] for row in part) for part in parts_of(values)) for values in (lengths, shuffled)
    )
    assert first == second


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ((68, 72, 68), ((0, 1, 2),)),
        ((75, 100), ((0, 1),)),
        ((74, 100), ((1,), (0,))),
        ((50, 100, 60, 75, 55), ((1, 3), (0, 2, 4))),  # 60 begins the second part, so that 50 is in it
        ((7,), ((0,),)),
    ],
)
def test_by_hand(lengths: tuple[int, ...], parts: tuple[tuple[int, ...], ...]) -> None:
    assert parts_of(lengths) == parts


def test_a_chunk_of_like_lengths_is_the_batch_it_always_was(definition: Make) -> None:
    worker = LocalExecutor(definition())
    for (part,) in worker._prepare("search").chunks:
        assert part.rows == tuple(range(len(part.language["input_ids"])))


def test_descriptions_are_in_the_order_of_the_split(mixed: StudyDefinition) -> None:
    worker = LocalExecutor(mixed)
    split, ready = worker.split("search"), worker._prepare("search")
    assert split.text_tokens == tuple(len(sample.question.split()) + 1 for sample in ready.samples)
    assert all(len(chunk) > 1 for chunk in ready.chunks)
    for chunk, parts in enumerate(ready.chunks):
        for index, part in enumerate(parts):
            lengths = part.language["attention_mask"].sum(1).tolist()
            counts = zip(ready.vision_tokens(chunk, index), ready.part_samples(chunk, index), strict=True)
            assert lengths == [vision + len(sample.question.split()) + 1 for vision, sample in counts]


def test_what_is_spared(mixed: StudyDefinition) -> None:
    """Padding of the two chunks, in parts and whole; the numbers follow from ``WORDS`` and the order of the seed."""
    worker = LocalExecutor(mixed)
    split, ready = worker.split("search"), worker._prepare("search")
    lengths = [vision + text for vision, text in zip(split.vision_tokens, split.text_tokens, strict=True)]
    chunks = [lengths[start : start + split.chunk_size] for start in range(0, len(lengths), split.chunk_size)]
    whole = sum(padding(one, [range(len(one))]) for one in chunks)
    held = [part.language["attention_mask"] for parts in ready.chunks for part in parts]
    in_parts = sum(int((mask == 0).sum()) for mask in held)
    assert in_parts == sum(padding(one, parts_of(one)) for one in chunks)
    assert 5 * in_parts < whole


@pytest.mark.parametrize("reduction", [FULL, REDUCED], ids=["full", "reduced"])
@pytest.mark.parametrize("mode", ["prefill", "generate"])
def test_answers_are_those_of_samples_alone(mixed: StudyDefinition, reduction: Reduction, mode: scoring.Mode) -> None:
    worker = LocalExecutor(mixed)
    loaded, prompt = worker._load()
    ready, decoding = worker._prepare("search"), scoring.Decoding(mode, 4)
    for chunk, parts in enumerate(ready.chunks):
        for index, part in enumerate(parts):
            together = scoring.run(loaded, part, reduction, decoding).answers
            alone = [make_parts([sample], prompt, loaded.model) for sample in ready.part_samples(chunk, index)]
            singles = [scoring.run(loaded, one, reduction, decoding).answers for (one,) in alone]
            assert together == tuple(answer for answers in singles if answers for answer in answers)


def test_scores_come_back_in_the_order_of_the_split(mixed: StudyDefinition) -> None:
    """Every sample's own answer is made its label, one at a time: the one score of 1 is at its place."""
    worker = LocalExecutor(mixed)
    ready = worker._prepare("search")
    for index in range(len(ready.samples)):
        chunk, row = divmod(index, ready.description.chunk_size)
        (place,) = [number for number, part in enumerate(ready.chunks[chunk]) if row in part.rows]
        part = ready.chunks[chunk][place]
        answers = scoring.run(worker._load()[0], part, REDUCED, ready.decoding).answers
        assert answers is not None
        own = answers[part.rows.index(row)]
        labels = tuple("nothing" if number != index else own for number in range(len(ready.samples)))
        samples = tuple(_labelled(sample, label) for sample, label in zip(ready.samples, labels, strict=True))
        object.__setattr__(ready, "samples", samples)
        scores = [score for result in worker.run(_tasks(worker, REDUCED)) for score in result.scores]
        assert scores == [float(number == index) for number in range(len(samples))]


def _labelled(sample: Any, label: str) -> Any:
    return type(sample)(sample.id, sample.question, (label,), sample.image_digest, sample.load_image)


def _tasks(worker: LocalExecutor, reduction: Reduction) -> list[ChunkTask]:
    return [ChunkTask("search", chunk, reduction) for chunk in range(worker.split("search").chunks)]


@pytest.mark.slow
@pytest.mark.parametrize("memory", [LARGE, 150_000], ids=["large", "some"])
@pytest.mark.parametrize("objective", ["score", "fidelity"])
def test_prefixes_change_no_bit(
    mixed: StudyDefinition, recorded: list[torch.Tensor], memory: int, objective: str
) -> None:
    study = StudyDefinition.model_validate({**mixed.to_document(), "search": {"objective": objective}})
    plain, stored = LocalExecutor(study, prefix_memory=0), LocalExecutor(study, prefix_memory=memory)
    for tasks in tasks_of(plain, "attention-rank"):
        plain._references._budget = LARGE  # so that both run, and are recorded, in the same order
        expected = results(plain, tasks, recorded)
        stored._references._budget = LARGE
        assert_same(results(stored, tasks, recorded), expected)
        assert 0 < stored._prefixes.bytes <= memory


def test_the_layout_is_in_the_key(mixed: StudyDefinition, monkeypatch: pytest.MonkeyPatch) -> None:
    before = LocalExecutor(mixed).split("search")
    monkeypatch.setattr("scheduler_search.evaluation.context.LAYOUT_VERSION", 99)
    assert LocalExecutor(mixed).split("search").context_digest != before.context_digest
