"""A campaign file: many studies that differ in a few keys, written once.

Knows: its keys, how a matrix of values becomes studies, and how these are named. Does not know: what a study does with
a value (``definition``), the study database, or who runs the studies.

The name of a study follows from the campaign's name and the study's own values alone, so that it stays the same when
values are added to the matrix.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from scheduler_search.errors import StudyFileError
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.faults import study_file_error, unknown_key
from scheduler_search.study.file import PATHS, definition_of, parse_tables
from scheduler_search.study.section import Positive, Section

KIND = "campaign file"
MOST_STUDIES = 10_000

_UNNAMED = re.compile(r"[^a-z0-9._-]+")
_TOO_LONG = 100

Label = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,60}$")]


class CampaignSection(Section):
    """How the studies of a campaign are run.

    Args:
        max_concurrent: studies that are run at once, at most; None for as many as the cluster holds.
        workers: of each study; 1 runs the model in the study's own process.
        attempts: times that a study is taken up before it stays failed.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,59}$")]
    max_concurrent: Positive | None = None
    workers: Positive = 1
    attempts: Positive = 3


class CampaignFile(Section):
    """The tables of a campaign file, before they become studies.

    Args:
        study: the sections of a study file, as far as all studies have them in common.
        matrix: each entry is a table of keys to lists of values, and gives one study per combination. A value that is
            no list holds for all studies of its entry, and stays out of their names.
        exclude: combinations that are left out: those that have all values of an entry.
        labels: what stands for a text value in the names of studies.
    """

    campaign: CampaignSection
    study: Annotated[dict[str, Any], Field(default_factory=dict)]
    matrix: Annotated[list[dict[str, Any]], Field(min_length=1)]
    exclude: Annotated[list[dict[str, Any]], Field(default_factory=list)]
    labels: Annotated[dict[str, Label], Field(default_factory=dict)]


@dataclass(frozen=True)
class Campaign:
    """A campaign with its studies, in the order of the file."""

    section: CampaignSection
    studies: tuple[StudyDefinition, ...]

    @property
    def name(self) -> str:
        """Of the campaign; the names of its studies begin with it."""
        return self.section.name


@dataclass(frozen=True)
class _Axis:
    """A dotted key with the values that it takes, and whether they are part of a study's name."""

    key: str
    values: tuple[Any, ...]
    named: bool


@dataclass(frozen=True)
class _Point:
    """One combination: dotted keys to values, in the order in which they were written."""

    values: tuple[tuple[str, Any], ...]
    named: frozenset[str]


def read_campaign_file(path: str | Path) -> Campaign:
    """The campaign in a TOML file, with paths made absolute from the file's folder as in a study file.

    Raises:
        StudyFileError: missing or unreadable file, TOML syntax, unknown key, wrong type or range, a matrix that gives
            no study, two of one name, or one that is not valid.
    """
    place = str(path)
    tables = parse_tables(Path(path), KIND)
    try:
        file = CampaignFile.model_validate(tables)
    except ValidationError as error:
        raise study_file_error(error, CampaignFile, place, KIND) from error
    _refuse_derived(file.study, place)
    matrices = [_axes(entry, f"{place}, [[matrix]] {number}") for number, entry in enumerate(file.matrix, start=1)]
    points = _included(_points(matrices, place), file.exclude, matrices, place)
    _refuse_unused_labels(file.labels, points, place)
    names = _names(file, points, place)
    folder = Path(path).absolute().parent
    studies = [_study(file, name, point, folder, place) for name, point in zip(names, points, strict=True)]
    return Campaign(file.campaign, tuple(studies))


def _refuse_derived(study: Mapping[str, Any], place: str) -> None:
    """``[study]`` holds what is common, and what a campaign says itself is no part of it."""
    known = set(StudyDefinition.model_fields) - {"written_paths", "name"}
    for key in study:
        if key == "name":
            remedy = "remove the key: the names of studies follow from the campaign's name and their values"
            raise StudyFileError("[study] is common to all studies", actual='"name"', place=place, remedy=remedy)
        if key not in known:
            raise unknown_key(key, known, f"{place}, [study]", KIND)


