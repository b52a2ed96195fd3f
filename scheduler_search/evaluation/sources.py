"""From a study definition to its splits: the data sources by name.

Knows: the sources ``jsonl`` and ``testbed``, and which splits of a study are dealt from one file. Does not know: how a
split is permuted (``splits``), models, prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from scheduler_search.errors import DataError
from scheduler_search.evaluation.jsonl import read_jsonl
from scheduler_search.evaluation.measures import measure_of
from scheduler_search.evaluation.samples import Sample, digest_of_bytes
from scheduler_search.evaluation.splits import check_disjoint, deal, permuted
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.study.values import SplitName

if TYPE_CHECKING:
    from PIL.Image import Image

    from scheduler_search.study.definition import StudyDefinition
    from scheduler_search.testbed import Question

SPLITS: tuple[SplitName, ...] = ("search", "validation", "test")
Splits = dict[SplitName, tuple[Sample, ...]]


def read_splits(definition: StudyDefinition) -> Splits:
    """Every split of the study, permuted by its seed; splits that the study does not have are not in it.

    Raises:
        DataError: unknown source, or anything that is wrong with the data.
    """
    source = _SOURCES.get(definition.data.source)
    if source is None:
        known = ", ".join(sorted(_SOURCES))
        raise DataError(
            "a data source must be a known one", actual=repr(definition.data.source), remedy=f"known sources: {known}"
        )
    splits = source(definition)
    check_disjoint(splits)
    return splits


def _sizes(definition: StudyDefinition) -> dict[SplitName, int]:
    return {name: definition.data.splits[name].samples for name in SPLITS if name in definition.data.splits}


def _jsonl_splits(definition: StudyDefinition) -> Splits:
    """Splits with a file of their own are read from it; the others are dealt from ``[data] path``."""
    data, sizes = definition.data, _sizes(definition)
    own = {name for name in sizes if data.splits[name].path is not None}
    pooled = [name for name in sizes if name not in own]
    splits: Splits = {}
    for names in ([pooled] if pooled else []) + [[name] for name in sizes if name in own]:
        path, folder = data.split_path(names[0]), data.image_folder(names[0])
        if path is None or folder is None:
            raise DataError(f"the data of {names[0]} must have a file", remedy="set [data] path")
        samples = read_jsonl(Path(path), Path(folder), labelled=_needs_answers(definition, names))
        splits |= deal(samples, {name: sizes[name] for name in names}, definition.seed, str(path))
    return {name: splits[name] for name in sizes}


def _needs_answers(definition: StudyDefinition, names: Sequence[SplitName]) -> bool:
    """Whether the value of some sample of these splits depends on answers."""
    return any(measure_of(definition, name).needs_answers for name in names)


def _testbed_splits(definition: StudyDefinition) -> Splits:
    from scheduler_search.testbed import generate

    return {
        name: permuted(
            [_testbed_sample(question) for question in generate(name, size, definition.seed)], definition.seed
        )
        for name, size in _sizes(definition).items()
    }


def _testbed_sample(question: Question) -> Sample:
    pixels = numpy.asarray(question.image, dtype=numpy.uint8)
    return Sample(
        id=f"testbed image {question.image_id}",
        question=question.question,
        answers=(question.answer,),
        image_digest=digest_of([digest_of_bytes(pixels.tobytes()), list(pixels.shape)]),
        load_image=partial(_image, pixels),
    )


def _image(pixels: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.uint8]]) -> Image:
    from PIL.Image import fromarray

    return fromarray(pixels)


_SOURCES: Mapping[str, Callable[[StudyDefinition], Splits]] = {"jsonl": _jsonl_splits, "testbed": _testbed_splits}
