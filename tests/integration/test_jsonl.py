"""A study over the user's own files: images and a JSONL file, cut apart by image, scored by the VQA metric."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scheduler_search.testbed import generate
from tests.integration.conftest import Cli, read

pytestmark = pytest.mark.slow

STUDY = """
name = "own-files"
[model]
id = "testbed:tiny-llava"
device = "cpu"
[data]
source = "jsonl"
path = "data/questions.jsonl"
metric = "vqa-accuracy"
search = { samples = 32 }
validation = { samples = 32 }
[search]
algorithm = "p-sigmoid"
budget = { as = "step", layer = 2, keep = 0.3 }
initial = 2
iterations = 1
"""


def write_data(folder: Path, count: int) -> None:
    (folder / "images").mkdir(parents=True)
    lines = []
    for index, question in enumerate(generate("search", count, seed=11)):
        question.image.save(folder / "images" / f"{index}.png")
        record = {"image": f"images/{index}.png", "question": question.question, "answers": [question.answer] * 10}
        lines.append(json.dumps(record) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))


def test_a_study_over_files(cli: Cli, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 80)
    (tmp_path / "own.toml").write_text(STUDY)
    cli("launch", "own.toml")
    cli("export", "own-files", "--out", "out")
    document = read(tmp_path / "out" / "tiny-llava" / "own-files.v1.json")
    measured, provenance = document["measured"], document["provenance"]
    assert isinstance(measured, dict)
    assert isinstance(provenance, dict)
    assert measured["metric"] == "vqa-accuracy"
    assert measured["samples"] == 32
    # 32 of the testbed's questions, 0.986 of which the model answers: fewer than 26 right has probability below 1e-5
    assert measured["unreduced"]["score"] > 0.8
    uniform = next(baseline for baseline in measured["baselines"] if baseline["name"] == "uniform")
    assert uniform["flops_ratio"] == pytest.approx(1.0, abs=0.03)
    assert provenance["search_data_digest"] != provenance["validation_data_digest"]
    assert str(tmp_path) not in json.dumps(document)
