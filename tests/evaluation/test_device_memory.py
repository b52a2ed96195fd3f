"""Device memory changes no score: with any budget, after it ran out, and with stores that are given up."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from scheduler_search.errors import ModelError
from scheduler_search.evaluation import LocalExecutor, prepared, scoring
from scheduler_search.evaluation.features import Features
from scheduler_search.evaluation.memory import default_host_memory
from scheduler_search.evaluation.models import load_model
from scheduler_search.runtime import Prefix
from scheduler_search.runtime.seen import Seen
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.evaluation.conftest import FULL, LAYERS, REDUCED
from tests.evaluation.test_prefixes import assert_same, recorded, results, tasks_of  # noqa: F401

Make = Callable[..., StudyDefinition]
# Device, host; a prefix of a chunk is about 40 KiB, features are 32 KiB.
BUDGETS = [
    ("1GiB", "1GiB"),
    ("1GiB", 0),
    ("50KiB", "200KiB"),
    ("90KiB", "50KiB"),
    ("50KiB", "50KiB"),
]


def with_budgets(make: Make, device: str | int, host: str | int, **sections: Any) -> LocalExecutor:
    return LocalExecutor(make(workers={"memory": device, "prefix_memory": host}, **sections))


def search_and_come_back(worker: LocalExecutor) -> list[ChunkTask]:
    stages = tasks_of(worker, "attention-rank")
    return [task for tasks in (*stages, stages[1][::3], stages[0][::3]) for task in tasks]


@pytest.mark.slow
@pytest.mark.parametrize(("device", "host"), BUDGETS)
def test_no_budget_changes_a_logit(
    definition: Make,
    recorded: list[torch.Tensor],  # noqa: F811
    device: str | int,
    host: str | int,
) -> None:
    plain, stored = LocalExecutor(definition(), prefix_memory=0), with_budgets(definition, device, host)
    tasks = search_and_come_back(plain)
    expected = results(plain, tasks, recorded)
    section, found = stored._definition.workers, []
    recorded.clear()
    for task in tasks:
        found += [result.scores for result in stored.run([task])]
        assert stored._memory.device_bytes <= (section.memory_bytes or 0)
        assert stored._memory.host_bytes <= (section.prefix_bytes or 0)
    assert_same((found, list(recorded)), expected)
    assert stored._memory.device_bytes > 0
    assert (stored._memory.host_bytes > 0) == (host != 0 and device != "1GiB")


@pytest.mark.slow
def test_what_was_moved_keeps_its_bits(
    definition: Make,
    recorded: list[torch.Tensor],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On one device moving shares tensors; here it copies them, as between two."""
    monkeypatch.setattr(prepared, "answer_mode", lambda *_: "prefill")
    prefix_to, features_to = Prefix.to, Features.to

    def copied(prefix: Prefix, device: torch.device) -> Prefix:
        moved = prefix_to(prefix, device)
        seen = None if moved.seen is None else Seen(*(_cloned(part) for part in vars(moved.seen).values()))
        return replace(moved, hidden=moved.hidden.clone(), seen=seen)

    def copied_features(features: Features, device: torch.device) -> Features:
        output = features_to(features, device).output
        return Features(type(output)(**{name: _cloned(value) for name, value in output.items()}))

    plain = LocalExecutor(definition(), prefix_memory=0)
    tasks = search_and_come_back(plain)
    expected = results(plain, tasks, recorded)
    monkeypatch.setattr(Prefix, "to", copied)
    monkeypatch.setattr(Features, "to", copied_features)
    assert_same(results(with_budgets(definition, "50KiB", "200KiB"), tasks, recorded), expected)


def _cloned(value: Any) -> Any:
    if value is None:
        return None
    return value.clone() if isinstance(value, torch.Tensor) else tuple(_cloned(one) for one in value)


def test_features_that_find_no_room_are_computed_again(definition: Make) -> None:
    worker = with_budgets(definition, "70KiB", "140KiB")  # a quarter of the host's holds those of one chunk
    calls: list[int] = []
    worker._load()[0].model.get_encoder(modality="image").register_forward_hook(lambda *_: calls.append(1))
    tasks = [ChunkTask("search", chunk, FULL) for chunk in (0, 1)]
    expected = list(worker.run(tasks))
    assert list(worker.run(tasks)) == expected
    assert len(calls) == 3
    assert (worker._features.bytes, worker._memory.device_bytes) == (32 * 1024, 0)


