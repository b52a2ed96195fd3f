"""The command line as processes, on the real tiny model: what each command promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.integration.conftest import SMALL, Cli, read

pytestmark = pytest.mark.slow

SCHEDULE = Path("schedules") / "tiny-llava" / "small.v1.json"


def test_launch_export_evaluate(cli: Cli, tmp_path: Path, small: Path) -> None:
    launched = cli("launch", small.name, fresh=True).stdout
    assert "layer-04" in launched
    assert "scheduler-search export small" in launched
    assert "is finished" in cli("launch", small.name).stdout

    status = json.loads(cli("status", "small", "--json").stdout)
    assert status["state"] == "finished"
    greedy = [stage["name"] for stage in status["stages"] if re.fullmatch(r"layer-\d+", stage["name"])]
    assert greedy == ["layer-04", "layer-08", "layer-12"][: len(greedy)]
    assert 0 < len(greedy) < len(status["stages"])
    assert json.loads(cli("status", "--json").stdout)[0]["name"] == "small"

    gate(cli, tmp_path)
    exported = cli("export", "small", "--max-drop", "1").stdout
    assert "baselines at matched FLOPs" in exported
    first = (tmp_path / SCHEDULE).read_bytes()
    cli("export", "small")
    assert (tmp_path / SCHEDULE).read_bytes() == first

    assert "is a valid schedule" in cli("check", str(SCHEDULE)).stdout
    assert "keep rate per decoder layer" in cli("show", str(SCHEDULE)).stdout
    evaluation = json.loads(cli("evaluate", str(SCHEDULE), "--json").stdout)
    document = read(tmp_path / SCHEDULE)
    assert evaluation["digest"] == document["digest"]
    assert evaluation["reduced"]["score"] == document["measured"]["reduced"]["score"]  # type: ignore[index]
    replaced_and_changed(cli, tmp_path, small)


def gate(cli: Cli, tmp_path: Path) -> None:
    """An interval over 64 samples is never narrower than 0.01, so a gate of 0 must close."""
    closed = cli("export", "small", "--max-drop", "0", check=False)
    assert closed.returncode == 3
    assert closed.stderr.strip().splitlines()[-1].startswith("error: the upper 95 % limit")
    assert not (tmp_path / "schedules").exists()


def replaced_and_changed(cli: Cli, tmp_path: Path, small: Path) -> None:
    before = read(tmp_path / SCHEDULE)
    cli("export", "small", "--replace")
    after = read(tmp_path / SCHEDULE)
    assert before["digest"] == after["digest"]
    small.write_text(SMALL.replace("penalty = 0.05", "penalty = 0.02"))
    refused = cli("launch", small.name, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "definition" in refused.stderr


def test_a_study_without_validation(cli: Cli, tmp_path: Path, small: Path) -> None:
    small.write_text(SMALL.replace("validation = { samples = 64 }\n", "").replace("iterations = 4", "iterations = 0"))
    cli("launch", small.name)
    refused = cli("export", "small", check=False)
    assert refused.returncode == 2
    assert "--allow-unvalidated" in refused.stderr
    assert not (tmp_path / "schedules").exists()
    cli("export", "small", "--allow-unvalidated")
    assert read(tmp_path / SCHEDULE)["measured"] is None


def test_a_schedule_for_another_model(cli: Cli, tmp_path: Path, small: Path) -> None:
    from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

    from scheduler_search.testbed import checkpoint

    cli("launch", small.name)
    cli("export", "small")
    config = LlavaConfig.from_pretrained(checkpoint())
    config.text_config.intermediate_size = 64
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "other")
    AutoProcessor.from_pretrained(checkpoint()).save_pretrained(tmp_path / "other")
    (tmp_path / "other.toml").write_text(SMALL.replace("testbed:tiny-llava", "./other"))
    refused = cli("evaluate", str(SCHEDULE), "--study", "other.toml", check=False)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("error: the schedule is for tiny-llava")
    assert "Traceback" not in refused.stderr
