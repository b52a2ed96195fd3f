"""Reading a study file.

Knows: TOML, and that relative paths start from the folder of the file. Does not know: what the keys mean (``sections``)
or whether the paths exist.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scheduler_search.errors import RuleError, StudyFileError
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.faults import study_file_error, unknown_key

_PATHS = ("data.path", "data.images", "data.search.path", "data.validation.path", "data.test.path", "model.id")


def read_study_file(path: str | Path) -> StudyDefinition:
    """The definition in a TOML study file, its paths made absolute from the file's folder.

    ``[model] id`` is a path where it starts with ``.``, ``/`` or ``~``; anything else is a hub id or a testbed model.

    Raises:
        StudyFileError: missing or unreadable file, TOML syntax, unknown key, wrong type or range, conflicting keys.
    """
    place = str(path)
    tables = _parse(Path(path))
    if "written_paths" in tables:
        raise unknown_key("written_paths", set(StudyDefinition.model_fields) - {"written_paths"}, place)
    written = _make_absolute(tables, Path(path).absolute().parent)
    try:
        return StudyDefinition.model_validate({**tables, "written_paths": written})
    except (ValidationError, RuleError) as error:
        raise study_file_error(error, StudyDefinition, place) from error


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyFileError("a study file must exist", actual="no such file", place=str(path)) from error
    except OSError as error:
        raise StudyFileError("a study file must be readable", actual=error.strerror, place=str(path)) from error
    except UnicodeDecodeError as error:
        raise StudyFileError("a study file must be UTF-8 text", actual=error.reason, place=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError("a study file must be TOML", actual=str(error), place=str(path)) from error


def _make_absolute(tables: dict[str, Any], folder: Path) -> tuple[tuple[str, str], ...]:
    """Replace every path in ``tables`` by its absolute form and return what was written."""
    written = []
    for dotted in _PATHS:
        *sections, key = dotted.split(".")
        table: Any = tables
        for section in sections:
            table = table.get(section) if isinstance(table, dict) else None
        text = table.get(key) if isinstance(table, dict) else None
        if isinstance(text, str) and text and (dotted != "model.id" or text[0] in "./~"):
            written.append((dotted, text))
            table[key] = os.path.normpath(folder / Path(text).expanduser())
    return tuple(written)