def _axes(entry: Mapping[str, Any], place: str) -> tuple[_Axis, ...]:
    """The keys of one entry of the matrix; ``search.budget = [...]`` and ``"search.budget" = [...]`` are the same."""
    axes = []
    for key, values in _leaves(entry):
        _check_key(key, place)
        if values == []:
            rule = "a key of the matrix has a value, or a list of values"
            raise StudyFileError(rule, actual="an empty list", place=f"{place}, {key}")
        named = isinstance(values, list)
        axes.append(_Axis(key, tuple(values) if named else (values,), named))
    if not axes:
        raise StudyFileError("an entry of the matrix has at least one key", place=place)
    _refuse_overlaps([axis.key for axis in axes], place)
    return tuple(axes)


def _leaves(tables: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _check_key(key: str, place: str) -> None:
    known = set(StudyDefinition.model_fields) - {"written_paths", "name"}
    first, *below = key.split(".")
    if first not in known:
        raise unknown_key(first, known, place, KIND)
    if "" in below:
        raise StudyFileError("a dotted key names a section and a key", actual=f'"{key}"', place=place)


def _refuse_overlaps(keys: Sequence[str], place: str) -> None:
    for first, second in itertools.combinations(sorted(keys), 2):
        if _covers(first, second):
            remedy = "give them in two entries of [[matrix]]"
            actual = f'"{first}" and "{second}"'
            raise StudyFileError("keys of the matrix must not overlap", actual=actual, place=place, remedy=remedy)


def _covers(key: str, other: str) -> bool:
    """Whether the value at ``key`` holds the one at ``other``, or is it."""
    return other == key or other.startswith(f"{key}.")


def _points(matrices: Sequence[Sequence[_Axis]], place: str) -> list[_Point]:
    total = sum(math.prod(len(axis.values) for axis in axes) for axes in matrices)
    if total > MOST_STUDIES:
        raise StudyFileError(
            f"a campaign has at most {MOST_STUDIES} studies", actual=total, place=f"{place}, [[matrix]]"
        )
    return [
        _Point(
            tuple(zip((axis.key for axis in axes), values, strict=True)),
            frozenset(axis.key for axis in axes if axis.named),
        )
        for axes in matrices
        for values in itertools.product(*(axis.values for axis in axes))
    ]


def _included(
    points: Sequence[_Point], exclude: Sequence[Mapping[str, Any]], matrices: Sequence[Sequence[_Axis]], place: str
) -> list[_Point]:
    """The points that no entry of ``[[exclude]]`` names; each entry must name some."""
    keys = [axis.key for axes in matrices for axis in axes]
    left = list(points)
    for number, entry in enumerate(exclude, start=1):
        where = f"{place}, [[exclude]] {number}"
        wanted = list(_leaves(entry))
        _check_exclude(wanted, keys, where)
        if not any(_has(point, wanted) for point in points):
            remedy = "no combination of the matrix has these values"
            raise StudyFileError("an entry of [[exclude]] leaves something out", place=where, remedy=remedy)
        left = [point for point in left if not _has(point, wanted)]
    if not left:
        raise StudyFileError("a campaign has at least one study", actual="none", place=f"{place}, [[exclude]]")
    return left


def _check_exclude(wanted: Sequence[tuple[str, Any]], keys: Sequence[str], place: str) -> None:
    if not wanted:
        raise StudyFileError("an entry of [[exclude]] has at least one key", place=place)
    for key, _ in wanted:
        if not any(_covers(axis, key) for axis in keys):
            raise StudyFileError(
                "[[exclude]] takes only keys of the matrix",
                actual=f'"{key}"',
                place=place,
                remedy=f"keys of the matrix: {', '.join(sorted(set(keys)))}",
            )


def _has(point: _Point, wanted: Sequence[tuple[str, Any]]) -> bool:
    """Whether a point has one of the values that each key of an entry names."""
    tables: dict[str, Any] = {}
    for key, value in point.values:
        _put(tables, key, value)
    found = [(_value(tables, key), values if isinstance(values, list) else [values]) for key, values in wanted]
    return all(any(_same(value, one) for one in values) for value, values in found)


def _value(tables: Any, key: str) -> Any:
    for part in key.split("."):
        tables = tables.get(part) if isinstance(tables, Mapping) else None
    return tables


def _same(first: Any, second: Any) -> bool:
    """Equal, where ``true`` is not 1."""
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


def _put(tables: dict[str, Any], key: str, value: Any) -> bool:
    """Set a dotted key, or say that something in the way is no table."""
    *sections, last = key.split(".")
    inner: Any = tables
    for section in sections:
        inner = inner.setdefault(section, {})
        if not isinstance(inner, dict):
            return False
    inner[last] = copy.deepcopy(value)
    return True


def _refuse_unused_labels(labels: Mapping[str, str], points: Sequence[_Point], place: str) -> None:
    used = {value for point in points for _, value in point.values if isinstance(value, str)}
    for text in labels:
        if text not in used:
            raise StudyFileError(
                "[labels] takes only text values of the matrix", actual=f'"{text}"', place=f"{place}, [labels]"
            )


def _names(file: CampaignFile, points: Sequence[_Point], place: str) -> list[str]:
    """A name for each point; StudyFileError where two are the same."""
    names: dict[str, _Point] = {}
    for point in points:
        labels = [_label(key, value, file.labels, place) for key, value in point.values if key in point.named]
        name = "-".join([file.campaign.name, *labels])
        if len(name) > _TOO_LONG:
            remedy = "shorten the campaign's name, or give long values a name in [labels]"
            raise StudyFileError(
                f"the name of a study has at most {_TOO_LONG} letters", actual=name, place=place, remedy=remedy
            )
        if name in names:
            remedy = "remove the value that is there twice, or give one of two that are alike a name in [labels]"
            raise StudyFileError(
                "each study of a campaign has a name of its own", actual=f'"{name}" twice', place=place, remedy=remedy
            )
        names[name] = point
    return list(names)


def _label(key: str, value: Any, labels: Mapping[str, str], place: str) -> str:
    """What stands for a value in a name: texts for themselves, numbers and tables behind their key."""
    if isinstance(value, str):
        text = labels.get(value) or _slug(value, is_path=key in PATHS)
        if not text:
            remedy = "give it a name in [labels]"
            raise StudyFileError(
                "a value must leave something for a name", actual=repr(value), place=place, remedy=remedy
            )
        return text
    return "-".join([_slug(key.rsplit(".", 1)[-1]), *_words(value)])


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield _slug(str(key))
            yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)
    else:
        yield _slug(str(value).lower())


