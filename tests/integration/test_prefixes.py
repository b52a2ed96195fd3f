"""Whole searches on the testbed with and without the prefix store: the same bits, and no layer twice."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scheduler_search.coordinator import run_study
from scheduler_search.evaluation import LocalExecutor, scoring
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.integration.conftest import SMALL

pytestmark = pytest.mark.slow

SIGMOID = SMALL.replace("stride = 4\npenalty = 0.05", 'algorithm = "p-sigmoid"\nbudget = 0.125')
VISION_TOKENS = 64
FEW = 1_000_000  # about one prefix of a chunk


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Watched(LocalExecutor):
    """Counts attention calls and remembers logits."""

    def __init__(self, definition: StudyDefinition, memory: int) -> None:
        super().__init__(definition, prefix_memory=memory)
        self.calls: Counter[tuple[object, ...]] = Counter()
        self.tasks: list[ChunkTask] = []
        for index, layer in enumerate(self._load()[0].model.get_decoder().layers):
            layer.self_attn.register_forward_hook(lambda *_, layer=index: self._count(layer))

    def _values(self, task: ChunkTask) -> tuple[float, ...]:
        self.tasks.append(task)
        return super()._values(task)

    def _count(self, layer: int) -> None:
        task = self.tasks[-1]
        decided = layer < task.shared_layers
        self.calls[decided, task.chunk, layer, task.reduction.counts(VISION_TOKENS)[: layer + 1]] += 1


def search(text: str, memory: int, folder: Path, logits: list[torch.Tensor]) -> tuple[list[object], Watched]:
    """Everything that the search recorded; its logits go to ``logits``."""
    definition = StudyDefinition.model_validate(tomllib.loads(text))
    executor = Watched(definition, memory)
    logits.clear()
    with StudyDatabase.open(f"sqlite:///{folder}/{memory}.db") as database:
        study = database.add_study(definition)
        reduction = run_study(database, study, executor)
        stages = [(stage.name, stage.decision, database.trials(stage)) for stage in database.stages(study)]
    return [reduction, stages], executor


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    original = scoring.first_logits

    def record(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
        found.append(original(model, arguments))
        return found[-1]

    monkeypatch.setattr(scoring, "first_logits", record)
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("text", [SMALL, SIGMOID], ids=["g-search", "p-sigmoid"])
def test_a_search_is_the_same_bit_for_bit(
    text: str, attention: str, tmp_path: Path, logits: list[torch.Tensor]
) -> None:
    text = text.replace('device = "cpu"', f'device = "cpu"\nattention = "{attention}"')
    expected, plain = search(text, 0, tmp_path, logits)
    reference = list(logits)
    assert reference
    for memory in (1 << 30, FEW):
        found, stored = search(text, memory, tmp_path, logits)
        assert found == expected
        assert stored.tasks == plain.tasks
        assert all(torch.equal(one, other) for one, other in zip(logits, reference, strict=True))
        assert 0 < stored._prefixes.bytes <= memory
        assert sum(stored.calls.values()) < sum(plain.calls.values())


def test_no_layer_in_front_of_a_stage_runs_twice(tmp_path: Path, logits: list[torch.Tensor]) -> None:
    """As long as stages go deeper; refining ones come back."""
    _, stored = search(SMALL.replace("stride = 4", "stride = 4\nrefine = false"), 1 << 30, tmp_path, logits)
    decided = {call: times for call, times in stored.calls.items() if call[0]}
    assert decided
    assert set(decided.values()) == {1}
    assert max(Counter((chunk, layer) for _, chunk, layer, _ in decided).values()) == 1
