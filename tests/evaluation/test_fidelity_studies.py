"""Studies whose objective, or metric, is the fidelity to the unreduced model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scheduler_search.errors import DataError
from scheduler_search.evaluation import LocalExecutor, prepared, scoring
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.evaluation.conftest import FULL, LAYERS, REDUCED, uniform_from_second, write_jsonl

pytestmark = pytest.mark.slow

Make = Callable[..., StudyDefinition]


def tasks_of(worker: LocalExecutor, split: Any, *reductions: Reduction, shared: int = 0) -> list[ChunkTask]:
    chunks = range(worker.split(split).chunks)
    return [ChunkTask(split, chunk, reduction, shared) for reduction in reductions for chunk in chunks]


def values(worker: LocalExecutor, split: Any, *reductions: Reduction, shared: int = 0) -> list[float]:
    tasks = tasks_of(worker, split, *reductions, shared=shared)
    return [value for result in worker.run(tasks) for value in result.scores]


def test_the_objective_is_for_the_search_split(definition: Make) -> None:
    score, fidelity, both = (
        LocalExecutor(definition(search={"objective": objective}))
        for objective in ("score", "fidelity", {"fidelity": 0.25})
    )
    metric, agreement = values(score, "search", REDUCED), values(fidelity, "search", REDUCED)
    assert values(both, "search", REDUCED) == pytest.approx(
        [0.25 * f + 0.75 * m for f, m in zip(agreement, metric, strict=True)], abs=1e-15
    )
    assert values(fidelity, "search", FULL) == [1.0] * 7
    assert values(fidelity, "validation", REDUCED) == values(score, "validation", REDUCED)
    assert set(values(fidelity, "validation", REDUCED)) <= {0.0, 1.0}


def test_the_objective_is_in_the_key_only_where_it_acts(definition: Make) -> None:
    digests = {}
    for objective in ("score", "fidelity", {"fidelity": 0.25}, {"fidelity": 0.5}):
        worker = LocalExecutor(definition(search={"objective": objective}))
        digests[str(objective)] = (
            worker.split("search").context_digest,
            worker.split("validation").context_digest,
            worker.context("search"),
        )
    assert len({search for search, _, _ in digests.values()}) == 4
    assert len({validation for _, validation, _ in digests.values()}) == 1
    plain = LocalExecutor(definition())
    assert plain.split("search").context_digest == digests["score"][0]
    assert "fidelity" not in plain.context("search")
    assert digests["fidelity"][2] == plain.context("search") | {"fidelity": {"weight": 1.0, "version": 1}}


def test_the_metric_is_for_every_split(definition: Make) -> None:
    worker = LocalExecutor(definition(data={"metric": "fidelity"}, search={"objective": {"fidelity": 0.5}}))
    assert worker.context("search")["metric"] == worker.context("validation")["metric"] == ["fidelity", 1]
    assert "fidelity" not in worker.context("search")
    objective = LocalExecutor(definition(search={"objective": "fidelity"}))
    assert values(worker, "search", REDUCED) == values(objective, "search", REDUCED)
    found = values(worker, "validation", FULL, REDUCED)
    assert found[:4] == [1.0] * 4
    assert all(0 < value < 1 for value in found[4:])


@pytest.mark.parametrize("tokens", [1, 4])
def test_half_precision(definition: Make, tokens: int) -> None:
    data = {"metric": "fidelity", "max_new_tokens": tokens}
    worker = LocalExecutor(definition(model={"dtype": "bfloat16"}, data=data))
    assert values(worker, "search", FULL) == [1.0] * 7
    assert all(0 < value < 1 for value in values(worker, "search", REDUCED))


@pytest.fixture
def label_free(data_file: Path, tmp_path: Path) -> Path:
    records = [json.loads(line) for line in data_file.read_text().splitlines()]
    for record in records:
        del record["answers"]
        record["image"] = str(data_file.parent / record["image"])
    return write_jsonl(tmp_path / "label-free.jsonl", records)


def test_a_study_without_labels(definition: Make, label_free: Path) -> None:
    worker = LocalExecutor(definition(data={"path": str(label_free), "metric": "fidelity", "max_new_tokens": 5}))
    assert worker.context("search")["generation"] == {"mode": "generate", "max_new_tokens": 5, "end_tokens": 3}
    for split in ("search", "validation"):
        full, reduced = values(worker, split, FULL), values(worker, split, REDUCED)
        assert set(full) == {1.0}
        assert all(0 < value < 1 for value in reduced)
        assert values(worker, split, REDUCED) == reduced


def test_one_new_token_is_one_prefill_without_labels_too(definition: Make, label_free: Path) -> None:
    worker = LocalExecutor(definition(data={"path": str(label_free), "metric": "fidelity", "max_new_tokens": 1}))
    assert worker.context("search")["generation"] == {"mode": "prefill"}


def test_a_metric_needs_labels(definition: Make, label_free: Path) -> None:
    with pytest.raises(DataError, match=r"must have the key 'answers' \(.*line 1\); .*metric = \"fidelity\""):
        LocalExecutor(definition(data={"path": str(label_free)})).split("search")
    with pytest.raises(DataError, match="must have the key 'answers'"):  # of the validation split, from the same file
        LocalExecutor(definition(data={"path": str(label_free)}, search={"objective": "fidelity"})).split("search")


def test_a_search_split_of_its_own_needs_none_for_its_objective(
    definition: Make, label_free: Path, data_file: Path
) -> None:
    search = {"samples": 7, "path": str(label_free)}
    data = {"search": search, "validation": None, "path": str(data_file), "max_new_tokens": 3}
    worker = LocalExecutor(definition(data=data, search={"objective": "fidelity"}))
    assert values(worker, "search", FULL) == [1.0] * 7


@pytest.mark.parametrize("memory", [1 << 30, 120_000, 0], ids=["large", "some", "none"])
@pytest.mark.parametrize("mode", ["prefill", "generate"])
def test_memory_changes_no_value(
    definition: Make, mode: scoring.Mode, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "answer_mode", lambda *_: mode)
    study = definition(data={"max_new_tokens": 4}, search={"objective": {"fidelity": 0.5}})
    reductions = [Reduction((1.0, 0.25, *[kept / 64] * 2), REDUCED.rule) for kept in (16, 12, 3, 0)]
    expected = [one for reduction in reductions for one in values(LocalExecutor(study), "search", reduction)]
    worker = LocalExecutor(study, prefix_memory=memory)
    assert values(worker, "search", *reductions, shared=2) == expected
    assert values(worker, "search", *reductions[::-1], shared=2)[-7:] == expected[:7]
    assert worker._references.bytes <= memory // 4
    assert worker._prefixes.bytes <= memory - memory // 4
    assert (worker._references.bytes > 0, worker._prefixes.bytes > 0) == (memory > 0, memory > 0)


def test_references_are_computed_once(definition: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = scoring.make_reference
    monkeypatch.setattr(scoring, "make_reference", lambda *three: calls.append(1) or original(*three))
    worker = LocalExecutor(definition(search={"objective": "fidelity"}))
    values(worker, "search", FULL, REDUCED, uniform_from_second(0.5))
    assert len(calls) == worker.split("search").chunks
    worker.close()
    assert worker._references.bytes == 0


def test_a_study_that_compares_nothing_gives_its_memory_to_prefixes(definition: Make) -> None:
    worker = LocalExecutor(definition(), prefix_memory=1000)
    assert (worker._memory.limit, worker._references._budget) == (1000, 0)
    worker = LocalExecutor(definition(workers={"prefix_memory": "1KiB"}, data={"metric": "fidelity"}))
    assert (worker._memory.limit, worker._references._budget) == (768, 256)
    assert LocalExecutor(definition(workers={"prefix_memory": 0}))._memory.limit == 0
    assert len(FULL.keep_rates) == LAYERS
