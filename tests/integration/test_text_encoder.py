"""A study whose rule compares patches with questions in CLIP's space, from its file to a schedule that is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scheduler_search import apply_schedule, testbed
from scheduler_search.errors import UnsupportedError
from scheduler_search.runtime import load_question_encoder
from scheduler_search.schedule.document import read_document
from scheduler_search.testbed.model import load_checkpoint
from tests.clip import save_clip
from tests.integration.conftest import Run

pytestmark = pytest.mark.slow

STUDY = """
name = "asking"
seed = 1
[model]
id = "testbed:tiny-llava"
device = "cpu"
text_encoder = "./clip"
[data]
source = "testbed"
search = { samples = 8 }
validation = { samples = 8 }
[rule]
name = "visiontrim"
text_features = "clip"
[search]
first_layer = 6
stride = 9
penalty = 2.0
initial = 2
iterations = 1
refine = false
"""


def test_a_study_that_asks_a_text_encoder(run: Run, tmp_path: Path) -> None:
    model: Any = load_checkpoint(testbed.checkpoint())
    encoder = load_question_encoder(save_clip(tmp_path / "clip", model.base_model.vision_tower))
    (tmp_path / "asking.toml").write_text(STUDY)
    for command in (("launch", "asking.toml"), ("export", "asking")):
        code, printed, error = run(*command)
        assert code == 0, printed + error
    path = tmp_path / "schedules" / "tiny-llava" / "asking.v1.json"
    document = read_document(path)
    code, printed, error = run("evaluate", str(path), "--json")
    assert code == 0, error
    assert document.measured is not None
    assert json.loads(printed)["reduced"]["score"] == document.measured.reduced.score

    schedule = document.schedule
    assert schedule.reduction.entry_rule is not None
    assert schedule.reduction.entry_rule.text("text_features") == "clip"
    image = model.config.image_token_id
    inputs = {"input_ids": torch.tensor([[2] + [image] * 64 + [5, 6]]), "pixel_values": torch.rand(1, 3, 64, 64)}
    with pytest.raises(UnsupportedError, match="needs the text encoder of CLIP"):
        apply_schedule(model, schedule)
    with apply_schedule(model, schedule, question_encoder=encoder) as handle, torch.no_grad():
        with handle.questions(["color of circle"]):
            model(**inputs)
        counts = tuple(layer.vision_tokens[0] for layer in handle.report().layers)
    assert counts == schedule.reduction.counts(64)
