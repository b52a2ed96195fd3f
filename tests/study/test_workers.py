"""``[workers]``: amounts with their units, and keys that make no other study, all but ``threads``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scheduler_search.errors import StudyConflictError, StudyFileError
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.file import read_study_file
from tests.study.files import MINIMAL, read

KEYS = (
    'executor = "ray"',
    "count = 3",
    "gpus = 0",
    "gpus = 0.25",
    "gpus = 2",
    "cpus = 0.5",
    "cpus = 2",
    "memory = 0",
    'memory = "8GiB"',
    "prefix_memory = 0",
    "chunk_timeout = 2.5",
    "chunk_timeout = 7",
    "attempts = 1",
)


def with_keys(folder: Path, *lines: str) -> StudyDefinition:
    return read(folder, "\n".join([MINIMAL, "[workers]", *lines, ""]))


def with_memory(folder: Path, text: str) -> StudyDefinition:
    return read(folder, f"{MINIMAL}[workers]\nprefix_memory = {text}\n")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ('"0KiB"', 0),
        ('"3KiB"', 3 * 1024),
        ('"512 MiB"', 512 * 1024**2),
        ('"4GiB"', 4 * 1024**3),
        ('"1.5GiB"', 3 * 1024**3 // 2),
    ],
)
def test_an_amount_has_a_unit(tmp_path: Path, text: str, count: int) -> None:
    definition = with_memory(tmp_path, text)
    assert definition.workers.prefix_bytes == count
    assert StudyDefinition.from_json(definition.to_json()) == definition


def test_without_the_key_it_is_the_workers_affair(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL).workers.prefix_bytes is None


@pytest.mark.parametrize("text", ["4", "-1", "0.0", "true", "false", '"4"', '"4GB"', '"GiB"', '"-1GiB"', '"4gib"'])
def test_anything_else_is_one_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        with_memory(tmp_path, text)
    message = str(caught.value)
    assert "prefix_memory must be 0 or a text of a number and KiB, MiB or GiB, but got " in message
    assert "[workers] prefix_memory)" in message
    assert 'for example prefix_memory = "4GiB"' in message
    assert "\n" not in message


@pytest.mark.parametrize("line", ['memory = "8GB"', "memory = 3", "memory = false"])
def test_device_memory_is_an_amount_too(tmp_path: Path, line: str) -> None:
    with pytest.raises(
        StudyFileError, match=r"memory must be 0 or a text .*\[workers\] memory\); for example memory = "
    ):
        with_keys(tmp_path, line)
    assert with_keys(tmp_path, 'memory = "2KiB"').workers.memory_bytes == 2048
    assert with_keys(tmp_path, "memory = 0").workers.memory_bytes == 0
    assert with_keys(tmp_path).workers.memory_bytes is None


@pytest.mark.parametrize(
    "line",
    [
        "count = 0",
        "gpus = -1",
        "gpus = 1.5",
        "gpus = true",
        "cpus = 0",
        "chunk_timeout = 0",
        "chunk_timeout = inf",
        "attempts = 0",
        'executor = "dask"',
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, line: str) -> None:
    key = line.split(" = ")[0]
    with pytest.raises(StudyFileError, match=rf"\[workers\] {key}\)"):
        with_keys(tmp_path, line)


@pytest.mark.parametrize("line", KEYS)
def test_it_is_no_part_of_what_the_study_is(tmp_path: Path, line: str) -> None:
    definition, plain = with_keys(tmp_path, line), read(tmp_path, MINIMAL)
    assert definition.digest == plain.digest
    assert definition != plain
    assert StudyDefinition.from_json(definition.to_json()) == definition


def test_threads_are(tmp_path: Path) -> None:
    assert with_keys(tmp_path, "threads = 2", *KEYS[:2]).digest == with_keys(tmp_path, "threads = 2").digest
    assert with_keys(tmp_path, "threads = 2").digest != read(tmp_path, MINIMAL).digest


def test_the_shipped_quickstart_is_the_study_that_it_was() -> None:
    """Its digest before there was a key of Ray."""
    definition = read_study_file(Path(__file__).parents[2] / "studies/quickstart.toml")
    assert definition.digest == "sha256:6a9dd64f8e5068ead445dd187a0a184a8f77d7c5a08615ca087b30201ff8fd1a"


def test_a_definition_that_was_recorded_before_is_read(tmp_path: Path) -> None:
    definition = with_keys(tmp_path, "threads = 2", 'prefix_memory = "1GiB"')
    document = json.loads(definition.to_json())
    document["workers"] = {"executor": "local", "threads": 2, "prefix_memory": "1GiB"}
    assert StudyDefinition.from_json(json.dumps(document)) == definition


@pytest.mark.parametrize("line", KEYS)
def test_a_recorded_study_goes_on_with_others(tmp_path: Path, line: str) -> None:
    first, second = read(tmp_path, MINIMAL), with_keys(tmp_path, line)
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        record = database.add_study(first)
        database.check_definition(second)
        again = database.add_study(second)
        assert (again.id, again.definition) == (record.id, second)
        changed = StudyDefinition.model_validate({**second.to_document(), "seed": 1})
        with pytest.raises(StudyConflictError):
            database.add_study(changed)
