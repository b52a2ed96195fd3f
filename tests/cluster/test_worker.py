"""A worker answers with plain data whatever happens; here it lives in this process."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_search.cluster.worker import Described, Hello, Line, Worker
from scheduler_search.errors import ModelError, WorkerMismatchError
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.study import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.cluster.executors import Faulty, plant
from tests.cluster.processes import logging_restored
from tests.coordinator.simulated import LAYERS, SimulatedExecutor

TASK = ChunkTask("search", 1, Reduction((1.0, *[0.5] * (LAYERS - 1)), make_rule("attention-rank", {})))


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    with logging_restored():
        yield Worker(definition(threads=2).to_json(), 3, Faulty(tmp_path))


def definition(**workers: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "name": "clustered",
            "model": {"id": "testbed:tiny-llava"},
            "data": {"source": "testbed", "search": {"samples": 40}},
            "workers": workers,
        }
    )


def test_its_threads_are_those_of_the_study(worker: Worker) -> None:
    assert worker.hello().fault is None
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "2"


def test_it_answers(worker: Worker) -> None:
    simulated = SimulatedExecutor(samples=40, chunk_size=4)
    hello = worker.hello().value
    assert isinstance(hello, Hello)
    assert (hello.model, hello.device) == (simulated.model(), "none")
    described = worker.describe("search").value
    assert described == Described(simulated.split("search"), {"split": "search"})
    assert worker.adopt(described).fault is None
    answer = worker.run(TASK)
    assert answer.value == next(simulated.run(iter([TASK]))).scores
    assert answer.device_bytes == 1003
    assert worker.ping().value is None
    assert worker.prefill("search", [TASK.reduction]).value == simulated.prefill_milliseconds(
        "search", [TASK.reduction]
    )


def test_what_goes_wrong_is_part_of_the_answer(worker: Worker, tmp_path: Path) -> None:
    plant(tmp_path, "raise-1")
    plant(tmp_path, "refuse-1")
    foreign, ours = worker.run(TASK), worker.run(TASK)
    assert foreign.fault is not None
    assert ours.fault is not None
    assert (foreign.fault.error, foreign.fault.text) == (None, "ValueError: chunk 1 is cursed")
    assert "executors.py" in foreign.fault.traceback
    assert isinstance(ours.fault.error, ModelError)
    assert str(pickle.loads(pickle.dumps(ours)).fault.error) == ours.fault.text
    assert worker.run(TASK).fault is None


@pytest.mark.parametrize("field", ["digest", "context_digest", "chunk_size", "vision_tokens", "samples"])
def test_another_split_than_described_is_refused_by_name(worker: Worker, field: str) -> None:
    described = worker.describe("search").value
    change = {
        "digest": "sha256:other",
        "context_digest": "sha256:other",
        "chunk_size": 5,
        "vision_tokens": (1,) * 40,
    }
    if field == "samples":
        other = dataclasses.replace(described.description, vision_tokens=(16,) * 8, text_tokens=(5,) * 8)
    else:
        other = dataclasses.replace(described.description, **{field: change[field]})
    fault = worker.adopt(dataclasses.replace(described, description=other)).fault
    assert fault is not None
    assert isinstance(fault.error, WorkerMismatchError)
    assert field.replace("_", " ") in fault.text
    assert "the search split" in fault.text


def test_lines_travel_with_the_next_answer(worker: Worker) -> None:
    logging.getLogger("somebody").warning("of %d", 1)
    logging.getLogger("transformers.models").error("of two")
    logging.getLogger("somebody").info("not this")
    said = (Line(1, "warning", "of 1"), Line(2, "error", "of two"))
    assert worker.ping().lines == said
    logging.getLogger("somewhere").error("of three")
    assert worker.ping().lines == (*said, Line(3, "error", "of three")), "the answer before may have been lost"
    assert worker.ping().lines == (Line(3, "error", "of three"),)
    assert worker.ping().lines == ()


def test_not_all_lines_of_a_worker_that_never_stops(worker: Worker) -> None:
    for number in range(250):
        logging.getLogger("somebody").warning("line %d", number)
    lines = worker.ping().lines
    assert len(lines) == 101
    assert lines[-1] == Line(101, "warning", "150 more lines")
