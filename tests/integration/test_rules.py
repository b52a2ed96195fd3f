"""A short study of every declared rule on the real tiny model, from a study file to a schedule that is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scheduler_search import apply_schedule, testbed
from scheduler_search.rule import Declaration, declarations
from scheduler_search.schedule.document import read_document
from scheduler_search.schedule.values import Reduction
from scheduler_search.testbed.model import load_checkpoint
from tests.integration.conftest import Run

pytestmark = pytest.mark.slow

STUDY = """
name = "short"
seed = 1
[model]
id = "testbed:tiny-llava"
device = "cpu"
[data]
source = "testbed"
search = {{ samples = 32 }}
[rule]
name = "{rule}"
[search]
first_layer = 4
stride = 9
penalty = 1.0
initial = 2
iterations = 2
refine = false
"""


@pytest.fixture(scope="module")
def model() -> Any:
    return load_checkpoint(testbed.checkpoint())


def names(reduction: Reduction) -> set[str]:
    """The rules that a schedule runs."""
    tower = () if reduction.vision is None else (reduction.vision.rule.name,)
    entry = () if reduction.entry_rule is None else (reduction.entry_rule.name,)
    decoder = (reduction.rule.name,) if len(set(reduction.keep_rates)) > 1 else ()
    return {*tower, *entry, *decoder}


@pytest.mark.parametrize("declaration", declarations(), ids=lambda declaration: declaration.name)
def test_a_short_study(run: Run, tmp_path: Path, model: Any, declaration: Declaration) -> None:
    (tmp_path / "short.toml").write_text(STUDY.format(rule=declaration.name))
    for command in (("launch", "short.toml"), ("export", "short", "--allow-unvalidated")):
        code, printed, error = run(*command)
        assert code == 0, printed + error
    schedule = read_document(tmp_path / "schedules" / "tiny-llava" / "short.v1.json").schedule
    reduction = schedule.reduction
    assert names(reduction) == {declaration.name}
    promised = reduction.counts(64)
    assert promised[-1] < 64
    image = model.config.image_token_id
    inputs = {"input_ids": torch.tensor([[2] + [image] * 64 + [5, 6]]), "pixel_values": torch.rand(1, 3, 64, 64)}
    with apply_schedule(model, schedule) as handle, torch.no_grad():
        model(**inputs)
        assert tuple(layer.vision_tokens[0] for layer in handle.report().layers) == promised
