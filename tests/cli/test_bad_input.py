"""Bad input gets one line, exit code 2, and nothing written. One case per fault of the list that users meet."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from scheduler_search.cli import main
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import read_study_file

Run = Callable[..., tuple[int, str]]

STUDY = """
name = "bad"
[model]
id = "testbed:tiny-llava"
[data]
source = "testbed"
search = { samples = 8 }
validation = { samples = 8 }
[search]
stride = 6
initial = 1
iterations = 1
"""

JSONL = """
name = "bad"
[model]
id = "testbed:tiny-llava"
[data]
source = "jsonl"
path = "data.jsonl"
search = { samples = 2 }
validation = { samples = 2 }
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder; returns exit code and what it printed to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCHEDULER_SEARCH_DATABASE", raising=False)

    def invoke(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["scheduler-search", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return invoke


def one_line(code: int, error: str, *fragments: str) -> None:
    """What every refusal must look like."""
    lines = [line for line in error.splitlines() if line.strip()]
    assert code == 2, error
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert "Traceback" not in error
    for fragment in fragments:
        assert fragment in lines[0], error


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def study_file(folder: Path, text: str, name: str = "bad.toml") -> str:
    (folder / name).write_text(text)
    return name


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (("stride = 6", "strid = 6"), ("strid", "did you mean", "stride")),
        (("stride = 6", 'stride = "six"'), ("[search] stride",)),
        (('name = "bad"', 'name = "../bad"'), ("name",)),
        (("stride = 6", 'algorithm = "p-sigmoid"\nbudget = 1.5'), ("budget",)),
        (("stride = 6", 'algorithm = "p-sigmoid"'), ("budget",)),
        (('source = "testbed"', 'source = "nowhere"'), ("source",)),
        (('[model]\nid = "testbed:tiny-llava"', "[model]"), ('"id"', "[model]")),
        (("stride = 6", "stride = = 6"), ("line 10",)),
        (('id = "testbed:tiny-llava"', 'id = "./nothing-here"'), ("nothing-here",)),
        (('id = "testbed:tiny-llava"', 'id = "testbed:huge-llava"'), ("huge-llava",)),
        (("[search]", '[rule]\nname = "attention-rnk"\n[search]'), ("attention-rnk", "attention-rank")),
        (("[search]", '[rule]\nname = "xyzzy"\n[search]'), ("xyzzy", "known rules", "attention-rank", "random")),
        (("[search]", "[rule]\nhead_reductoin = 'max'\n[search]"), ("[rule]", "did you mean 'head_reduction'?")),
        (("[search]", "[rule]\nhead_reduction = 'median'\n[search]"), ("'mean', 'max', 'sum'", "'median'")),
        (("[search]", "[rule]\nname = 'random'\nsede = 1\n[search]"), ("rule 'random'", "did you mean 'seed'?")),
        (("[search]", "[rule]\nname = 'random'\nat = 'entri'\n[search]"), ("entri", "did you mean 'entry'?")),
        (("[search]", "[rule]\nname = 'divprune'\nat = 'decoder'\n[search]"), ("'divprune'", "acts only at entry")),
        (("[search]", '[rule]\nquery_row = "last"\n[search]'), ("query_row", "did you mean 'query_rows'?")),
        (
            ("[search]", '[rule]\nat = "entry"\n[search]'),
            ("[rule] at", "acts only at decoder", "scheduler-search rules"),
        ),
        (("stride = 6", "first_layer = 13"), ("first_layer", "12")),
        (("[search]", '[rule]\nname = "tome"\n[search]\nvision_first_layer = 3'), ("vision_first_layer", "at most 2")),
        (
            ("[search]\nstride = 6", '[rule]\nname = "tome"\n[search]\nalgorithm = "frontier"'),
            ("[search] algorithm", "and no other place", 'algorithm = "g-search"'),
        ),
    ],
)
def test_a_malformed_study_file(run: Run, tmp_path: Path, change: tuple[str, str], fragments: tuple[str, ...]) -> None:
    assert change[0] in STUDY
    name = study_file(tmp_path, STUDY.replace(*change))
    one_line(*run("launch", name), *fragments)
    assert written(tmp_path) == {name}


def test_a_missing_study_file(run: Run, tmp_path: Path) -> None:
    one_line(*run("launch", "missing.toml"), "missing.toml")
    assert written(tmp_path) == set()


def sample(image: str) -> str:
    return json.dumps({"image": image, "question": "color of circle", "answers": ["red"]})


def images(folder: Path, count: int) -> list[str]:
    for index in range(count):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    return [f"{index}.png" for index in range(count)]


