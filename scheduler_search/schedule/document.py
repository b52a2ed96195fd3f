"""The schedule document, format version 1: a frozen schedule with its origin and measurement, as text and as file.

Knows: the order of the keys, both digests, what is refused and with which words, and how a file is written so that
there is never half of one. Does not know: how a schedule is found, measured or applied.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from scheduler_search.errors import ScheduleDocumentError, SchedulerSearchError
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.schedule.record import Measured, Provenance
from scheduler_search.schedule.strict_json import load_strict_json
from scheduler_search.schedule.values import FORMAT, FORMAT_VERSION, Schedule
from scheduler_search.schedule.wire import WireDocument, WireProvenance


@dataclass(frozen=True)
class ScheduleDocument:
    """A schedule as it is published.

    Args:
        measured: None for an export that was allowed without validation.
        created: UTC, ISO 8601, ending in ``Z`` or ``+00:00``.

    Raises:
        ScheduleDocumentError: ``created`` is no such time, or a measurement without a validation split.
    """

    schedule: Schedule
    provenance: Provenance
    measured: Measured | None
    created: str

    def __post_init__(self) -> None:
        try:
            WireProvenance.model_validate(self._provenance())
        except ValidationError as error:
            rule = "created must be a time in UTC as ISO 8601, ending in Z"
            raise ScheduleDocumentError(rule, actual=repr(self.created)) from error
        if self.measured is not None and self.provenance.validation_data_digest is None:
            rule = "measured must be null without a validation split"
            raise ScheduleDocumentError(rule, actual=f"a score over {self.measured.samples} samples")

    @property
    def digest(self) -> str:
        """Digest of what is executed: ``Schedule.digest``."""
        return self.schedule.digest

    @cached_property
    def record_digest(self) -> str:
        """Digest of the whole document without this one field."""
        return digest_of(self._without_record_digest())

    def to_document(self) -> dict[str, object]:
        """The JSON object, keys in document order."""
        document = self._without_record_digest()
        measured = document.pop("measured")
        return document | {"record_digest": self.record_digest, "measured": measured}

    def to_json(self) -> str:
        """The text of the file: indented, keys in document order, with a newline at its end."""
        return json.dumps(self.to_document(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _provenance(self) -> dict[str, object]:
        return self.provenance.model_dump(mode="json") | {"created": self.created}

    def _without_record_digest(self) -> dict[str, object]:
        measured = None if self.measured is None else self.measured.model_dump(mode="json")
        return self.schedule.to_document() | {
            "provenance": self._provenance(),
            "digest": self.digest,
            "measured": measured,
        }


def parse_document(text: str, place: str) -> ScheduleDocument:
    """The document in ``text``; ``place`` is what errors call it.

    Raises:
        ScheduleDocumentError: anything that DESIGN section 4 lists; the first fault that is found, in one line.
    """
    value = load_strict_json(text, place)
    _check_format(value, place)
    wire = _wire(value, place)
    provenance = wire.provenance.model_dump(exclude={"created"})
    try:
        document = ScheduleDocument(
            wire.schedule(), Provenance(**provenance), wire.measured, created=wire.provenance.created
        )
    except SchedulerSearchError as error:
        where = f"{place}, {error.place}" if error.place else place
        raise ScheduleDocumentError(error.rule, actual=error.actual, place=where, remedy=error.remedy) from error
    _check_digest("digest must be that of what is executed", wire.digest, document.digest, place)
    _check_digest("record_digest must be that of the whole document", wire.record_digest, document.record_digest, place)
    return document


def read_document(path: str | Path) -> ScheduleDocument:
    """The document in a file; ScheduleDocumentError as ``parse_document``, and if the file cannot be read."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        rule = "a schedule document must be a file that can be read"
        raise ScheduleDocumentError(rule, actual=error.strerror, place=str(path)) from error
    except UnicodeDecodeError as error:
        raise ScheduleDocumentError(
            "a schedule document must be UTF-8", actual=error.reason, place=str(path)
        ) from error
    return parse_document(text, str(path))


def write_document(path: str | Path, document: ScheduleDocument, *, replace: bool = False) -> None:
    """Write the file, whole or not at all; folders are made. The same document again changes nothing.

    Raises:
        ScheduleDocumentError: the file holds something else (unless ``replace``), or cannot be written.
    """
    target = Path(path)
    content = document.to_json().encode("utf-8")
    try:
        if target.exists() and not replace:
            _check_same(target, content)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_atomically(target, content)
    except OSError as error:
        rule = "the schedule document must be written to a folder that allows it"
        remedy = "nothing was written; choose another folder"
        raise ScheduleDocumentError(rule, actual=error.strerror, place=str(target), remedy=remedy) from error


def _check_same(target: Path, content: bytes) -> None:
    if target.read_bytes() != content:
        raise ScheduleDocumentError(
            "a published schedule is never overwritten by a different one",
            place=str(target),
            remedy="nothing was written; choose another folder or name, or move the file away",
        )


def _write_atomically(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself, too, outlives a power cut
    finally:
        os.close(folder)


def _check_format(value: object, place: str) -> None:
    """Before all else: a document of another version may differ from ours in anything."""
    if not isinstance(value, dict):
        raise ScheduleDocumentError("a schedule document must be a JSON object", actual=_short(value), place=place)
    for key, known in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
        if key not in value:
            raise ScheduleDocumentError(f"key {key!r} is missing", place=place)
        if value[key] != known or type(value[key]) is not type(known):
            remedy = "use the release of scheduler-search that wrote it" if key == "format_version" else None
            raise ScheduleDocumentError(
                f"{key} must be {known!r}", actual=_short(value[key]), place=place, remedy=remedy
            )


def _wire(value: object, place: str) -> WireDocument:
    try:
        return WireDocument.model_validate(value)
    except ValidationError as error:
        # A mistyped key is both an unknown and a missing one; the unknown one is what its author can see.
        fault = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in fault["loc"])
        actual = None if fault["type"] in ("missing", "extra_forbidden") else _short(fault["input"])
        rule = _rule(fault["type"], key, fault["msg"])
        raise ScheduleDocumentError(rule, actual=actual, place=place) from error


def _rule(kind: str, key: str, message: str) -> str:
    if kind == "missing":
        return f"key {key!r} is missing"
    if kind == "extra_forbidden":
        return f"key {key!r} is unknown"
    message = message.removeprefix("Value error, ").replace("Input should", "must")
    message = re.sub(r" or instance of \w+", "", message)
    return f"{key}: {message[0].lower()}{message[1:]}"


def _check_digest(rule: str, stated: str, computed: str, place: str) -> None:
    if stated != computed:
        remedy = "the document was changed after it was written; get it anew"
        raise ScheduleDocumentError(f"{rule}, {computed}", actual=stated, place=place, remedy=remedy)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