def run_out(monkeypatch: pytest.MonkeyPatch, times: int, seen: list[int] | None = None) -> None:
    """Let so many forward passes of the model run out of memory, deep inside, after some work."""
    original, left = scoring.first_logits, [times]

    def first_logits(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
        logits = original(model, arguments)
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. If reserved is large, try x")
        if seen is not None:
            seen.append(1)
        return logits

    monkeypatch.setattr(scoring, "first_logits", first_logits)


HALF = ChunkTask("search", 1, Reduction((1.0, 40 / 64, *[16 / 64] * (LAYERS - 2)), REDUCED.rule), 2)


@pytest.mark.slow
def test_out_of_memory_once_costs_the_stores_and_no_score(
    definition: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = with_budgets(definition, "1GiB", "1GiB")
    tasks = search_and_come_back(worker)
    expected = list(LocalExecutor(definition(), prefix_memory=0).run([*tasks, HALF]))
    assert list(worker.run(tasks)) == expected[:-1]
    before = worker._memory.device_bytes
    assert before > 0
    run_out(monkeypatch, 1)
    with caplog.at_level(logging.WARNING):
        assert list(worker.run([HALF])) == expected[-1:]
    assert "chunk 1 of the search split: out of device memory" in caplog.text
    assert worker._memory.device_bytes < before // 2
    assert worker._memory.device_bytes + worker._memory.host_bytes == before
    assert list(worker.run(tasks)) == expected[:-1]
    assert worker._memory.device_bytes <= before // 2


def test_out_of_memory_twice_is_one_clear_error(definition: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = with_budgets(definition, "1GiB", "1GiB")
    expected = list(worker.run([HALF]))
    run_out(monkeypatch, 2)
    with pytest.raises(ModelError) as caught:
        list(worker.run([HALF]))
    assert str(caught.value) == (
        "a chunk must fit into the memory of the device, but got CUDA out of memory. Tried to allocate 2.00 GiB."
        " (in chunk 1 of the search split); choose a smaller [data] chunk or [model] dtype (either makes it another"
        " study), fewer workers per GPU ([workers] gpus), or a GPU with more memory"
    )
    assert caught.value.__context__ is None  # its frames would hold tensors
    assert list(worker.run([HALF])) == expected


def test_any_other_error_is_not_held_up(definition: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, calls = with_budgets(definition, "1GiB", "1GiB"), []

    def first_logits(*_: Any) -> torch.Tensor:
        calls.append(1)
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(scoring, "first_logits", first_logits)
    with pytest.raises(RuntimeError, match="device-side"):
        list(worker.run([HALF]))
    assert len(calls) == 1


def test_the_vision_tower_may_run_out_too(definition: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = with_budgets(definition, "1GiB", "1GiB")
    expected = list(LocalExecutor(definition()).run([HALF]))
    base, left = worker._load()[0].model.base_model, [1]
    original = base.get_image_features

    def get_image_features(*args: Any, **settings: Any) -> Any:
        output = original(*args, **settings)
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return output

    get_image_features.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    monkeypatch.setattr(base, "get_image_features", get_image_features)
    assert list(worker.run([HALF])) == expected
    assert left == [0]


def test_measuring_times_may_run_out_too(definition: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, left = with_budgets(definition, "1GiB", "1GiB"), [1]
    original = scoring.prefill_milliseconds

    def measure(*arguments: Any) -> tuple[float, ...]:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(*arguments)

    monkeypatch.setattr(scoring, "prefill_milliseconds", measure)
    assert len(worker.prefill_milliseconds("search", [FULL])) == 1


def test_a_model_that_does_not_fit_is_one_clear_error(definition: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def to(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. If reserved is large, try x")

    monkeypatch.setattr(torch.nn.Module, "to", to)
    with pytest.raises(ModelError, match=r"must fit into the memory of its device.*9\.00 GiB\. \(in tiny\)"):
        load_model(definition().model)


def test_a_cpu_has_no_device_memory_unless_it_is_given(definition: Make) -> None:
    plain, given = LocalExecutor(definition(), share=3), with_budgets(definition, "3KiB", 0)
    assert plain.peak_memory() == 0
    plain.model()
    given.model()
    assert plain._memory.limit == default_host_memory(3)
    assert given._memory.limit == 3 * 1024
    assert plain.peak_memory() == given.peak_memory() == 0
    given.close()
    given.model()
    assert given._memory.limit == 3 * 1024
