"""``[model] device_map``: what is needed, what is said of it, and that no score depends on where a layer is.

No machine with two GPUs was available: modules are on disk, or on devices that are labels (``tests.runtime.labels``).
"""

from __future__ import annotations

import importlib.util
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import modeling_utils

from scheduler_search.errors import ModelError
from scheduler_search.evaluation import LocalExecutor, context, local
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.evaluation.placement import Placement
from scheduler_search.runtime.families import family_of
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.evaluation.conftest import FULL, LAYERS, REDUCED, uniform_from_second
from tests.runtime.labels import FIRST, SECOND, labelled_devices, spread

Make = Callable[..., StudyDefinition]
CPU = torch.device("cpu")
TASKS = [
    ChunkTask("search", chunk, reduction, shared_layers=2)
    for reduction in (FULL, REDUCED, uniform_from_second(0.5))
    for chunk in (0, 1)
]
ANSWERS = {"max_new_tokens": 3, "metric": "fidelity"}


def scores(worker: LocalExecutor) -> list[tuple[float, ...]]:
    return [result.scores for result in worker.run(TASKS)]


def mapped(definition: Make, **changes: Any) -> StudyDefinition:
    return definition(model={"device": "auto", "device_map": "auto"}, **changes)


@pytest.fixture
def layers_on_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """As where the memory of all devices is too small: the map that transformers finds has two layers on disk."""
    layers = tuple(f"model.language_model.layers.{layer}" for layer in range(LAYERS))
    rest = ("vision_tower", "multi_modal_projector", "language_model.embed_tokens", "language_model.norm")
    found = dict.fromkeys([*(f"model.{name}" for name in rest), "model.language_model.rotary_emb", "lm_head"], "cpu")
    found |= dict.fromkeys(layers, "cpu") | dict.fromkeys(layers[2:], "disk")
    monkeypatch.setattr(modeling_utils, "_get_device_map", lambda _model, name, *_: {"auto": found}[name])
    return layers[2:]


# -- what is needed


def test_without_accelerate_there_is_one_clear_error(definition: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else object())
    with pytest.raises(
        ModelError, match=r"needs the package accelerate, but got it is not installed \(in tiny\).*multi"
    ):
        load_model(mapped(definition).model)
    load_model(definition().model)


def test_memory_that_does_not_suffice_is_the_same_error(definition: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def dispatch(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. If reserved is large, try x")

    monkeypatch.setattr(modeling_utils, "_get_device_map", dispatch)
    with pytest.raises(ModelError, match=r"must fit into the memory of its device.*9\.00 GiB\. \(in tiny\)"):
        load_model(mapped(definition).model)


# -- what is said of it


def test_a_placement_is_read_off_the_model() -> None:
    found = {"tower": 0, "layers.0": 0, "layers.1": 1, "layers.2": "cpu", "head": "disk"}
    placement = Placement.of("auto", SimpleNamespace(hf_device_map=found, device=CPU))
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert (placement.main, placement.devices) == (first, (first, second))
    assert dict(placement.modules) == dict.fromkeys(found, first) | {"layers.1": second}
    assert placement.offloaded == ("layers.2", "head")


def test_what_one_device_holds_has_no_hooks() -> None:
    placement = Placement.of("auto", SimpleNamespace(device=CPU))
    assert (placement.main, placement.devices, placement.offloaded) == (CPU, (CPU,), ())


def test_kinds_of_devices_are_named_by_module_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"tower": 0, "layers.0": 0, "layers.1": 1}
    placement = Placement.of("auto", SimpleNamespace(hf_device_map=found, device=CPU))
    loaded: Any = SimpleNamespace(placement=placement, device=placement.main)
    monkeypatch.setattr(context, "device_kind", lambda device: f"kind {device.index}")
    kinds = {"tower": "kind 0", "layers.0": "kind 0", "layers.1": "kind 1"}
    assert context.map_context(loaded) == {"device_map": ["auto", kinds]}
    monkeypatch.setattr(context, "device_kind", lambda _device: "kind")
    assert context.map_context(loaded) == {"device_map": ["auto", "kind"]}


def test_the_environment_names_the_map(definition: Make) -> None:
    assert ("device_map", "auto") in LocalExecutor(mapped(definition)).model().environment
    assert "device_map" not in dict(LocalExecutor(definition()).model().environment)


# -- what it gives


@pytest.mark.parametrize("name", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_every_map_loads_where_there_is_one_device(definition: Make, name: str) -> None:
    loaded = load_model(definition(model={"device": "auto", "device_map": name}).model)
    assert loaded.placement is not None
    assert (loaded.placement.name, loaded.devices) == (name, (loaded.device,))
    assert loaded.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the map of the fixture is for a machine without a GPU")
@pytest.mark.parametrize("data", [{}, ANSWERS], ids=["prefill", "generate"])
def test_layers_on_disk_change_no_score(
    definition: Make, layers_on_disk: tuple[str, ...], caplog: pytest.LogCaptureFixture, data: dict[str, Any]
) -> None:
    caplog.set_level(logging.WARNING, "scheduler_search")
    worker = LocalExecutor(mapped(definition, data=data))
    found = scores(worker)
    loaded, _ = worker._load()
    assert loaded.placement is not None
    assert (loaded.placement.offloaded, loaded.device) == (layers_on_disk, CPU)
    assert f"the devices do not hold the whole model; 2 of its {len(loaded.placement.modules)} parts" in caplog.text
    assert worker._prefixes.bytes > 0
    assert found == scores(LocalExecutor(definition(data=data)))
    model = weakref.ref(loaded.model)
    del loaded
    worker.close()
    assert model() is None


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["1GiB", 0], ids=["on-the-device", "on-the-host"])
@pytest.mark.parametrize("data", [{}, ANSWERS], ids=["prefill", "generate"])
def test_layers_on_several_devices_change_no_score(
    definition: Make, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any], memory: object
) -> None:
    """A whole executor, its stores included, on two devices that are labels."""
    expected = scores(LocalExecutor(definition(data=data)))

    def load(section: Any) -> LoadedModel:
        loaded = load_model(section)
        layers = family_of(loaded.model).decoder(loaded.model).layers
        spread(loaded.model, layers, [FIRST, SECOND], FIRST)
        placement = Placement("auto", (("one", FIRST), ("other", SECOND)), FIRST)
        return replace(loaded, device=FIRST, placement=placement)

    monkeypatch.setattr(local, "load_model", load)
    worker = LocalExecutor(definition(data=data, workers={"memory": memory}))
    with labelled_devices() as labels:
        assert scores(worker) == expected
        assert labels.between > 0
        assert worker._prefixes.bytes > 0
        assert (worker._memory.device_bytes > 0) == bool(memory)
        assert len(worker.prefill_milliseconds("search", [FULL, REDUCED])) == 2
