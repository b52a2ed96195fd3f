import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scheduler_search.errors import DataError
from scheduler_search.evaluation.jsonl import load_image, read_jsonl
from tests.evaluation.conftest import write_image, write_jsonl

GOOD = {"image": "0.png", "question": "where is red", "answers": ["b3", "b4"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "0.png", 0)
    return tmp_path


def read(folder: Path, *lines: Any) -> Any:
    path = folder / "vqa.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_jsonl(path, folder)


def test_reads_samples_in_order_and_skips_blank_lines(folder: Path) -> None:
    samples = read(folder, GOOD, "", {**GOOD, "question": "color of circle"})
    assert [(sample.id, sample.question) for sample in samples] == [
        ("vqa.jsonl, line 1", "where is red"),
        ("vqa.jsonl, line 3", "color of circle"),
    ]
    assert samples[0].answers == ("b3", "b4")
    assert samples[0].load_image().size == (64, 64)


def test_an_image_is_known_by_its_content_not_its_name(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    write_image(folder / "other.png", 1)
    first, copy, other = read(folder, GOOD, {**GOOD, "image": "copy.png"}, {**GOOD, "image": "other.png"})
    assert first.image_digest == copy.image_digest != other.image_digest


def test_a_rotated_photograph_is_turned_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("L", (40, 20)).save(folder / "side.jpg", exif=exif)
    image = load_image(folder / "side.jpg")
    assert (image.size, image.mode) == ((20, 40), "RGB")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "must be JSON"),
        ("[1]", "must be a JSON object, but got list"),
        ({"image": "0.png", "question": "q"}, "must have the key 'answers'"),
        ({**GOOD, "anwsers": ["x"]}, "did you mean 'answers'"),
        ({**GOOD, "question": 3}, "'question' must be a text"),
        ({**GOOD, "question": " "}, "'question' must be a text that is not empty"),
        ({**GOOD, "answers": "b3"}, "'answers' must be a list"),
        ({**GOOD, "answers": []}, "with at least one text"),
        ({**GOOD, "answers": ["b3", 4]}, "'answers' must be a text"),
        ({**GOOD, "answers": [""]}, "'answers' must be a text that is not empty"),
        ({**GOOD, "image": "gone.png"}, "every image must be there"),
        ({**GOOD, "image": "."}, "every image must be there"),
    ],
)
def test_a_broken_line_is_told_with_its_number(folder: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(folder, GOOD, line)
    assert "vqa.jsonl, line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 200, 4000])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff", "webp"])
def test_a_truncated_image_is_told_with_its_line(folder: Path, suffix: str, keep: int) -> None:
    whole = write_image(folder / f"whole.{suffix}", 2).read_bytes()
    assert len(whole) > 4100 or suffix in {"jpg", "webp"}
    (folder / f"cut.{suffix}").write_bytes(whole[: min(keep, len(whole) // 2)])
    with pytest.raises(DataError, match=r"every image must be readable.*vqa.jsonl, line 1"):
        read(folder, {**GOOD, "image": f"cut.{suffix}"})


def test_a_text_file_is_no_image(folder: Path) -> None:
    (folder / "text.png").write_text("no image")
    with pytest.raises(DataError, match="not an image"):
        read(folder, {**GOOD, "image": "text.png"})


def test_an_empty_data_set_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="at least one sample"):
        read(folder, "", " ")


def test_a_missing_data_file_is_told_with_its_path(folder: Path) -> None:
    with pytest.raises(DataError, match=r"gone.jsonl.*check \[data\] path"):
        read_jsonl(folder / "gone.jsonl", folder)


def test_a_data_file_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="must be UTF-8 text"):
        read_jsonl(folder / "binary.jsonl", folder)


def test_relative_images_start_at_the_given_folder(folder: Path) -> None:
    write_image(folder / "pictures/1.png", 1)
    path = write_jsonl(folder / "vqa.jsonl", [{**GOOD, "image": "1.png"}])
    assert read_jsonl(path, folder / "pictures")[0].load_image().size == (64, 64)
