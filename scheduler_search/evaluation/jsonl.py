"""The JSONL data set: one ``{"image": path, "question": text, "answers": [text, ...]}`` per line; ``answers`` may be
absent where nothing is compared with them.

Knows: the format and every way a file of it can be wrong, each told with file and line. All images are read and decoded
once here, so that a broken one is an error before a study starts. Does not know: splits, models.
"""

from __future__ import annotations

import difflib
import json
import struct
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scheduler_search.errors import DataError
from scheduler_search.evaluation.samples import Sample, digest_of_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

_KEYS = ("image", "question", "answers")


def read_jsonl(path: Path, images: Path, *, labelled: bool = True) -> tuple[Sample, ...]:
    """All samples of the file, in its order; blank lines are skipped.

    Args:
        images: folder that relative image paths are relative to.
        labelled: whether every sample must have answers.

    Raises:
        DataError: the file or an image is missing or unreadable, a line is malformed, or there is no sample.
    """
    digests: dict[Path, str] = {}
    samples = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            samples.append(_sample(line, f"{path.name}, line {number}", images, digests, labelled))
    if not samples:
        raise DataError("a data set must have at least one sample", place=str(path))
    return tuple(samples)


def load_image(path: Path) -> Image:
    """The decoded image, upright (EXIF orientation applied), RGB."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        # Broken metadata of a whole picture is none of our business; a broken picture raises.
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(
            "the data file must be readable", actual=error.strerror, place=str(path), remedy="check [data] path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError("the data file must be UTF-8 text", actual=str(error), place=str(path)) from error


def _sample(line: str, place: str, folder: Path, digests: dict[Path, str], labelled: bool) -> Sample:
    record = _record(line, place)
    if labelled and "answers" not in record:
        remedy = 'add them; data without answers can be searched with [data] metric = "fidelity"'
        raise DataError("a sample must have the key 'answers'", place=place, remedy=remedy)
    image = folder / _text(record["image"], "image", place)
    if image not in digests:
        digests[image] = _image_digest(image, place)
    return Sample(
        id=place,
        question=_text(record["question"], "question", place),
        answers=_answers(record["answers"], place) if "answers" in record else (),
        image_digest=digests[image],
        load_image=partial(load_image, image),
    )


def _record(line: str, place: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError("every line must be JSON", actual=str(error), place=place) from error
    if not isinstance(record, dict):
        raise DataError("every line must be a JSON object", actual=type(record).__name__, place=place)
    for key in record:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else None
            raise DataError(f"a sample has the keys {', '.join(_KEYS)}", actual=repr(key), place=place, remedy=remedy)
    for key in ("image", "question"):
        if key not in record:
            raise DataError(f"a sample must have the key {key!r}", place=place)
    return record


def _text(value: object, key: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{key!r} must be a text that is not empty", actual=repr(value)[:80], place=place)
    return value


def _answers(value: object, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise DataError("'answers' must be a list with at least one text", actual=repr(value)[:80], place=place)
    return tuple(_text(answer, "answers", place) for answer in value)


def _image_digest(path: Path, place: str) -> str:
    """Digest of the file's bytes, after decoding the whole image once."""
    from PIL import Image, UnidentifiedImageError

    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError("every image must be there", actual=f"{path}: {error.strerror}", place=place) from error
    try:
        load_image(path)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        # What Pillow raises for broken files depends on the format: SyntaxError for PNG, struct.error for TIFF, ...
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError("every image must be readable", actual=f"{path}: {reason}", place=place) from error
    return digest_of_bytes(content)
