from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from scheduler_search.errors import ScheduleDocumentError
from scheduler_search.schedule.document import ScheduleDocument, parse_document, read_document, write_document
from scheduler_search.schedule.record import Difference, Provenance
from tests.schedule.make_corpus import seal, searched, text_of
from tests.schedule.strategies import documents


@pytest.fixture
def document() -> ScheduleDocument:
    return parse_document(text_of(seal(searched())), "fixture")


@pytest.mark.slow
@settings(max_examples=60)
@given(documents())
def test_round_trip(document: ScheduleDocument) -> None:
    text = document.to_json()
    again = parse_document(text, "round trip")
    assert again == document
    assert again.to_json() == text
    assert (again.digest, again.record_digest) == (document.digest, document.record_digest)


@pytest.mark.slow
@settings(max_examples=20)
@given(documents())
def test_every_written_value_is_under_the_record_digest(document: ScheduleDocument) -> None:
    """Any single change of a leaf is noticed by one of the digests, or by what a leaf may be."""
    text = document.to_json()
    raw = json.loads(text)
    for container, key, value in _leaves(raw):
        container[key] = _other(value)
        with pytest.raises(ScheduleDocumentError):
            parse_document(json.dumps(raw), "tampered")
        container[key] = value


def test_file_is_for_people(document: ScheduleDocument) -> None:
    text = document.to_json()
    keys = [
        "format",
        "format_version",
        "model",
        "decoder",
        "vision",
        "provenance",
        "digest",
        "record_digest",
        "measured",
    ]
    assert list(json.loads(text)) == keys
    assert text.startswith('{\n  "format": "keep-rate-schedule",\n')
    assert text.endswith("}\n")


def test_digest_is_over_what_is_executed_only(document: ScheduleDocument) -> None:
    other = replace(document, created="2027-01-01T00:00:00Z", measured=None)
    assert other.digest == document.digest == document.schedule.digest
    assert other.record_digest != document.record_digest


def test_write_and_read(tmp_path: Path, document: ScheduleDocument) -> None:
    path = tmp_path / "tiny-llava" / "study.v1.json"
    write_document(path, document)
    assert read_document(path) == document
    assert path.read_text(encoding="utf-8") == document.to_json()
    assert [entry.name for entry in path.parent.iterdir()] == ["study.v1.json"]


def test_the_same_document_again_touches_nothing(tmp_path: Path, document: ScheduleDocument) -> None:
    path = tmp_path / "study.v1.json"
    write_document(path, document)
    os.utime(path, (1, 1))
    write_document(path, document)
    assert path.stat().st_mtime == 1


def test_a_different_document_is_not_overwritten_unless_asked(tmp_path: Path, document: ScheduleDocument) -> None:
    path = tmp_path / "study.v1.json"
    other = replace(document, measured=None)
    write_document(path, document)
    with pytest.raises(ScheduleDocumentError, match=r"never overwritten .*nothing was written; choose another folder"):
        write_document(path, other)
    assert read_document(path) == document
    write_document(path, other, replace=True)
    assert read_document(path) == other


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, document: ScheduleDocument) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    with pytest.raises(ScheduleDocumentError, match=r"must be written to a folder that allows it, but got File exists"):
        write_document(tmp_path / "occupied" / "study.v1.json", document)


def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, document: ScheduleDocument, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:  # noqa: ARG001
        raise OSError(28, "No space left on device")

    path = tmp_path / "study.v1.json"
    write_document(path, document)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ScheduleDocumentError, match="No space left on device"):
        write_document(path, replace(document, measured=None), replace=True)
    assert read_document(path) == document
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.v1.json"]


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ScheduleDocumentError, match=r"can be read, but got No such file .*absent\.json"):
        read_document(tmp_path / "absent.json")
    with pytest.raises(ScheduleDocumentError, match="Is a directory"):
        read_document(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"format": "\xe9"}')
    with pytest.raises(ScheduleDocumentError, match="must be UTF-8"):
        read_document(tmp_path / "latin.json")


def test_depth_and_digits_beyond_the_parser_are_no_json_to_us() -> None:
    for text in ("[" * 100_000, "1" * 10_000):
        with pytest.raises(ScheduleDocumentError, match="must be JSON"):
            parse_document(text, "hostile.json")


@pytest.mark.parametrize("created", ["yesterday", "2026-01-31", "2026-01-31T12:00:00", "2026-13-01T00:00:00Z", ""])
def test_created_is_a_time_in_utc(document: ScheduleDocument, created: str) -> None:
    with pytest.raises(ScheduleDocumentError, match="created must be a time in UTC"):
        replace(document, created=created)


def test_a_measurement_needs_a_validation_split(document: ScheduleDocument) -> None:
    provenance = document.provenance.model_copy(update={"validation_data_digest": None, "validation_samples": 0})
    with pytest.raises(ScheduleDocumentError, match="measured must be null without a validation split"):
        replace(document, provenance=provenance)


def test_records_are_strict_and_frozen(document: ScheduleDocument) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        document.provenance.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="valid number"):
        Difference(mean="0.1", interval=(0.0, 0.2))  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="valid number"):
        Difference(mean=0.1, interval=("0.0", 0.2))  # type: ignore[arg-type]
    fields = document.provenance.model_dump() | {"algorithm_parameters": {"penalty": float("nan")}}
    with pytest.raises(ValidationError, match="finite"):
        Provenance(**fields)


def _leaves(value: object) -> list[tuple[object, object, object]]:
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type, var-annotated]
    for key, inner in list(items):
        found += _leaves(inner) if isinstance(inner, dict | list) else [(value, key, inner)]
    return found


def _other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.125 if value != 0.25 else 0.375
    if isinstance(value, str):
        return value + "x"
    return "was null"
