"""Scenes of coloured shapes on a 4 x 4 grid: drawing one for a split, and rendering it to pixels.

Knows: layouts, the split that a layout belongs to, and pixels. Does not know: questions, tokens, models.

A layout (which object stands in which cell) belongs to exactly one split, whatever the seeds: its SHA-256 picks one of
eight classes and every class is given to one split. Two different layouts never render to the same pixels, because in
some cell they differ by more than the noise can bridge. So an image of one split cannot occur in another one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from scheduler_search.errors import DataError
from scheduler_search.testbed.vocabulary import CELLS, COLORS, GRID, SHAPES

Cell = tuple[int, int]
"""(row, column), from 0."""
Thing = tuple[str, str]
"""(colour, shape)."""
Scene = Mapping[Cell, Thing]

CELL_PIXELS = 16
IMAGE_PIXELS = GRID * CELL_PIXELS
OBJECTS = (5, 9)
"""Fewest and most objects of a scene that is asked about."""

NOISE = 12
"""Every channel of every pixel is moved by a whole number in [-NOISE, NOISE]."""
BACKGROUND = (90, 150)
"""Darkest and lightest grey of the background."""

LAYOUT_CLASSES = 8
SPLIT_CLASSES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"train": (0, 1, 2, 3, 4), "search": (5,), "validation": (6,), "test": (7,)}
)

_SPRITE_PIXELS = 13
_OVERSAMPLING = 8


def random_stream(*key: object) -> random.Random:
    """A stream that depends on ``key`` alone: not on the process, the order of calls or Python's hash seed."""
    text = "/".join(str(part) for part in key)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def split_classes(split: str) -> tuple[int, ...]:
    """The layout classes of ``split``. Raises DataError for an unknown split."""
    if split not in SPLIT_CLASSES:
        raise DataError(
            f"A split of the testbed must be one of {', '.join(SPLIT_CLASSES)}", actual=repr(split), place="testbed"
        )
    return SPLIT_CLASSES[split]


def layout_class(scene: Scene) -> int:
    """The class, 0 to 7, that the layout falls into; independent of the order of the mapping."""
    text = ",".join(f"{CELLS[r * GRID + c]}:{color}:{shape}" for (r, c), (color, shape) in sorted(scene.items()))
    return hashlib.sha256(text.encode()).digest()[0] % LAYOUT_CLASSES


def draw_scene(stream: random.Random, split: str, objects: tuple[int, int] = OBJECTS) -> Scene:
    """A scene of ``objects[0]`` to ``objects[1]`` objects whose layout belongs to ``split``."""
    classes = split_classes(split)
    while True:
        scene = _any_scene(stream, objects)
        if layout_class(scene) in classes:
            return scene


def _any_scene(stream: random.Random, objects: tuple[int, int]) -> Scene:
    count = stream.randint(*objects)
    cells = stream.sample([(row, column) for row in range(GRID) for column in range(GRID)], count)
    return {cell: (stream.choice(tuple(COLORS)), stream.choice(SHAPES)) for cell in cells}


def render(scene: Scene, stream: random.Random) -> npt.NDArray[np.uint8]:
    """Pixels [64, 64, 3]: a grey background, every object shifted by 0 or 1 pixel each way, and noise."""
    grey = stream.randint(*BACKGROUND)
    image = Image.new("RGB", (IMAGE_PIXELS, IMAGE_PIXELS), (grey, grey, grey))
    for (row, column), (color, shape) in scene.items():
        x = column * CELL_PIXELS + 1 + stream.randint(0, 1)
        y = row * CELL_PIXELS + 1 + stream.randint(0, 1)
        image.paste(COLORS[color], (x, y), sprite(shape))
    # RandomState, because NumPy promises that its streams never change.
    noise = np.random.RandomState(stream.getrandbits(31)).randint(
        -NOISE, NOISE + 1, (IMAGE_PIXELS, IMAGE_PIXELS, 3), dtype=np.int16
    )
    pixels: npt.NDArray[np.uint8] = np.clip(np.asarray(image, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    return pixels


@cache
def sprite(shape: str) -> Image.Image:
    """The anti-aliased mask of a shape, 13 x 13 pixels, 0 (nothing) to 255 (the object)."""
    side = _SPRITE_PIXELS * _OVERSAMPLING
    large = Image.new("L", (side, side), 0)
    _draw_shape(ImageDraw.Draw(large), shape, side - 1)
    return large.resize((_SPRITE_PIXELS, _SPRITE_PIXELS), Image.Resampling.LANCZOS)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, end: int) -> None:
    """Draw ``shape`` into the square from (0, 0) to (end, end)."""
    middle = end // 2
    match shape:
        case "circle":
            draw.ellipse((0, 0, end, end), fill=255)
        case "square":
            draw.rectangle((6, 6, end - 6, end - 6), fill=255)
        case "triangle":
            draw.polygon([(middle, 0), (end, end), (0, end)], fill=255)
        case "cross":
            draw.rectangle((middle - 14, 0, middle + 14, end), fill=255)
            draw.rectangle((0, middle - 14, end, middle + 14), fill=255)
        case "diamond":
            draw.polygon([(middle, 0), (end, middle), (middle, end), (0, middle)], fill=255)
        case "ring":
            draw.ellipse((0, 0, end, end), fill=255)
            draw.ellipse((26, 26, end - 26, end - 26), fill=0)
        case "bar":
            draw.rectangle((0, middle - 18, end, middle + 18), fill=255)
        case "ell":
            draw.rectangle((0, 0, 30, end), fill=255)
            draw.rectangle((0, end - 30, end, end), fill=255)
        case _:
            raise DataError("A shape must be one of the vocabulary", actual=repr(shape), place="testbed")
