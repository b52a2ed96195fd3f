"""A split that another worker described: built where it is run, and refused where it is not the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scheduler_search.errors import DataError, WorkerMismatchError
from scheduler_search.evaluation import LocalExecutor, context
from scheduler_search.evaluation.samples import Sample
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask, SplitDescription
from tests.evaluation.conftest import FULL, REDUCED, save_tiny_model

Make = Callable[..., StudyDefinition]


@pytest.fixture
def first(definition: Make) -> LocalExecutor:
    return LocalExecutor(definition())


def second(first: LocalExecutor, study: StudyDefinition, *, named: bool = True, **changes: Any) -> LocalExecutor:
    """A worker that is told what the first one described, with changes, and its context if ``named``."""
    known = replace(first.split("search"), **changes)
    context = json.loads(json.dumps(first.context("search")))
    worker = LocalExecutor(study)
    worker.expect(known, context if named else None)
    return worker


def test_only_chunks_that_are_run_are_built(
    first: LocalExecutor, definition: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [ChunkTask("search", chunk, reduction) for chunk in (0, 1) for reduction in (FULL, REDUCED)]
    expected = list(first.run(tasks))
    opened: list[int] = []
    worker = second(first, definition())
    load = Sample.__getattribute__

    def watched(sample: Sample, name: str) -> Any:
        if name == "load_image":
            opened.append(1)
        return load(sample, name)

    monkeypatch.setattr(Sample, "__getattribute__", watched)
    assert worker.split("search") == first.split("search")
    assert worker.context("search") == first.context("search")
    assert (worker._prepare("search").chunks.built, opened) == ((), [])
    assert list(worker.run(tasks[2:])) == expected[2:]
    assert (worker._prepare("search").chunks.built, len(opened)) == ((1,), 3)
    assert list(worker.run(tasks)) == expected
    assert len(opened) == 7


def test_splits_that_are_not_known_are_described(first: LocalExecutor, definition: Make) -> None:
    assert second(first, definition()).split("validation") == first.split("validation")


def test_the_description_that_is_known_is_the_one_that_is_given(first: LocalExecutor, definition: Make) -> None:
    worker = LocalExecutor(definition(), known={"search": first.split("search")})
    assert worker.split("search") is first.split("search")
    worker.close()
    assert list(worker.run([ChunkTask("search", 1, FULL)])) == list(first.run([ChunkTask("search", 1, FULL)]))


def test_a_worker_that_described_a_split_itself_keeps_it(first: LocalExecutor, definition: Make) -> None:
    worker, own = LocalExecutor(definition()), first.split("search")
    assert worker.split("search") == own
    worker.expect(own)
    assert len(worker._prepare("search").chunks.built) == own.chunks


def refusal(worker: LocalExecutor) -> str:
    with pytest.raises(WorkerMismatchError) as caught:
        worker.split("search")
    assert "(in search split); let every machine have the same files" in str(caught.value)
    return str(caught.value)


def test_other_weights_are_named(first: LocalExecutor, definition: Make, tmp_path: Path) -> None:
    study = definition(model={"id": str(save_tiny_model(tmp_path / "tiny", seed=3))})
    text = refusal(second(first, study))
    assert "but got other weights (sha256:" in text
    assert "files" not in text.split(";")[0]


def test_other_software_and_devices_are_named(
    first: LocalExecutor, definition: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.split("search")
    original = context.version
    monkeypatch.setattr(context, "version", lambda name: "0.1" if name == "torch" else original(name))
    monkeypatch.setattr(context, "device_kind", lambda _: "cuda H1")
    text = refusal(second(first, definition()))
    assert f"but got other device (cuda H1 for cpu {torch.backends.cpu.get_cpu_capability()}), " in text
    assert f"libraries.torch (0.1 for {torch.__version__}) (in search" in text


def test_where_only_digests_are_known_it_says_what_it_has(
    first: LocalExecutor, definition: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.split("search")
    monkeypatch.setattr(context, "device_kind", lambda _: "cuda H1")
    text = refusal(second(first, definition(), named=False))
    assert "other context than that of the first worker; here: device cuda H1, dtype float32, weights sha256:" in text


@pytest.mark.parametrize("named", [True, False])
def test_other_data_are_named(first: LocalExecutor, definition: Make, named: bool) -> None:
    worker = second(first, definition(data={"search": {"samples": 6}}), named=named)
    assert "but got other data (sha256:" in refusal(worker)


def test_many_differences_are_counted(first: LocalExecutor, definition: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first.split("search")
    monkeypatch.setattr(context, "version", lambda _: "0.1")
    monkeypatch.setattr(context, "device_kind", lambda _: "cuda H1")
    study = definition(model={"dtype": "bfloat16", "attention": "eager"})
    text = refusal(second(first, study))
    assert "attention (eager for sdpa), device (" in text
    assert " and 2 more (in search" in text


def changed_counts(split: SplitDescription, kind: str, sample: int) -> tuple[int, ...]:
    counts: list[int] = list(getattr(split, kind))
    counts[sample] += 1
    return tuple(counts)


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_other_token_counts_are_refused_by_chunk(first: LocalExecutor, definition: Make, kind: str) -> None:
    counts = changed_counts(first.split("search"), f"{kind}_tokens", 5)
    worker = second(first, definition(), **{f"{kind}_tokens": counts})
    list(worker.run([ChunkTask("search", 0, FULL)]))
    expected = (
        rf"tokens that the first worker counted, but got {counts[5] - 1} {kind} tokens for {counts[5]} in sample 5"
    )
    with pytest.raises(DataError, match=rf"{expected} \(in chunk 1 of the search split\)"):
        list(worker.run([ChunkTask("search", 1, FULL)]))
    assert worker._prepare("search").chunks.built == (0,)
