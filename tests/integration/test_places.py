"""Studies over rules at the entry and in the vision tower, on the real tiny model, from a study file to a schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scheduler_search import apply_schedule, testbed
from scheduler_search.schedule.document import ScheduleDocument, read_document
from scheduler_search.testbed.model import load_checkpoint
from tests.integration.conftest import Run

pytestmark = pytest.mark.slow

CHECKPOINT = Path(testbed.__file__).parent / "tiny-llava"

STUDY = """
name = "small"
seed = 3
[model]
id = "testbed:tiny-llava"
device = "cpu"
[data]
source = "testbed"
search = {{ samples = 32 }}
validation = {{ samples = 32 }}
[rule]
{rule}
[search]
first_layer = 6
stride = 6
penalty = 2.0
initial = 2
iterations = 1
"""


def exported(run: Run, folder: Path, rule: str) -> ScheduleDocument:
    """The schedule of a study that was launched, exported and evaluated by commands."""
    (folder / "small.toml").write_text(STUDY.format(rule=rule))
    for command in (("launch", "small.toml"), ("export", "small")):
        code, printed, error = run(*command)
        assert code == 0, printed + error
    path = folder / "schedules" / "tiny-llava" / "small.v1.json"
    document = read_document(path)
    code, printed, error = run("evaluate", str(path), "--json")
    assert code == 0, error
    evaluated = json.loads(printed)
    measured = document.measured
    assert measured is not None
    assert evaluated["reduced"]["score"] == measured.reduced.score
    assert evaluated["tflops"]["reduced"] == measured.tflops.reduced < measured.tflops.unreduced
    assert {row.name for row in measured.baselines} >= {"uniform", "fastv", "random", "pooling", "withdraw"}
    return document


def counts_in(document: ScheduleDocument) -> tuple[int, ...]:
    """Vision tokens that really enter each decoder layer of the tiny model."""
    import torch

    model = load_checkpoint(CHECKPOINT)
    image = model.config.image_token_id
    inputs = {"input_ids": torch.tensor([[2] + [image] * 64 + [5, 6]]), "pixel_values": torch.rand(1, 3, 64, 64)}
    with apply_schedule(model, document.schedule) as handle, torch.no_grad():
        model(**inputs)
        return tuple(layer.vision_tokens[0] for layer in handle.report().layers)


@pytest.mark.parametrize(
    ("rule", "decoder", "stages"),
    [
        ('name = "pooling"', "attention-rank", ["entry"]),
        ('name = "fastv"\n[entry_rule]\nname = "pooling"', "fastv", ["entry", "layer-06", "layer-12"]),
    ],
)
def test_a_rule_at_the_entry(run: Run, tmp_path: Path, rule: str, decoder: str, stages: list[str]) -> None:
    document = exported(run, tmp_path, rule)
    reduction = document.schedule.reduction
    assert reduction.entry_rule is not None
    assert (reduction.entry_rule.name, reduction.rule.name) == ("pooling", decoder)
    assert reduction.keep_rates[0] < 1.0
    assert len(set(reduction.keep_rates)) == 1 or decoder == "fastv"
    assert counts_in(document) == reduction.counts(64)
    found = [stage["name"] for stage in json.loads(run("status", "small", "--json")[1])["stages"]]
    assert found == stages[: len(found)]
    shown = run("show", str(next((tmp_path / "schedules").rglob("*.json"))))[1]
    assert ("rule: none at decoder layers" in shown) == (len(set(reduction.keep_rates)) == 1)
    assert "entry rule: pooling" in shown


@pytest.mark.parametrize(
    ("rule", "stages"),
    [
        ('name = "ficoco-vl"', ["tower-02", "layer-06", "layer-12"]),
        ('name = "mustdrop"', ["tower-02", "entry", "layer-06", "layer-12"]),
    ],
)
def test_a_rule_in_the_tower(run: Run, tmp_path: Path, rule: str, stages: list[str]) -> None:
    document = exported(run, tmp_path, rule)
    reduction = document.schedule.reduction
    assert reduction.vision is not None
    assert reduction.vision.keep_rates[0] == 1.0
    assert counts_in(document) == reduction.counts(64)
    status = json.loads(run("status", "small", "--json")[1])
    found = [stage["name"] for stage in status["stages"]]
    assert found == stages[: len(found)]
    assert status["vision_keep_rates"] == list(reduction.tower_rates)
    assert status["keep_rates"] == list(reduction.keep_rates)
    shown = run("show", str(next((tmp_path / "schedules").rglob("*.json"))))[1]
    assert "rule in the vision tower" in shown
    assert "keep rate per vision tower layer" in shown
