"""An export from the database alone says what one with model and data says."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from scheduler_search.cli import main
from scheduler_search.testbed import checkpoint, generate

pytestmark = pytest.mark.slow

STUDY = """
name = "old"
[model]
id = "./model"
device = "cpu"
[data]
source = "jsonl"
path = "data.jsonl"
search = { samples = 24 }
validation = { samples = 24 }
[search]
first_layer = 5
stride = 4
penalty = 0.05
iterations = 1
"""


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the database of a finished study before and after its validation; model and data are gone."""
    folder = tmp_path_factory.mktemp("old")
    work = folder / "work"
    shutil.copytree(checkpoint(), work / "model")
    lines = []
    for index, question in enumerate(generate("test", 48, seed=1)):
        question.image.save(work / f"{index}.png")
        lines.append({"image": f"{index}.png", "question": question.question, "answers": [question.answer]})
    (work / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (work / "old.toml").write_text(STUDY)
    url = f"sqlite:///{folder}/study.db"
    assert command("--database", url, "launch", str(work / "old.toml")) == 0
    shutil.copy(folder / "study.db", folder / "searched.db")
    # The gate is closed: everything is measured, nothing is published.
    assert command("--database", url, "export", "old", "--out", str(work / "out"), "--max-drop", "0") == 3
    shutil.copy(folder / "study.db", folder / "validated.db")
    shutil.rmtree(work)
    return folder


def command(*arguments: str) -> int:
    """Exit code of a command, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scheduler-search", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
    return int(stopped.value.code or 0)


def exported(databases: Path, name: str, out: Path, *options: str) -> int:
    return command("--database", f"sqlite:///{databases}/{name}.db", "export", "old", "--out", str(out), *options)


def test_an_old_study_is_exported_from_the_database_alone(databases: Path, tmp_path: Path) -> None:
    assert exported(databases, "validated", tmp_path) == 0
    path = tmp_path / "model" / "old.v1.json"
    document = json.loads(path.read_text())
    measured = document["measured"]
    assert measured["samples"] == 24
    assert {row["name"] for row in measured["baselines"]} >= {"uniform", "random", "pooling"}
    assert measured["prefill_milliseconds"]["reduced"] > 0
    assert document["provenance"]["software"]["torch"]
    assert command("check", str(path)) == 0
    # Measuring again is another matter.
    assert exported(databases, "validated", tmp_path, "--replace") == 2


def test_a_study_that_was_never_validated_says_what_is_missing(
    databases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert exported(databases, "searched", tmp_path / "out") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("error: an export needs the model and the data of its study, unless its validation is ")
    assert str(databases / "work") in line
    assert "export it where both are" in line
    assert not (tmp_path / "out").exists()
