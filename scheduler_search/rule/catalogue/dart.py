"""DART: tokens that duplicate a few pivots are dropped."""

from __future__ import annotations

from scheduler_search.rule.catalogue.common import POSITIONS, PREVIOUS, QUOTA
from scheduler_search.rule.declaration import Declaration, Parameter, Reads, Stages

DART = Declaration(
    name="dart",
    version=1,
    stages={"decoder": Stages("dart.duplicates", reads=lambda _rule: Reads(keys=True))},
    parameters=(
        Parameter("image_pivots", 4, "vision tokens with the largest keys that are pivots, and kept", low=1),
        Parameter("text_pivots", 4, "instruction tokens with the largest keys that are pivots", low=0),
        PREVIOUS,
        POSITIONS,
        QUOTA,
    ),
    source="DART (arXiv 2502.11494, EMNLP 2025): pivots by the norm of their keys, least cosine to them is kept",
    follows=(
        "the published form as others describe and port it: keys of the layer before, but by their Euclidean norm;"
        " the L1 norm of the code, of keys with their rotary embedding, changes with the padding of a batch."
        " Cosines are of hidden states; every pivot chooses an equal share in turn. Counts are exact: what does not"
        " divide goes to the first pivots. Text pivots are of the text after the last image."
    ),
)