@pytest.mark.parametrize(
    ("lines", "fragments"),
    [
        ((), ("data.jsonl",)),
        ((sample("0.png"), sample("absent.png")), ("absent.png", "line 2")),
        ((sample("0.png"), sample("broken.png")), ("broken.png", "line 2")),
        ((sample("0.png"), "{"), ("line 2",)),
        ((sample("0.png"), '{"image": "1.png", "question": "x"}'), ("answers", "line 2")),
        (tuple(sample(f"{index}.png") for index in range(3)), ("validation", "1 left of 3")),
    ],
    ids=["empty", "missing image", "unreadable image", "not JSON", "missing key", "too few"],
)
def test_bad_data(run: Run, tmp_path: Path, lines: tuple[str, ...], fragments: tuple[str, ...]) -> None:
    images(tmp_path, 4)
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:30])
    (tmp_path / "data.jsonl").write_text("".join(line + "\n" for line in lines))
    name = study_file(tmp_path, JSONL)
    before = written(tmp_path)
    one_line(*run("launch", name), *fragments)
    assert written(tmp_path) == before


def test_the_same_data_for_search_and_validation(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("".join(sample(image) + "\n" for image in images(tmp_path, 4)))
    shared = JSONL.replace('path = "data.jsonl"\n', "").replace(
        "{ samples = 2 }", '{ samples = 2, path = "data.jsonl" }'
    )
    name = study_file(tmp_path, shared)
    one_line(*run("launch", name), "must not share data")


def test_an_unknown_study(run: Run, tmp_path: Path) -> None:
    from scheduler_search.storage import StudyDatabase

    with StudyDatabase.open(f"sqlite:///{tmp_path}/scheduler-search.db"):
        pass
    for command in ("resume", "status", "export"):
        one_line(*run(command, "nobody"), "nobody")


def test_no_database(run: Run, tmp_path: Path) -> None:
    for command in (("resume", "x"), ("status",), ("export", "x")):
        one_line(*run(*command), "scheduler-search.db")
    assert written(tmp_path) == set()


@pytest.mark.parametrize("kind", ["text", "foreign"])
def test_a_database_that_is_not_ours(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other.db"
    if kind == "text":
        path.write_text("not a database at all, only text that is long enough to have a header\n" * 10)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE customers (id INTEGER)")
        connection.close()
    before = path.read_bytes()
    one_line(*run("--database", f"sqlite:///{path}", "launch", study_file(tmp_path, STUDY)), "other.db")
    one_line(*run("--database", f"sqlite:///{path}", "status"), "other.db")
    assert path.read_bytes() == before


def test_a_schedule_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "schedule.json").write_text('{"format": "keep-rate-schedule", "format_version": 2}')
    for command in ("check", "show", "evaluate"):
        one_line(*run(command, "schedule.json"), "format_version")
    one_line(*run("check", "absent.json"), "absent.json")


CORPUS = Path(__file__).parent.parent / "golden" / "schedules" / "invalid"


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_every_invalid_document_of_the_corpus(run: Run, path: Path) -> None:
    one_line(*run("check", str(path)))


def test_an_output_folder_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    one_line(*run("export", "any", "--out", "file/schedules"), "file")
    assert written(tmp_path) == {"file"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a file system that refuses root")
def test_a_read_only_output_folder(run: Run) -> None:
    one_line(*run("export", "any", "--out", "/proc/self/schedules"), "/proc/self")


def test_usage_errors_exit_with_2(run: Run) -> None:
    assert run("launch")[0] == 2
    assert run("no-such-command")[0] == 2
    assert run("export", "x", "--max-drop", "2")[0] == 2


@pytest.mark.parametrize(
    ("search", "options", "fragments"),
    [
        ("stride = 6", ("--tflops", "1.5"), ("--tflops and --keep-rate", "frontier", "g-search")),
        ("stride = 6", ("--keep-rate", "0.5"), ("--tflops and --keep-rate", "frontier", "g-search")),
        ('algorithm = "frontier"', (), ("no target", "--tflops X, --keep-rate X or --max-drop X")),
        ('algorithm = "frontier"', ("--tflops", "1", "--keep-rate", "0.5"), ("one of --tflops and --keep-rate",)),
        ('algorithm = "frontier"', ("--keep-rate", "0.5"), ("must be finished", "queued")),
    ],
)
def test_targets_that_a_study_has_no_answer_to(
    run: Run, tmp_path: Path, search: str, options: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    definition = read_study_file(tmp_path / study_file(tmp_path, STUDY.replace("stride = 6", search)))
    with StudyDatabase.open(f"sqlite:///{tmp_path}/scheduler-search.db") as database:
        database.add_study(definition)
    one_line(*run("export", "bad", *options), *fragments)
    assert not (tmp_path / "schedules").exists()
