"""One corpus of documents holds the parser and the JSON Schema together."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from scheduler_search.errors import ScheduleDocumentError
from scheduler_search.schedule.document import parse_document, read_document
from scheduler_search.schedule.schema import schedule_json_schema, schedule_json_schema_text

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "golden" / "schedules"
VALID = sorted(path.stem for path in (CORPUS / "valid").glob("*.json"))
INVALID = sorted(path.stem for path in (CORPUS / "invalid").glob("*.json"))
FAULTS = json.loads((CORPUS / "faults.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(schedule_json_schema())


def test_published_schema_is_the_generated_one() -> None:
    published = ROOT / "schedules" / "schedule.v1.schema.json"
    assert published.read_text(encoding="utf-8") == schedule_json_schema_text()
    jsonschema.Draft202012Validator.check_schema(schedule_json_schema())


def test_every_invalid_document_has_its_message() -> None:
    assert sorted(FAULTS) == INVALID
    assert len(VALID) >= 5


@pytest.mark.parametrize("name", VALID)
def test_valid_documents_pass_parser_and_schema(name: str) -> None:
    path = CORPUS / "valid" / f"{name}.json"
    document = read_document(path)
    VALIDATOR.validate(json.loads(path.read_text(encoding="utf-8")))
    if name != "written-elsewhere":
        assert document.to_json() == path.read_text(encoding="utf-8")


def test_a_document_from_another_writer_is_the_same_document() -> None:
    ours, theirs = (read_document(CORPUS / "valid" / f"{name}.json") for name in ("searched", "written-elsewhere"))
    assert theirs == ours
    assert theirs.to_json() == ours.to_json()


@pytest.mark.parametrize("name", INVALID)
def test_invalid_documents_are_refused_in_one_line(name: str) -> None:
    text = (CORPUS / "invalid" / f"{name}.json").read_text(encoding="utf-8")
    with pytest.raises(ScheduleDocumentError) as caught:
        parse_document(text, "here.json")
    message = str(caught.value)
    assert FAULTS[name]["message"] in message
    assert "(in here.json" in message
    assert "\n" not in message
    assert len(message) < 400


def test_a_parameter_of_another_type_is_named() -> None:
    text = (CORPUS / "invalid" / "parameter-type.json").read_text(encoding="utf-8")
    with pytest.raises(ScheduleDocumentError, match=r"in here\.json, rule 'random', parameter 'seed'"):
        parse_document(text, "here.json")


@pytest.mark.parametrize("name", INVALID)
def test_schema_sees_what_json_schema_can(name: str) -> None:
    text = (CORPUS / "invalid" / f"{name}.json").read_text(encoding="utf-8")
    try:
        valid = VALIDATOR.is_valid(json.loads(text))
    except json.JSONDecodeError:
        valid = True  # what is no JSON never reaches the schema
    assert valid is not FAULTS[name]["schema_sees_it"]