def _slug(text: str, *, is_path: bool = False) -> str:
    """A text in the letters of a name: of a model or a file its last part."""
    if is_path:
        text = re.split(r"[/:]", text.rstrip("/:"))[-1]
    return _UNNAMED.sub("-", text.lower()).strip("-")


def _study(file: CampaignFile, name: str, point: _Point, folder: Path, place: str) -> StudyDefinition:
    tables = copy.deepcopy(file.study)
    where = f"{place}, study {name}"
    for key, value in point.values:
        if not _put(tables, key, value):
            raise StudyFileError("a section must be a table", place=f"{place}, [study]", actual=f'the one of "{key}"')
    _put_workers(tables, file.campaign.workers, where)
    return definition_of({**tables, "name": name}, folder, where)


def _put_workers(tables: dict[str, Any], workers: int, place: str) -> None:
    """The campaign says how many workers a study has, and so who runs it."""
    section = tables.get("workers", {})
    for key in ("executor", "count"):
        if isinstance(section, Mapping) and key in section:
            remedy = "use workers = ... in [campaign]"
            raise StudyFileError(
                "a campaign says who runs its studies", actual=f'"{key}"', place=f"{place}, [workers]", remedy=remedy
            )
    if workers > 1 and isinstance(section, Mapping):
        tables["workers"] = {**section, "executor": "ray", "count": workers}
