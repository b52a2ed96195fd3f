import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scheduler_search.errors import DataError, ModelError
from scheduler_search.evaluation import LocalExecutor
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask, Executor
from tests.evaluation.conftest import FULL, REDUCED

Make = Callable[..., StudyDefinition]


def executor(definition: StudyDefinition) -> LocalExecutor:
    return LocalExecutor(definition)


def scores(worker: LocalExecutor, tasks: list[ChunkTask]) -> dict[ChunkTask, tuple[float, ...]]:
    return {result.task: result.scores for result in worker.run(tasks)}


def tasks_of(worker: LocalExecutor, *reductions: Reduction) -> list[ChunkTask]:
    chunks = range(worker.split("search").chunks)
    return [ChunkTask("search", chunk, reduction) for reduction in reductions for chunk in chunks]


def test_is_an_executor(definition: Make) -> None:
    worker: Executor = executor(definition())
    description = worker.split("search")
    assert (description.samples, description.chunks, description.chunk_size) == (7, 2, 4)
    assert description.vision_tokens == (64,) * 7
    # <s> and the words of the question: three or seven.
    assert set(description.text_tokens) == {4, 8}
    (first, last) = worker.run([ChunkTask("search", 0, FULL), ChunkTask("search", 1, FULL)])
    assert (len(first.scores), len(last.scores)) == (4, 3)
    assert all(type(score) is float for score in first.scores)
    worker.close()


def test_describes_the_model_without_its_path(definition: Make, tiny_model: Path) -> None:
    description = executor(definition()).model()
    assert description.identity.id == "tiny"
    assert description.identity.decoder_layers == description.shape.decoder.layers == 4
    environment = dict(description.environment)
    assert environment["dtype"] == "float32"
    assert environment["attention"] == "sdpa"
    assert environment["threads"] == "1"
    assert str(tiny_model.parent) not in repr(description)


def test_a_split_that_the_study_does_not_have(definition: Make) -> None:
    with pytest.raises(DataError, match="must have a test split"):
        executor(definition()).split("test")


def test_nothing_is_loaded_before_it_is_needed(definition: Make) -> None:
    executor(definition(model={"id": "/nowhere/at/all"}, data={"path": "/nowhere/data.jsonl"}))


def test_data_are_checked_before_the_model_is_loaded(definition: Make) -> None:
    worker = executor(definition(model={"id": "/nowhere/at/all"}, data={"path": "/nowhere/data.jsonl"}))
    with pytest.raises(DataError, match="data file must be readable"):
        worker.split("search")


def test_the_thread_count_is_the_one_of_the_study(definition: Make) -> None:
    executor(definition(workers={"threads": 2}))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "metric_and_tokens", [{}, {"metric": "vqa-accuracy"}, {"prompt": "ask {question}"}], ids=["exact", "vqa", "prompt"]
)
def test_results_do_not_depend_on_order_or_company(definition: Make, metric_and_tokens: dict[str, str]) -> None:
    prompt = {"prompt": metric_and_tokens["prompt"]} if "prompt" in metric_and_tokens else {}
    study = definition(model=prompt, data={key: metric_and_tokens[key] for key in metric_and_tokens if not prompt})
    worker, other = executor(study), executor(study)
    tasks = tasks_of(worker, FULL, REDUCED)
    reference = scores(worker, tasks)
    assert scores(worker, tasks) == reference
    assert scores(other, tasks[::-1]) == reference
    assert scores(executor(study), tasks[2:3]) == {tasks[2]: reference[tasks[2]]}


def test_abandoning_a_run_leaves_no_trace(definition: Make) -> None:
    worker = executor(definition())
    tasks = tasks_of(worker, REDUCED)
    reference = scores(worker, tasks)
    running = worker.run(tasks)
    next(running)
    assert not torch.is_inference_mode_enabled()
    assert scores(worker, tasks) == reference  # while the other run is still open
    next(running)


def test_the_vision_tower_runs_once_per_chunk(definition: Make) -> None:
    worker = executor(definition())
    calls: list[int] = []
    tower = worker._load()[0].model.get_encoder(modality="image")
    tower.register_forward_hook(lambda *_: calls.append(1))
    tasks = tasks_of(worker, FULL, REDUCED)
    for _ in range(2):
        scores(worker, tasks)
    worker.prefill_milliseconds("search", [FULL, REDUCED])
    assert len(calls) == worker.split("search").chunks


def test_prefill_times_are_one_per_reduction(definition: Make) -> None:
    times = executor(definition()).prefill_milliseconds("search", [FULL, REDUCED, FULL])
    assert len(times) == 3
    assert all(0 < milliseconds < 60_000 for milliseconds in times)


def test_half_precision_scores_too(definition: Make) -> None:
    worker = executor(definition(model={"dtype": "bfloat16"}))
    tasks = tasks_of(worker, FULL, REDUCED)
    assert scores(worker, tasks) == scores(worker, tasks[::-1])
    assert dict(worker.model().environment)["dtype"] == "bfloat16"


def test_a_processor_that_counts_other_tokens_is_refused(definition: Make, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "tiny"))
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_additional_image_tokens": 2}))
    worker = executor(definition(model={"id": str(folder)}))
    with pytest.raises(ModelError, match="but got 260 placeholders for 256 features"):
        scores(worker, tasks_of(worker, FULL))


def test_a_closed_executor_loads_again(definition: Make) -> None:
    worker = executor(definition())
    before = worker.split("search")
    worker.close()
    assert worker.split("search") == before


def test_scores_come_from_the_answers(definition: Make) -> None:
    """With the model's own first words as answers every score is 1."""
    worker = executor(definition())
    ready: Any = worker._prepare("search")
    from scheduler_search.evaluation import scoring

    words: list[str] = []
    for (part,) in ready.chunks:
        words += scoring.run(worker._load()[0], part, FULL, scoring.Decoding("prefill", 1)).answers or ()
    expected = tuple(float(word in sample.answers) for word, sample in zip(words, ready.samples, strict=True))
    found = tuple(score for result in worker.run(tasks_of(worker, FULL)) for score in result.scores)
    assert found == expected
