"""What is imported when: the help text needs no torch, and a serving process needs no search."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_bad_input import STUDY

# What a serving process does not install. (transformers itself installs typer and rich.)
EXTRAS = ("optuna", "botorch", "gpytorch", "sqlalchemy", "alembic", "psycopg", "ray", "matplotlib")

BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)
sys.meta_path.insert(0, Block())
"""


def python(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def test_help_and_rules_import_no_torch() -> None:
    code = """
import sys
from scheduler_search.cli import app
for arguments in (["--help"], ["rules"], ["rules", "random"]):
    try:
        app(arguments)
    except SystemExit as stopped:
        assert not stopped.code
heavy = {"torch", "ray", "transformers", "optuna", "botorch", "sqlalchemy", "scipy", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "launch" in done.stdout
    assert "attention-rank" in done.stdout


@pytest.mark.slow
def test_commands_of_the_queue_import_no_torch(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(STUDY)
    code = """
import sys
from scheduler_search.cli import app
for arguments in ("submit bad.toml", "list", "logs bad", "status", "cancel bad", "retry bad"):
    try:
        app(["--database", "sqlite:///study.db", *arguments.split()])
    except SystemExit as stopped:
        assert not stopped.code, arguments
heavy = {"torch", "ray", "transformers", "optuna", "botorch", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_import_is_light() -> None:
    done = python("import sys, scheduler_search; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_schedule_is_applied_with_the_core_dependencies_alone() -> None:
    code = (
        BLOCK
        + """
import pathlib, torch, scheduler_search
from transformers import LlavaForConditionalGeneration
from scheduler_search.rule import make_rule
from scheduler_search.runtime import identify
from scheduler_search.schedule.values import Reduction
from scheduler_search import Schedule, apply_schedule
checkpoint = pathlib.Path(scheduler_search.__file__).parent / "testbed" / "tiny-llava"
model = LlavaForConditionalGeneration.from_pretrained(checkpoint)
layers = model.config.text_config.num_hidden_layers
reduction = Reduction((1.0, 1.0) + (0.25,) * (layers - 2), make_rule("attention-rank"))
image = model.config.image_token_id
inputs = dict(input_ids=torch.tensor([[2] + [image] * 64 + [5, 6]]), pixel_values=torch.zeros(1, 3, 64, 64))
with apply_schedule(model, Schedule(identify(model), reduction)) as handle, torch.no_grad():
    model(**inputs)
    assert handle.report().layers[-1].vision_tokens == (16,), handle.report()
"""
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
