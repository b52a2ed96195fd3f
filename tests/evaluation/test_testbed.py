"""The executor on the shipped testbed model: it answers, and it forgets gracefully."""

from collections.abc import Iterator

import pytest
import torch

from scheduler_search.evaluation import LocalExecutor
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker() -> Iterator[LocalExecutor]:
    threads = torch.get_num_threads()
    tables = {
        "name": "testbed",
        "model": {"id": "testbed:tiny-llava", "device": "cpu"},
        "data": {"source": "testbed", "search": {"samples": 160}},
    }
    yield LocalExecutor(StudyDefinition.model_validate(tables))
    torch.set_num_threads(threads)


def mean_score(worker: LocalExecutor, rate: float) -> float:
    layers = worker.model().identity.decoder_layers
    reduction = Reduction((1.0, 1.0) + (rate,) * (layers - 2), make_rule("attention-rank"))
    tasks = [ChunkTask("search", chunk, reduction) for chunk in range(worker.split("search").chunks)]
    scores = [score for result in worker.run(tasks) for score in result.scores]
    return sum(scores) / len(scores)


def test_all_tokens_answer_nearly_everything(worker: LocalExecutor) -> None:
    # The samples are fixed: no false alarms. Its own README promises 0.95 on 1,000 questions.
    assert mean_score(worker, 1.0) >= 0.92


def test_without_vision_tokens_little_is_left(worker: LocalExecutor) -> None:
    assert mean_score(worker, 0.0) <= 0.45


def test_answers_of_the_testbed_are_one_token(worker: LocalExecutor) -> None:
    assert worker.context("search")["generation"] == {"mode": "prefill"}


def test_a_reduced_prefill_is_faster(worker: LocalExecutor) -> None:
    rule = make_rule("attention-rank")
    full, reduced = worker.prefill_milliseconds(
        "search", [Reduction((1.0,) * 12, rule), Reduction((1.0, 1.0) + (0.1,) * 10, rule)]
    )
    assert reduced < 0.8 * full  # about 0.35 on an idle machine
