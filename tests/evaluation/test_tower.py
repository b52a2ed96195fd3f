"""Rules that read the tower, or act inside it, over stored features: the same bits, no run of it too many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from scheduler_search.evaluation import LocalExecutor, scoring
from scheduler_search.evaluation.batches import Part, make_batch
from scheduler_search.evaluation.features import FeatureStore
from scheduler_search.evaluation.memory import Memory
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.evaluation.prompts import make_prompt
from scheduler_search.evaluation.sources import read_splits
from scheduler_search.rule import make_rule
from scheduler_search.runtime import PrefixRun, apply_reduction
from scheduler_search.schedule.values import Reduction, VisionReduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.evaluation.conftest import LAYERS
from tests.evaluation.test_prefixes import assert_same, recorded, results  # noqa: F401  # a fixture
from tests.runtime.tiny import quick_first

Make = Callable[..., StudyDefinition]
CPU = torch.device("cpu")
RULE = make_rule("attention-rank")


def reduction(rates: tuple[float, ...], entry: str | None = None, tower: float | None = None) -> Reduction:
    vision = None if tower is None else VisionReduction((1.0, tower), make_rule("evit"))
    rates = (*rates, *[rates[-1]] * (LAYERS - len(rates)))
    return Reduction(rates, RULE, None if entry is None else make_rule(entry), vision)


ENTRY = reduction((0.5, 0.25), "fastervlm")
KEYS = reduction((0.5, 0.25), "visionzip")
TOWER = reduction((0.5, 0.25), None, 0.5)
BOTH = reduction((0.25,), "fastervlm", 0.5)
PLAIN = reduction((1.0, 0.5))


@pytest.fixture
def loaded(definition: Make) -> LoadedModel:
    return load_model(definition().model)


@pytest.fixture
def batch(loaded: LoadedModel, definition: Make) -> Any:
    samples = read_splits(definition())["search"][:3]
    return make_batch(samples, make_prompt("auto", loaded.processor, "tiny"), loaded.model)


def counted(model: Any) -> list[int]:
    """One entry for every run of the tower from now on."""
    calls: list[int] = []
    model.get_encoder(modality="image").register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("applied", quick_first([BOTH, KEYS, ENTRY, TOWER]))
@torch.inference_mode()
def test_stored_features_give_the_same_bits(loaded: LoadedModel, batch: Any, applied: Reduction) -> None:
    model, part = loaded.model, Part(batch)
    calls = counted(model)
    for _ in range(2):
        arguments, views = part.inputs(model, CPU, applied)
    assert len(calls) == 1
    with apply_reduction(model, applied) as handle:
        direct = scoring.first_logits(model, part.whole_arguments(CPU))
        text = model.generate(**part.whole_arguments(CPU), max_new_tokens=3)
        for _ in range(2):
            with handle.tower_views(views):
                assert torch.equal(scoring.first_logits(model, arguments), direct)
                assert torch.equal(model.generate(**arguments, max_new_tokens=3), text)
    assert len(calls) == 3


def test_what_a_rule_lacks_is_computed_once_and_kept(loaded: LoadedModel, batch: Any) -> None:
    store = FeatureStore(Memory(1 << 30))
    part = Part(batch, shelf=store.shelf(("search", 0, 0)), again=lambda: batch)
    calls = counted(loaded.model)
    plain = part.arguments(loaded.model, CPU)["mm_encoder_outputs"]["image"].pooler_output
    sizes = [store.bytes]
    for applied, runs in ((PLAIN, 1), (ENTRY, 2), (KEYS, 3), (ENTRY, 3), (KEYS, 3), (PLAIN, 3)):
        features = part.inputs(loaded.model, CPU, applied)[0]["mm_encoder_outputs"]["image"].pooler_output
        assert all(torch.equal(one, other) for one, other in zip(features, plain, strict=True))
        assert len(calls) == runs
        sizes.append(store.bytes)
    assert sizes[0] == sizes[1] < sizes[2] < sizes[3]  # with what was read of the tower
    assert sizes[3] == sizes[-1]


def test_what_a_study_reads_is_there_from_the_start(definition: Make) -> None:
    """The unreduced reference runs first; the tower runs once for both."""
    worker = LocalExecutor(definition(rule={"name": "fastervlm"}), prefix_memory=1 << 30)
    calls = counted(worker._load()[0].model)
    list(worker.run([ChunkTask("search", 0, applied) for applied in (PLAIN, ENTRY, PLAIN)]))
    assert len(calls) == 1


def test_features_of_a_tower_are_its_reductions_own(loaded: LoadedModel, batch: Any) -> None:
    """The whole tower's stay; of reductions inside it, the last one's. Pixels are made once for all of them."""
    store, made = FeatureStore(Memory(1 << 30)), []

    def again() -> Any:
        made.append(1)
        return batch

    part = Part(batch, shelf=store.shelf(("search", 0, 0)), again=again)
    other = reduction((0.25,), None, 0.25)
    part.inputs(loaded.model, CPU, PLAIN)
    calls, sizes = counted(loaded.model), []
    for applied, runs in ((TOWER, 1), (TOWER, 1), (other, 2), (PLAIN, 2), (TOWER, 3)):
        part.inputs(loaded.model, CPU, applied)
        assert len(calls) == runs
        sizes.append(store.bytes)
    assert len(set(sizes)) == 1
    assert len(made) == 1


@pytest.mark.parametrize("applied", quick_first([BOTH, ENTRY, TOWER]))
def test_a_run_from_a_prefix_asks_nothing_of_the_tower(loaded: LoadedModel, batch: Any, applied: Reduction) -> None:
    part, decoding = Part(batch), scoring.Decoding("prefill", 1)
    part.arguments(loaded.model, CPU)
    expected = scoring.run(loaded, part, applied, decoding).answers
    first = PrefixRun(applied, None, capture=2)
    assert scoring.run(loaded, part, applied, decoding, prefix=first).answers == expected
    calls = counted(loaded.model)
    resumed = PrefixRun(applied, first.captured)
    assert scoring.run(loaded, part, applied, decoding, prefix=resumed).answers == expected
    assert not calls


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1 << 30, 60_000, 1])
def test_no_score_depends_on_what_is_stored(definition: Make, recorded: Any, memory: int) -> None:  # noqa: F811
    reductions = [
        PLAIN,
        *(reduction((0.5, rate), entry, tower) for rate in (0.5, 0.25) for entry, tower in (("fastervlm", None),)),
        *(reduction((tower, rate), None, tower) for tower in (0.5, 0.25) for rate in (0.25, 0.125)),
        BOTH,
    ]
    study = definition()
    plain, stored = LocalExecutor(study, prefix_memory=0), LocalExecutor(study, prefix_memory=memory)
    tasks = [ChunkTask("search", chunk, one, 1) for one in reductions for chunk in range(2)]
    expected = results(plain, tasks, recorded)
    for _ in range(2):
        assert_same(results(stored, tasks, recorded), expected)


def test_the_time_of_a_prefill_has_the_tower_in_it_where_it_is_reduced(
    loaded: LoadedModel, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "REPEATS", 2)
    part = Part(batch)
    part.inputs(loaded.model, CPU, ENTRY)
    calls = counted(loaded.model)
    assert len(scoring.prefill_milliseconds(loaded, [part], [PLAIN, ENTRY])) == 2
    assert not calls
    scoring.prefill_milliseconds(loaded, [part], [PLAIN, ENTRY, TOWER])
    assert len(calls) == 3 * 3
