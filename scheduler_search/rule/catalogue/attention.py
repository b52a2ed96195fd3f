"""Rules of the decoder that rank by a slice of its attention and drop: Sort & Reduce and FastV with its variants."""

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
