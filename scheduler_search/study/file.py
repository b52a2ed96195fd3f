"""Reading a study file, and what reading a campaign file shares with it.

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

_IDS = ("model.id", "model.text_encoder")
PATHS = ("data.path", "data.images", "data.search.path", "data.validation.path", "data.test.path", *_IDS)


def read_study_file(path: str | Path) -> StudyDefinition:
    """The definition in a TOML study file, its paths made absolute from the file's folder.

    ``[model] id`` is a path where it starts with ``.``, ``/`` or ``~``; anything else is a hub id or a testbed model.
    So is ``text_encoder``.

    Raises:
        StudyFileError: missing or unreadable file, TOML syntax, unknown key, wrong type or range, conflicting keys.
    """
    place = str(path)
    tables = parse_tables(Path(path), "study file")
    if "written_paths" in tables:
        raise unknown_key("written_paths", set(StudyDefinition.model_fields) - {"written_paths"}, place)
    return definition_of(tables, Path(path).absolute().parent, place)


def definition_of(tables: dict[str, Any], folder: Path, place: str) -> StudyDefinition:
    """The definition in the tables of a study file that lies in ``folder``; paths in ``tables`` become absolute.

    Raises:
        StudyFileError: unknown key, wrong type or range, conflicting keys.
    """
    written = _make_absolute(tables, folder)
    try:
        return StudyDefinition.model_validate({**tables, "written_paths": written})
    except (ValidationError, RuleError) as error:
        raise study_file_error(error, StudyDefinition, place) from error


def parse_tables(path: Path, kind: str) -> dict[str, Any]:
    """The tables of a TOML file; ``kind`` names it in a StudyFileError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyFileError(f"a {kind} must exist", actual="no such file", place=str(path)) from error
    except OSError as error:
        raise StudyFileError(f"a {kind} must be readable", actual=error.strerror, place=str(path)) from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"a {kind} must be UTF-8 text", actual=error.reason, place=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"a {kind} must be TOML", actual=str(error), place=str(path)) from error


def _make_absolute(tables: dict[str, Any], folder: Path) -> tuple[tuple[str, str], ...]:
    """Replace every path in ``tables`` by its absolute form and return what was written."""
    written = []
    for dotted in PATHS:
        *sections, key = dotted.split(".")
        table: Any = tables
        for section in sections:
            table = table.get(section) if isinstance(table, dict) else None
        text = table.get(key) if isinstance(table, dict) else None
        if isinstance(text, str) and text and (dotted not in _IDS or text[0] in "./~"):
            written.append((dotted, text))
            table[key] = os.path.normpath(folder / Path(text).expanduser())
    return tuple(written)
