"""The prefix store changes no score and no logit, whatever it keeps, and spares the layers that it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch

from scheduler_search.evaluation import LocalExecutor, prepared, scoring
from scheduler_search.evaluation.measures import Outcome
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.evaluation.conftest import LAYERS

Make = Callable[..., StudyDefinition]
VISION_TOKENS = 64
KEPT = (40, 12, 5)  # decided at layers 2, 3 and 4
TRIED = (64, 40, 12, 5, 1, 0)
LARGE = 1 << 30


def tasks_of(worker: LocalExecutor, rule: str, shared: bool = True) -> list[list[ChunkTask]]:
    """The tasks of a search over every layer from the second, by stage, in the order in which a search has them."""
    chunks = worker.split("search").chunks
    made = make_rule(rule, {"seed": 1} if rule == "random" else {})
    stages = []
    for stage in range(LAYERS - 1):
        decided = (VISION_TOKENS, *KEPT[:stage])
        rest = LAYERS - len(decided)
        counts = [(*decided, *[kept] * rest) for kept in TRIED if kept <= decided[-1]]
        rates = [tuple(count / VISION_TOKENS for count in one) for one in counts]
        hint = len(decided) if shared else 0
        stages.append(
            [ChunkTask("search", chunk, Reduction(one, made), hint) for one in rates for chunk in range(chunks)]
        )
    return stages


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What every prefill gives."""
    logits: list[torch.Tensor] = []
    original = scoring.first_logits

    def record(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
        logits.append(original(model, arguments))
        return logits[-1]

    monkeypatch.setattr(scoring, "first_logits", record)
    return logits


def results(worker: LocalExecutor, tasks: list[ChunkTask], logits: list[torch.Tensor]) -> Any:
    """Scores of all samples, and the logits where there are any."""
    logits.clear()
    scores = [result.scores for result in worker.run(tasks)]
    return scores, list(logits)


def assert_same(first: Any, second: Any) -> None:
    assert first[0] == second[0]
    assert len(first[1]) == len(second[1])
    assert all(torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("memory", [LARGE, 60_000, 30_000, 1], ids=["large", "some", "few", "none"])
@pytest.mark.parametrize("rule", ["attention-rank", "random", "fastv"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_and_logits_are_those_of_whole_runs(
    definition: Make, recorded: list[torch.Tensor], attention: str, rule: str, memory: int
) -> None:
    study = definition(model={"attention": attention})
    plain, stored = LocalExecutor(study, prefix_memory=0), LocalExecutor(study, prefix_memory=memory)
    for tasks in tasks_of(plain, rule):
        expected = results(plain, tasks, recorded)
        assert expected[1]
        assert_same(results(stored, tasks, recorded), expected)
        assert stored._prefixes.bytes <= memory


@pytest.mark.slow
@pytest.mark.parametrize("memory", [LARGE, 150_000], ids=["large", "few"])
def test_generation_too(
    definition: Make, recorded: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    """Tokens, not scores alone, are the same."""
    monkeypatch.setattr(prepared, "answer_mode", lambda *_: "generate")
    original = scoring.run

    def run(*arguments: Any, **settings: Any) -> Outcome:
        outcome = original(*arguments, **settings)
        recorded.append(torch.tensor([hash(word) for word in outcome.answers or ()]))
        return outcome

    monkeypatch.setattr(scoring, "run", run)
    study = definition(data={"max_new_tokens": 5})
    plain, stored = LocalExecutor(study, prefix_memory=0), LocalExecutor(study, prefix_memory=memory)
    for tasks in tasks_of(plain, "attention-rank"):
        assert_same(results(stored, tasks, recorded), results(plain, tasks, recorded))
    assert stored._prefixes.bytes > 0


def layer_calls(worker: LocalExecutor, tasks: list[ChunkTask]) -> list[int]:
    """How often each decoder layer ran."""
    calls = [0] * LAYERS

    def counter(layer: int) -> Any:
        def add(*_: Any) -> None:
            calls[layer] += 1

        return add

    layers = worker._load()[0].model.get_decoder().layers
    hooks = [layer.self_attn.register_forward_hook(counter(index)) for index, layer in enumerate(layers)]
    list(worker.run(tasks))
    for hook in hooks:
        hook.remove()
    return calls


def test_layers_in_front_of_a_stage_run_once(definition: Make) -> None:
    worker = LocalExecutor(definition(), prefix_memory=LARGE)
    chunks = worker.split("search").chunks
    first, second, third = tasks_of(worker, "attention-rank")
    assert layer_calls(worker, first) == [chunks, *[len(first)] * 3]
    assert layer_calls(worker, second) == [0, chunks, *[len(second)] * 2]
    assert layer_calls(worker, third) == [0, 0, chunks, len(third)]


def test_a_search_that_comes_back_finds_its_prefixes(definition: Make) -> None:
    worker = LocalExecutor(definition(), prefix_memory=LARGE)
    stages = tasks_of(worker, "attention-rank")
    for tasks in stages:
        list(worker.run(tasks))
    for stage, tasks in enumerate(stages, start=1):
        calls = layer_calls(worker, tasks)
        assert (calls[:stage], calls[-1]) == ([0] * stage, len(tasks))


def test_prefixes_that_only_lead_to_another_go_first(definition: Make) -> None:
    large = LocalExecutor(definition(), prefix_memory=LARGE)
    first, second, _ = tasks_of(large, "attention-rank")
    list(large.run(first))
    memory = large._prefixes.bytes
    small = LocalExecutor(definition(), prefix_memory=memory)
    list(small.run(first + second))
    kept = [[prefix.layer for prefix in prefixes] for prefixes in small._prefixes.held().values()]
    assert kept == [[2]] * small.split("search").chunks
    assert small._prefixes.bytes <= memory


def test_the_nearest_prefix_that_is_left_serves(definition: Make) -> None:
    """A stage that never ran here, as after a kill, starts from what there is."""
    worker = LocalExecutor(definition(), prefix_memory=LARGE)
    chunks = worker.split("search").chunks
    first, _, third = tasks_of(worker, "attention-rank")
    list(worker.run(first))
    assert layer_calls(worker, third) == [0, chunks, chunks, len(third)]


def test_of_several_prefixes_the_deepest_serves(definition: Make) -> None:
    worker = LocalExecutor(definition(), prefix_memory=LARGE)
    first, _, third = tasks_of(worker, "attention-rank")
    list(worker.run(third))
    list(worker.run(first))
    assert [[one.layer for one in prefixes] for prefixes in worker._prefixes.held().values()] == [[3, 1]] * 2
    assert layer_calls(worker, third) == [0, 0, 0, len(third)]


def test_memory_for_one_chunk_serves_that_chunk(definition: Make) -> None:
    """The others do not push it out: they take turns, so that it would always be the next one that is missing."""
    worker = LocalExecutor(definition(), prefix_memory=LARGE)
    first = tasks_of(worker, "attention-rank")[0]
    list(worker.run(first))
    sizes = [prefix.bytes for prefixes in worker._prefixes.held().values() for prefix in prefixes]
    small = LocalExecutor(definition(), prefix_memory=max(sizes))
    assert layer_calls(small, first)[0] == len(first) - (len(TRIED) - 1)
    assert 0 < small._prefixes.bytes <= max(sizes)


def test_prefixes_of_another_stage_go_first(definition: Make) -> None:
    large = LocalExecutor(definition(), prefix_memory=LARGE)
    first, second, _ = tasks_of(large, "attention-rank")
    list(large.run(first))
    sizes = [prefix.bytes for prefixes in large._prefixes.held().values() for prefix in prefixes]
    small = LocalExecutor(definition(), prefix_memory=max(sizes))
    for tasks, place in ((first, 0), (second[1::2], 1)):
        list(small.run(tasks))
        assert [chunk for (_, chunk, _), prefixes in small._prefixes.held().items() if prefixes] == [place]


def test_a_hint_is_not_needed_and_a_wrong_one_does_no_harm(definition: Make, recorded: list[torch.Tensor]) -> None:
    worker = LocalExecutor(definition(), prefix_memory=LARGE)
    plain = LocalExecutor(definition(), prefix_memory=0)
    tasks = [task for stage in tasks_of(plain, "attention-rank", shared=False) for task in stage][::5]
    expected = results(plain, tasks, recorded)
    hints = (0, 1, 2, 3, LAYERS, LAYERS + 7)
    hinted = [
        ChunkTask("search", task.chunk, task.reduction, hint) for task, hint in zip(tasks, _cycle(hints), strict=False)
    ]
    assert hinted == tasks
    assert_same(results(worker, hinted, recorded), expected)
    assert_same(results(worker, hinted[::-1], recorded), (expected[0][::-1], expected[1][::-1]))
    stored = worker._prefixes.bytes
    list(worker.run(tasks))
    assert worker._prefixes.bytes == stored


def _cycle(values: tuple[int, ...]) -> Iterator[int]:
    return (values[index % len(values)] for index in count())


# Keep counts of candidates that share more than the first layer, and how many layers each shares with others.
BRANCHES = (
    ((64, 40, 12, 5), 3),
    ((64, 40, 12, 0), 3),
    ((64, 20, 20, 5), 2),
    ((64, 20, 10, 5), 2),
    ((64, 40, 12, 1), 3),
)


def branching_tasks(worker: LocalExecutor) -> list[ChunkTask]:
    """The tasks of one stage whose candidates share layer 1, and some of them more."""
    made, chunks = make_rule("attention-rank"), worker.split("search").chunks
    return [
        ChunkTask("search", chunk, Reduction(tuple(count / VISION_TOKENS for count in counts), made), 1, branch)
        for counts, branch in BRANCHES
        for chunk in range(chunks)
    ]


def test_branches_of_a_stage_run_what_is_theirs_alone(definition: Make) -> None:
    """The first candidate keeps what all share; the second of a branch keeps the branch; the third starts from it."""
    worker = LocalExecutor(definition(), prefix_memory=LARGE)
    chunks = worker.split("search").chunks
    calls = layer_calls(worker, branching_tasks(worker))
    assert calls == [chunks, 3 * chunks, 4 * chunks, 5 * chunks]


@pytest.mark.slow
@pytest.mark.parametrize("memory", [LARGE, 100_000, 60_000, 1])
def test_branches_change_no_logit(definition: Make, recorded: list[torch.Tensor], memory: int) -> None:
    plain, stored = LocalExecutor(definition(), prefix_memory=0), LocalExecutor(definition(), prefix_memory=memory)
    tasks = branching_tasks(plain)
    assert_same(results(stored, tasks, recorded), results(plain, tasks, recorded))
    assert stored._prefixes.bytes <= memory


def test_a_branch_does_not_push_out_what_all_candidates_share(definition: Make) -> None:
    large = LocalExecutor(definition(), prefix_memory=LARGE)
    tasks = branching_tasks(large)
    chunks = large.split("search").chunks
    list(large.run(tasks[:chunks]))
    shared = large._prefixes.bytes
    small = LocalExecutor(definition(), prefix_memory=shared)
    assert layer_calls(small, tasks) == [chunks, *[len(tasks)] * 3]
    assert small._prefixes.bytes == shared


def test_closing_lets_prefixes_go(definition: Make) -> None:
    worker = LocalExecutor(definition())
    list(worker.run(tasks_of(worker, "attention-rank")[0]))
    assert worker._prefixes.bytes > 0
    worker.close()
    assert worker._prefixes.bytes == 0
