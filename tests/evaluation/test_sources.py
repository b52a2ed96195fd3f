from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from scheduler_search.errors import DataError
from scheduler_search.evaluation.samples import split_digest
from scheduler_search.evaluation.sources import read_splits
from scheduler_search.study.definition import StudyDefinition
from tests.evaluation.conftest import write_image, write_jsonl

Make = Callable[..., StudyDefinition]


def records(first: int, count: int) -> list[dict[str, object]]:
    return [
        {"image": f"{index}.png", "question": "where is red", "answers": ["b3"]}
        for index in range(first, first + count)
    ]


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[Path, Path]:
    for index in range(8):
        write_image(tmp_path / f"{index}.png", index)
    return write_jsonl(tmp_path / "a.jsonl", records(0, 4)), write_jsonl(tmp_path / "b.jsonl", records(4, 4))


def test_only_the_splits_of_the_study_are_read(definition: Make) -> None:
    splits = read_splits(definition())
    assert {name: len(samples) for name, samples in splits.items()} == {"search": 7, "validation": 4}


def test_splits_with_their_own_files(definition: Make, two_files: tuple[Path, Path]) -> None:
    first, second = two_files
    study = definition(
        data={"path": str(first), "search": {"samples": 3}, "validation": {"samples": 4, "path": str(second)}}
    )
    splits = read_splits(study)
    assert {sample.id.split(",")[0] for sample in splits["search"]} == {"a.jsonl"}
    assert {sample.id.split(",")[0] for sample in splits["validation"]} == {"b.jsonl"}


def test_files_that_share_an_image_are_refused(definition: Make, two_files: tuple[Path, Path]) -> None:
    first, _ = two_files
    second = first.with_name("c.jsonl")
    write_jsonl(second, records(3, 4))
    study = definition(
        data={"path": str(first), "search": {"samples": 4}, "validation": {"samples": 4, "path": str(second)}}
    )
    with pytest.raises(DataError, match=r"search and validation must not share images.*a.jsonl, line 4 and c.jsonl"):
        read_splits(study)


def test_relative_paths_start_at_the_working_folder(
    definition: Make, two_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = two_files
    monkeypatch.chdir(first.parent)
    study = definition(data={"path": "a.jsonl", "search": {"samples": 2}, "validation": {"samples": 1}})
    assert len(read_splits(study)["search"]) == 2


def test_images_can_lie_in_another_folder(definition: Make, two_files: tuple[Path, Path], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "a.jsonl"
    moved.parent.mkdir()
    two_files[0].rename(moved)
    study = definition(
        data={"path": str(moved), "images": str(tmp_path), "search": {"samples": 2}, "validation": {"samples": 1}}
    )
    assert len(read_splits(study)["search"]) == 2


def test_the_testbed_gives_the_same_samples_again(definition: Make) -> None:
    data = {"source": "testbed", "path": None, "search": {"samples": 20}, "validation": {"samples": 5}}
    first, second = (read_splits(definition(data=data)) for _ in range(2))
    assert split_digest(first["search"]) == split_digest(second["search"])
    other = read_splits(definition(data=data, seed=1))
    assert split_digest(first["search"]) != split_digest(other["search"])
    image = numpy.asarray(first["search"][0].load_image())
    assert (image.shape, str(image.dtype)) == ((64, 64, 3), "uint8")
