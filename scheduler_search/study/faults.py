"""From pydantic's complaints to one StudyFileError that a person can act on.

Knows: how a location in a study file is written, and which known key is nearest to an unknown one. Does not know: the
rules themselves.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scheduler_search.errors import RuleError, StudyFileError

# What pydantic puts into a location to say which form of a value it tried.
_TAGS = frozenset({"plain", "FlopsBudget", "ScheduleBudget", "FlopsPenalty", "WeightedObjective"})


def study_file_error(
    error: ValidationError | RuleError, model: type[BaseModel], place: str, kind: str = "study file"
) -> StudyFileError:
    """The first fault as StudyFileError; unknown keys come first, since a misspelt key also goes missing."""
    if isinstance(error, RuleError):
        inner = f" ({error.place})" if error.place else ""
        return StudyFileError(error.rule, actual=error.actual, place=f"{place}, [rule]{inner}", remedy=error.remedy)
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    return _from_detail(details[0], model, place, kind)


def unknown_key(key: str, known: Iterable[str], place: str, kind: str = "study file") -> StudyFileError:
    """The error for a key that a file does not have, with the nearest key that it has."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1)
    remedy = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(names)}"
    return StudyFileError(f"a {kind} takes only known keys", actual=f'"{key}"', place=place, remedy=remedy)


def _from_detail(detail: ErrorDetails, model: type[BaseModel], place: str, kind: str) -> StudyFileError:
    location = _location(detail["loc"])
    fault = detail["type"]
    if fault == "extra_forbidden":
        known = _known_keys(model, detail["loc"][:-1])
        return unknown_key(location[-1], known, _place(place, location[:-1]), kind)
    if fault == "missing":
        remedy = f'add "{location[-1]}"'
        return StudyFileError(f'key "{location[-1]}" is required', place=_place(place, location[:-1]), remedy=remedy)
    if fault == "study_rule":
        context = detail["ctx"]
        below = context["key"].split(".") if context["key"] else []
        where = _place(place, [*location, *below])
        return StudyFileError(context["rule"], actual=context["actual"], place=where, remedy=context["remedy"])
    actual = repr(detail.get("input"))
    rule = "the value must be a table" if fault in ("model_type", "dict_type") else _worded(detail["msg"])
    return StudyFileError(
        rule, actual=actual if len(actual) <= 60 else actual[:57] + "...", place=_place(place, location)
    )


def _worded(message: str) -> str:
    return message.replace("Input should", "the value must").replace("String should", "the text must")


def _location(loc: Sequence[int | str]) -> list[str]:
    return [str(part) for part in loc if part not in _TAGS]


def _place(file: str, location: Sequence[str]) -> str:
    if not location:
        return file
    if location[0] in ("name", "seed"):
        return f"{file}, {location[0]}"
    key = ".".join(location[1:])
    return f"{file}, [{location[0]}] {key}".rstrip()


def _known_keys(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Keys of the table at ``loc``, found by walking the fields' types."""
    tables = [model]
    for part in map(str, loc):
        if part in _TAGS:
            tables = [table for table in tables if table.__name__ == part]
        else:
            tables = [inner for table in tables for inner in _models(table.model_fields[part].annotation)]
    fields = [(name, field) for table in tables for name, field in table.model_fields.items()]
    return [field.alias or name for name, field in fields if name != "written_paths"]


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
