"""Rules of the decoder that rank by a slice of its attention and drop: Sort & Reduce, FastV with its variants, others.

Nothing of a dropped token is left. The attention is that of the layer before the reduction, where not said otherwise.
"""

from __future__ import annotations

from typing import cast

from scheduler_search.rule.catalogue.common import HEADS, POSITIONS, PREVIOUS, QUOTA, heads_of
from scheduler_search.rule.declaration import Declaration, Parameter, QueryRows, Reads, Rule, Stages


def _rows_of_parameter(rule: Rule) -> Reads:
    return Reads(rows=cast(QueryRows, rule.parameter("query_rows")), heads=heads_of(rule))


def _last_row(rule: Rule) -> Reads:
    return Reads(rows="last", heads=heads_of(rule))


ATTENTION_RANK = Declaration(
    name="attention-rank",
    version=1,
    stages={"decoder": Stages("attention.least_attended", reads=_rows_of_parameter)},
    parameters=(
        Parameter(
            "query_rows",
            "instruction",
            "whose attention is averaged: the text after the last image, the last prompt token, or every text token",
            choices=("instruction", "last", "all"),
        ),
        HEADS,
        PREVIOUS,
        POSITIONS,
        QUOTA,
    ),
    source="seed 003, section 3.2 (Sort & Reduce)",
)

FASTV_1 = Declaration(
    name="fastv",
    version=1,
    stages={"decoder": Stages("attention.least_attended", reads=_last_row)},
    parameters=(HEADS, PREVIOUS, POSITIONS, QUOTA),
    source="FastV (seed 003, reference 5): attention of the last query row, as its published code does",
)

FASTV = Declaration(
    name="fastv",
    version=2,
    stages={"decoder": Stages("attention.least_attended", reads=_rows_of_parameter)},
    parameters=(
        Parameter(
            "query_rows",
            "last",
            "whose attention is averaged: the last prompt token alone, or every token of both kinds",
            choices=("last", "every"),
        ),
        HEADS,
        PREVIOUS,
        POSITIONS,
        QUOTA,
    ),
    source="FastV (seed 003, reference 5; seed 001, Algorithm 1)",
    follows="the published code: attention of the last token; the paper averages over all tokens (query_rows 'every')",
)

FASTV_VISION = Declaration(
    name="fastv-vision",
    version=1,
    stages={
        "decoder": Stages(
            "attention.least_attended", reads=lambda rule: Reads(rows="last-vision", heads=heads_of(rule))
        )
    },
    parameters=(HEADS, POSITIONS, QUOTA),
    source="seed 001, section 5 (FastV-VIS): attention of the last vision token that is left",
)

FASTV_REVERSE = Declaration(
    name="fastv-reverse",
    version=1,
    stages={"decoder": Stages("attention.most_attended", reads=_last_row)},
    parameters=(HEADS, POSITIONS, QUOTA),
    source="seed 001, Table 1 and Algorithm 2 (Reverse FastV)",
    follows="the text: the least attended tokens stay; Algorithm 2 as printed negates the scores twice",
)


def _windows(rule: Rule) -> Reads:
    return Reads(rows="last", heads=heads_of(rule), grids=rule.parameter("shape") == "square")


FASTV_WINDOW = Declaration(
    name="fastv-window",
    version=1,
    stages={"decoder": Stages("windows.least_attended_of_window", reads=_windows)},
    parameters=(
        Parameter(
            "window",
            6,
            "side of a window in patches; the paper names none: with 6, its budgets are whole numbers in each window",
            low=1,
        ),
        Parameter(
            "shape",
            "square",
            "square windows of the patch grid, or runs of as many tokens in order, for models whose grids are unknown",
            choices=("square", "run"),
        ),
        HEADS,
        POSITIONS,
    ),
    source="seed 001, section 4.2 and Algorithm 3 (Window FastV)",
    follows="the paper, with the promised count shared among the windows in proportion to their tokens",
)

IMPORTANCE_REDUNDANCY = Declaration(
    name="importance-redundancy",
    version=1,
    stages={
        "decoder": Stages(
            "attention.unimportant_or_alike",
            reads=lambda rule: Reads(rows="last", heads=heads_of(rule), matrix=True),
        )
    },
    parameters=(
        Parameter(
            "alpha",
            0.2,
            "share of importance, the rest is unlikeness; of 0 to 1 in the paper, 0.2 is best in the mean of Table 4",
            low=0.0,
            high=1.0,
        ),
        HEADS,
        POSITIONS,
        QUOTA,
    ),
    source="seed 001, section 6.3, equation 6 and footnote 2, Table 4",
)

PYRAMID_DROP = Declaration(
    name="pyramid-drop",
    version=1,
    stages={
        "decoder": Stages(
            "attention.least_attended",
            reads=lambda rule: Reads(rows="last", heads=heads_of(rule), own_layer=True),
        )
    },
    parameters=(HEADS, POSITIONS, QUOTA),
    source="PyramidDrop (seed 003, reference 43): attention of the last instruction token in the layer behind the drop",
    follows="the published code, whose query and keys are those of the layer behind; it renumbers positions, here kept",
)

VTW = Declaration(
    name="vtw",
    version=1,
    stages={"decoder": Stages("attention.last_in_order")},
    parameters=(POSITIONS,),
    source="VTW (seed 003, reference 26): all vision tokens leave in front of one layer",
    follows="the paper where a schedule keeps all or none; where it keeps a part, the first in order stay",
)
