"""The eight categories of questions about a scene, each with an answer of one word.

Knows: scenes, and which questions they allow. Does not know: pixels, tokens, models.

Every category is a function (view, stream) -> (question words, answer word), or None where the scene allows no such
question. ``nav`` and ``atrel`` are the two halves of ``rel``: without them ``rel`` is not learned in minutes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from scheduler_search.testbed.scenes import Cell, Scene
from scheduler_search.testbed.vocabulary import CELLS, COLORS, DIRECTIONS, GRID, NONE, NUMBERS, SHAPES

Asked = tuple[tuple[str, ...], str]
"""(words of the question, word of the answer)."""

PROPERTIES = ("color", "shape")
_ATTEMPTS = 12
"""Places tried for a neighbour question before the scene is given up."""
_EMPTY_SHARE = 0.06
"""Chance that a neighbour question about an empty place is asked all the same."""


@dataclass(frozen=True)
class View:
    """A scene with what the categories look up in it.

    ``cells`` maps every colour and every shape that occurs to its cells, ``unique`` those that occur once to theirs.
    """

    scene: Scene
    cells: Mapping[str, tuple[Cell, ...]]
    unique: Mapping[str, Cell]


def view(scene: Scene) -> View:
    """The lookups of ``scene``."""
    cells: dict[str, tuple[Cell, ...]] = {}
    for cell, thing in scene.items():
        for word in thing:
            cells[word] = (*cells.get(word, ()), cell)
    return View(scene, cells, {word: found[0] for word, found in cells.items() if len(found) == 1})


def ask(seen: View, category: str, stream: random.Random) -> Asked | None:
    """One question of ``category``, or None where the scene allows none that was tried."""
    return _CATEGORIES[category](seen, stream)


def sample_question(seen: View, stream: random.Random, mixture: Mapping[str, float]) -> tuple[str, Asked]:
    """(category, question): the category drawn by weight, again where the scene allows none."""
    names, weights = list(mixture), list(mixture.values())
    while True:
        category = stream.choices(names, weights)[0]
        asked = ask(seen, category, stream)
        if asked is not None:
            return category, asked


def _name(cell: Cell) -> str:
    return CELLS[cell[0] * GRID + cell[1]]


def _step(cell: Cell, direction: str) -> Cell:
    row, column = DIRECTIONS[direction]
    return cell[0] + row, cell[1] + column


def _any_cell(stream: random.Random) -> Cell:
    return stream.randrange(GRID), stream.randrange(GRID)


def _property_at(seen: View, cell: Cell, which: int) -> str:
    thing = seen.scene.get(cell)
    return NONE if thing is None else thing[which]


def _referent(seen: View, stream: random.Random) -> tuple[str, Cell] | None:
    """A word that names one object only, and where that object stands."""
    return stream.choice(list(seen.unique.items())) if seen.unique else None


def _attribute(seen: View, stream: random.Random) -> Asked | None:
    """``color of circle``: the other property of the only object with a property."""
    found = _referent(seen, stream)
    if found is None:
        return None
    word, cell = found
    which = 1 if word in COLORS else 0
    return (PROPERTIES[which], "of", word), seen.scene[cell][which]


def _at(seen: View, stream: random.Random) -> Asked:
    """``shape at b3``: a property of what stands in a cell, seldom an empty one."""
    cell = stream.choice(list(seen.scene)) if stream.random() < 0.9 else _any_cell(stream)
    which = stream.randrange(2)
    return (PROPERTIES[which], "at", _name(cell)), _property_at(seen, cell, which)


def _where(seen: View, stream: random.Random) -> Asked | None:
    """``where is red``: the cell of an object."""
    found = _referent(seen, stream)
    return None if found is None else (("where", "is", found[0]), _name(found[1]))


def _count(seen: View, stream: random.Random) -> Asked | None:
    """``how many red``: from zero to three, each number about as often."""
    wanted = stream.randrange(4)
    for number in (wanted, *stream.sample(range(4), 4)):
        words = [word for word in (*COLORS, *SHAPES) if len(seen.cells.get(word, ())) == number]
        if words:
            return ("how", "many", stream.choice(words)), NUMBERS[number]
    return None


def _relation(seen: View, stream: random.Random) -> Asked | None:
    """``color left of circle``: a property of the neighbour of an object."""
    for _ in range(_ATTEMPTS):
        found = _referent(seen, stream)
        if found is None:
            return None
        asked = _beside(seen, stream, *found)
        if asked is not None:
            return asked
    return None


def _cell_relation(seen: View, stream: random.Random) -> Asked | None:
    """``color left of b3``: a property of the neighbour of a cell."""
    for _ in range(_ATTEMPTS):
        cell = _any_cell(stream)
        asked = _beside(seen, stream, _name(cell), cell)
        if asked is not None:
            return asked
    return None


def _beside(seen: View, stream: random.Random, word: str, cell: Cell) -> Asked | None:
    direction = stream.choice(list(DIRECTIONS))
    neighbour = _step(cell, direction)
    if neighbour not in seen.scene and stream.random() >= _EMPTY_SHARE:
        return None
    which = stream.randrange(2)
    return (PROPERTIES[which], direction, "of", word), _property_at(seen, neighbour, which)


def _navigate(seen: View, stream: random.Random) -> Asked:
    """``where left of red``: the cell beside an object, or beside a cell (which needs no image)."""
    found = _referent(seen, stream) if stream.random() < 0.7 else None
    if found is None:
        cell = _any_cell(stream)
        found = _name(cell), cell
    direction = stream.choice(list(DIRECTIONS))
    row, column = _step(found[1], direction)
    inside = 0 <= row < GRID and 0 <= column < GRID
    return ("where", direction, "of", found[0]), (_name((row, column)) if inside else NONE)


def _same(seen: View, stream: random.Random) -> Asked | None:
    """``shape same color as circle``: the only other object that shares a property with a named one."""
    shared = stream.randrange(2)
    candidates = []
    for word, cell in seen.unique.items():
        partners = seen.cells[seen.scene[cell][shared]]
        if seen.scene[cell][1 - shared] == word and len(partners) == 2:
            candidates.append((word, partners[0] if partners[1] == cell else partners[1]))
    if not candidates:
        return None
    word, other = stream.choice(candidates)
    return (PROPERTIES[1 - shared], "same", PROPERTIES[shared], "as", word), seen.scene[other][1 - shared]


_CATEGORIES: Mapping[str, Callable[[View, random.Random], Asked | None]] = MappingProxyType(
    {
        "attr": _attribute,
        "at": _at,
        "where": _where,
        "nav": _navigate,
        "atrel": _cell_relation,
        "count": _count,
        "rel": _relation,
        "same": _same,
    }
)

CATEGORIES = tuple(_CATEGORIES)
MIXTURE: Mapping[str, float] = MappingProxyType(
    {"attr": 1.0, "at": 1.0, "where": 1.0, "nav": 1.2, "atrel": 1.2, "count": 1.2, "rel": 2.4, "same": 1.5}
)
"""Weights of the categories in every split."""
