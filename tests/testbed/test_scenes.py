from __future__ import annotations

import itertools
import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.errors import DataError
from scheduler_search.testbed.scenes import (
    BACKGROUND,
    CELL_PIXELS,
    LAYOUT_CLASSES,
    NOISE,
    SPLIT_CLASSES,
    draw_scene,
    layout_class,
    random_stream,
    render,
    sprite,
)
from scheduler_search.testbed.vocabulary import COLORS, GRID, SHAPES

cells = st.tuples(st.integers(0, GRID - 1), st.integers(0, GRID - 1))
things = st.tuples(st.sampled_from(tuple(COLORS)), st.sampled_from(SHAPES))
scenes = st.dictionaries(cells, things, min_size=1, max_size=9)


def test_every_class_belongs_to_exactly_one_split() -> None:
    assigned = [number for classes in SPLIT_CLASSES.values() for number in classes]
    assert sorted(assigned) == list(range(LAYOUT_CLASSES))


@settings(deadline=None)
@given(split=st.sampled_from(tuple(SPLIT_CLASSES)), seed=st.integers())
def test_a_drawn_layout_belongs_to_its_split(split: str, seed: int) -> None:
    scene = draw_scene(random_stream(split, seed), split)
    assert layout_class(scene) in SPLIT_CLASSES[split]


@settings(deadline=None)
@given(scene=scenes, stream=st.randoms(use_true_random=False))
def test_the_class_does_not_depend_on_the_order_of_the_objects(scene: dict, stream: random.Random) -> None:
    shuffled = list(scene.items())
    stream.shuffle(shuffled)
    assert layout_class(dict(shuffled)) == layout_class(scene)


def test_classes_are_about_equally_likely() -> None:
    # 4,000 layouts over 8 classes: 500 expected each, standard deviation 21; 6 of them: false alarm below 1e-7.
    stream = random_stream("uniformity")
    counts = np.bincount([layout_class(_any(stream)) for _ in range(4000)], minlength=LAYOUT_CLASSES)
    assert np.abs(counts - 500).max() < 6 * 21


def _any(stream: random.Random) -> dict:
    every = [(row, column) for row in range(GRID) for column in range(GRID)]
    return {cell: (stream.choice(tuple(COLORS)), stream.choice(SHAPES)) for cell in stream.sample(every, 5)}


def _opacities(shape: str) -> list[npt.NDArray[np.float64]]:
    """The opacity, 0 to 1, of every pixel of a cell with ``shape`` at each of its four places."""
    mask = np.asarray(sprite(shape), float) / 255
    places = itertools.product((1, 2), (1, 2))
    return [np.pad(mask, ((y, CELL_PIXELS - 13 - y), (x, CELL_PIXELS - 13 - x))) for y, x in places]


GREYS = range(BACKGROUND[0], BACKGROUND[1] + 1)
CLIPPED = max(max(color) for color in COLORS.values()) + NOISE - 255
BRIDGED = 2 * NOISE + CLIPPED
"""Two values that differ by more than this stay apart under any noise, and after clipping to at most 255."""

# Why images of different layouts differ. Suppose that two images are equal, pixel by pixel.
# 1. The rim of every cell is background, so their greys g, g' differ by at most BRIDGED.
# 2. Take a cell in which the layouts differ. If it holds objects of different colours, then either both are opaque in
#    some pixel, and colours are further apart than noise; or one is opaque where the other is transparent, and they
#    differ by |c - g| - BRIDGED or more (FAINT |c - g| less for every object that is not quite so). If it holds
#    different shapes of one colour c (or only one object), then with opacities a >= b some pixel has values
#    a c + (1 - a) g and b c + (1 - b) g', which differ by
#    |(a - b)(c - g') + (1 - a)(g - g')| >= (a - b) |c - g'| - (1 - a) BRIDGED, again more than BRIDGED.
# The four tests below check each step for every shape, place, colour and grey.


def test_the_rim_of_a_cell_is_background() -> None:
    for mask in (mask for shape in SHAPES for mask in _opacities(shape)):
        assert not mask[0].any()
        assert not mask[:, 0].any()


FAINT = 0.05
"""Opacities are transparent up to this, and opaque from 1 - this on: resampling the shapes leaves ripples."""
CONTRASTS = [max(abs(value - grey) for value in color) for color in COLORS.values() for grey in GREYS]


def test_colours_stay_apart_under_any_noise() -> None:
    ripples = 2 * FAINT * 255
    for one, other in itertools.combinations(COLORS.values(), 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) - ripples > BRIDGED
    assert min(CONTRASTS) - BRIDGED - 2 * FAINT * max(CONTRASTS) > BRIDGED


def test_shapes_of_two_colours_have_a_pixel_that_tells_them_apart() -> None:
    for one, other in itertools.combinations_with_replacement(SHAPES, 2):
        for a, b in itertools.product(_opacities(one), _opacities(other)):
            opaque = np.minimum(a, b).max() >= 1 - FAINT
            assert opaque or (np.maximum(a, b) - np.minimum(a, b)).max() >= 1 - FAINT, (one, other)


def test_shapes_of_one_colour_stay_apart_under_any_noise() -> None:
    nothing = [np.zeros((CELL_PIXELS, CELL_PIXELS))]
    for one, other in itertools.combinations((None, *SHAPES), 2):
        for a, b in itertools.product(nothing if one is None else _opacities(one), _opacities(str(other))):
            apart = np.abs(a - b) * min(CONTRASTS) - (1 - np.maximum(a, b)) * BRIDGED
            assert apart.max() > BRIDGED, (one, other)


@settings(deadline=None)
@given(scene=scenes, seed=st.integers())
def test_rendering_is_a_function_of_scene_and_stream(scene: dict, seed: int) -> None:
    first, second = (render(scene, random_stream(seed)) for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"one of train, search, validation, test, but got 'dev'"):
        draw_scene(random_stream(0), "dev")
