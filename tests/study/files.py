"""Study files for the tests: the smallest valid one, and a way to write variations of it."""

from __future__ import annotations

from pathlib import Path

from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.file import read_study_file

MINIMAL = """
name = "first"
[model]
id = "testbed:tiny-llava"
[data]
source = "testbed"
search = { samples = 8 }
"""

JSONL = """
name = "first"
[model]
id = "org/model"
[data]
source = "jsonl"
"""


def write(folder: Path, text: str, name: str = "study.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str) -> StudyDefinition:
    return read_study_file(write(folder, text))
