"""Everything that can change a score changes the context digest, and nothing else does."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scheduler_search.evaluation import LocalExecutor, context
from scheduler_search.evaluation.measures import Measure
from scheduler_search.evaluation.metrics import metric_of
from scheduler_search.evaluation.scoring import Decoding
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.study.definition import StudyDefinition
from tests.evaluation.conftest import save_tiny_model, write_image

Make = Callable[..., StudyDefinition]


def of(study: StudyDefinition) -> tuple[str, dict[str, Any]]:
    worker = LocalExecutor(study)
    return worker.split("search").context_digest, worker.context("search")


def test_a_device_map_is_an_ingredient_where_there_is_one(definition: Make) -> None:
    """On one machine it is one device, and what it gives is no other score; the context says so all the same."""
    plain, mapped = (
        of(definition(model={"device": "auto"})),
        of(definition(model={"device": "auto", "device_map": "auto"})),
    )
    assert "device_map" not in plain[1]
    assert mapped[1] == plain[1] | {"device_map": ["auto", plain[1]["device"]]}
    assert mapped[0] != plain[0]


def changed(first: tuple[str, dict[str, Any]], second: tuple[str, dict[str, Any]]) -> set[str]:
    """The ingredients that differ; the digests differ where, and only where, an ingredient does."""
    assert first[1].keys() == second[1].keys()
    keys = {key for key in first[1] if first[1][key] != second[1][key]}
    assert (first[0] != second[0]) == bool(keys)
    return keys


def test_the_digest_is_of_the_context(definition: Make) -> None:
    digest, ingredients = of(definition())
    assert digest == digest_of(ingredients)
    assert json.loads(json.dumps(ingredients)) == ingredients


@pytest.mark.parametrize(
    ("changes", "ingredients"),
    [
        ({"model": {"prompt": "ask {question}"}}, {"prompt"}),
        ({"model": {"dtype": "bfloat16"}}, {"dtype"}),
        ({"model": {"attention": "eager"}}, {"attention"}),
        ({"workers": {"threads": 2}}, {"threads"}),
        ({"data": {"metric": "vqa-accuracy"}}, {"metric"}),
        ({"data": {"chunk": 3}}, {"chunk_size"}),
        ({"data": {"search": {"samples": 6}}}, {"data"}),
        ({"data": {"max_new_tokens": 1}}, set()),  # the answers are one token: a single prefill already
        ({"seed": 1}, {"data"}),
    ],
)
def test_keys_of_the_study_file(definition: Make, changes: dict[str, Any], ingredients: set[str]) -> None:
    assert changed(of(definition()), of(definition(**changes))) == ingredients


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"rule": {"name": "random"}},
        {"search": {"penalty": 0.5, "stride": 1, "iterations": 3}},
        {"data": {"validation": {"samples": 2}}},
        {"model": {"revision": "other"}},  # of a directory, which has none
        {"model": {"trust_remote_code": True}},
        {"model": {"device": "auto"}},
    ],
)
def test_keys_that_cannot_change_a_score(definition: Make, changes: dict[str, Any]) -> None:
    if changes.get("model") == {"device": "auto"} and torch.cuda.is_available():
        pytest.skip("auto is another device here")
    assert changed(of(definition()), of(definition(**changes))) == set()


def test_the_weights(definition: Make, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "tiny", seed=1)
    assert changed(of(definition()), of(definition(model={"id": str(other)}))) == {"weights"}


def test_the_place_of_the_model_is_nothing(definition: Make, tiny_model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_model, tmp_path / "renamed"))
    assert changed(of(definition()), of(definition(model={"id": str(other)}))) == set()


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "generation_config.json"])
def test_the_files_beside_the_weights(definition: Make, tiny_model: Path, tmp_path: Path, name: str) -> None:
    other = Path(shutil.copytree(tiny_model, tmp_path / "tiny"))
    (other / name).write_text((other / name).read_text() + "\n")
    assert changed(of(definition()), of(definition(model={"id": str(other)}))) == {"files"}


@pytest.mark.parametrize("key", ["question", "answers", "image"])
def test_the_contents_of_the_data(definition: Make, data_file: Path, tmp_path: Path, key: str) -> None:
    shutil.copytree(data_file.parent, tmp_path, dirs_exist_ok=True)
    copy = tmp_path / data_file.name
    same = definition(data={"path": str(copy), "search": {"samples": 20}, "validation": None})
    before = of(same)
    assert changed(before, of(definition(data={"search": {"samples": 20}, "validation": None}))) == set()
    lines = [json.loads(line) for line in copy.read_text().splitlines()]
    if key == "image":
        write_image(tmp_path / lines[3]["image"], 999)
    else:
        lines[3][key] = {"question": "where is blue", "answers": ["a1"]}[key]
        copy.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert changed(before, of(same)) == {"data"}


def test_the_number_of_new_tokens_of_a_generation(definition: Make, data_file: Path, tmp_path: Path) -> None:
    shutil.copytree(data_file.parent, tmp_path, dirs_exist_ok=True)
    copy = tmp_path / data_file.name
    copy.write_text(copy.read_text().replace('["red"]', '["red circle"]'))
    data = {"path": str(copy), "search": {"samples": 20}, "validation": None}
    first, second = (of(definition(data={**data, "max_new_tokens": count})) for count in (4, 5))
    assert first[1]["generation"] == {"mode": "generate", "max_new_tokens": 4, "end_tokens": 3}
    assert changed(first, second) == {"generation"}


@pytest.mark.parametrize(
    ("name", "value", "ingredients"),
    [
        ("SCORING_VERSION", 99, {"scoring"}),
        ("LAYOUT_VERSION", 99, {"layout"}),
        ("version", lambda _: "99", {"libraries"}),
        ("device_kind", lambda _: "cuda of another kind", {"device"}),
    ],
)
def test_software_and_hardware(
    definition: Make, monkeypatch: pytest.MonkeyPatch, name: str, value: object, ingredients: set[str]
) -> None:
    before = of(definition())
    monkeypatch.setattr(context, name, value)
    assert changed(before, of(definition())) == ingredients


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers", "pillow", "numpy"])
def test_the_version_of_each_library(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    before = context.software_context(1)
    monkeypatch.setattr(context, "version", lambda name: "99" if name == library else installed_version(name))
    after = context.software_context(1)
    assert {key for key in before if before[key] != after[key]} == {"libraries"}


@pytest.mark.parametrize(
    ("changes", "ingredient"),
    [
        ({"revision": "0123abc"}, "revision"),
        ({"processor": SimpleNamespace(image_processor=None)}, "processor"),
        ({"weights": "sha256:other"}, "weights"),
        ({"files": "sha256:other"}, "files"),
    ],
)
def test_what_was_loaded(definition: Make, changes: dict[str, Any], ingredient: str) -> None:
    loaded, prompt = LocalExecutor(definition())._load()
    before = context.model_context(loaded, prompt)
    after = context.model_context(dataclasses.replace(loaded, **changes), prompt)
    assert {key for key in before if before[key] != after[key]} == {ingredient}


@pytest.mark.parametrize(
    ("changes", "ingredient"),
    [
        ({"measure": Measure.of(dataclasses.replace(metric_of("exact-match"), version=99))}, "metric"),
        ({"decoding": Decoding("generate", 4)}, "generation"),
        ({"decoding": Decoding("prefill", 1)}, "generation"),
        ({"end_tokens": [3, 4]}, "generation"),
        ({"chunk_size": 9}, "chunk_size"),
        ({"split_digest": "sha256:other"}, "data"),
        ({"measure": Measure.of(metric_of("exact-match"), 0.5)}, "fidelity"),
    ],
)
def test_how_a_split_is_scored(changes: dict[str, Any], ingredient: str) -> None:
    settings: dict[str, Any] = {
        "split_digest": "sha256:data",
        "chunk_size": 8,
        "measure": Measure.of(metric_of("exact-match")),
        "decoding": Decoding("generate", 5),
        "end_tokens": 3,
    }
    before = context.data_context(**settings)
    after = context.data_context(**{**settings, **changes})
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == {ingredient}


def test_there_is_a_test_of_every_ingredient(definition: Make) -> None:
    """Whoever adds an ingredient adds it here, and a test above."""
    of_the_model = {"weights", "files", "revision", "processor", "prompt", "dtype", "attention", "device"}
    of_the_software = {"scoring", "threads", "libraries"}
    of_the_split = {"data", "chunk_size", "layout", "metric", "generation"}
    assert set(of(definition())[1]) == of_the_model | of_the_software | of_the_split
