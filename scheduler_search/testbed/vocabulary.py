"""The closed vocabulary of the testbed: every word that a question or an answer can hold, and its token id.

Knows: words and ids. Does not know: tokenizers, scenes, or what a question asks.
"""

from __future__ import annotations

from types import MappingProxyType

COLORS = MappingProxyType(
    {
        "red": (220, 40, 40),
        "green": (40, 180, 60),
        "blue": (50, 80, 230),
        "yellow": (235, 215, 40),
        "purple": (160, 50, 190),
        "cyan": (50, 200, 215),
        "white": (245, 245, 245),
        "black": (15, 15, 15),
    }
)
"""The colours of the objects as RGB, 0 to 255."""

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring", "bar", "ell")
GRID = 4
"""Cells per side of a scene."""

CELLS = tuple(row + column for row in "abcd" for column in "1234")
"""Names of the cells, row by row: the name of (row, column) is ``CELLS[row * GRID + column]``."""

DIRECTIONS = MappingProxyType({"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)})
"""What to add to (row, column) to go that way."""

NUMBERS = ("zero", "one", "two", "three")
NONE = "none"

PAD, UNKNOWN, BOS, EOS, IMAGE = "<pad>", "<unk>", "<s>", "</s>", "<image>"
SPECIAL = (PAD, UNKNOWN, BOS, EOS, IMAGE)
QUESTION_WORDS = ("color", "shape", "at", "of", "how", "many", "is", "same", "as", "where")

WORD_IDS = MappingProxyType(
    {
        word: index
        for index, word in enumerate((*SPECIAL, *QUESTION_WORDS, NONE, *COLORS, *SHAPES, *CELLS, *DIRECTIONS, *NUMBERS))
    }
)
"""Token id of every word; ids are dense from 0."""
