"""``[workers] prefix_memory``: an amount with its unit, which makes no other study."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler_search.errors import StudyConflictError, StudyFileError
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.definition import StudyDefinition
from tests.study.files import MINIMAL, read


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


def test_it_is_no_part_of_what_the_study_is(tmp_path: Path) -> None:
    digests = {with_memory(tmp_path, text).digest for text in ("0", '"1GiB"', '"4GiB"')}
    assert digests == {read(tmp_path, MINIMAL).digest}
    other = read(tmp_path, MINIMAL + "[workers]\nthreads = 2\nprefix_memory = 0\n")
    assert other.digest not in digests


def test_a_recorded_study_goes_on_with_another_amount(tmp_path: Path) -> None:
    first, second = with_memory(tmp_path, "0"), with_memory(tmp_path, '"1GiB"')
    with StudyDatabase.open(f"sqlite:///{tmp_path}/study.db") as database:
        record = database.add_study(first)
        database.check_definition(second)
        again = database.add_study(second)
        assert (again.id, again.definition) == (record.id, second)
        changed = StudyDefinition.model_validate({**second.to_document(), "seed": 1})
        with pytest.raises(StudyConflictError):
            database.add_study(changed)
