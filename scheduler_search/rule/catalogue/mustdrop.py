"""MustDrop: spatial merging in the tower, the key set at the entry, dual-attention filtering in the decoder."""

from __future__ import annotations

from scheduler_search.rule.catalogue.common import QUOTA
from scheduler_search.rule.declaration import Declaration, Parameter, Reads, Stages

MUSTDROP = Declaration(
    name="mustdrop",
    version=1,
    stages={
        "vision": Stages(
            "mustdrop.window_order",
            correlate="mustdrop.windows",
            compress="compress.into_the_best",
            reads=lambda _rule: Reads(grids=True),
        ),
        "entry": Stages("attention.least_attended", reads=lambda _rule: Reads(rows="class", tower_layer=-1)),
        "decoder": Stages("mustdrop.dual_attention", reads=lambda _rule: Reads(rows="instruction", matrix=True)),
    },
    parameters=(
        Parameter("window", 3, "side of the windows in which the tower's tokens merge, in patches", low=2),
        Parameter(
            "ratio",
            1.0,
            "decoder: the threshold of a token's share of text's attention over that of its peak; "
            "the paper's are 1.0, 1.2 and 1.1 for 192, 128 and 64 tokens",
            low=0.01,
            high=100.0,
        ),
        QUOTA,
    ),
    source="MustDrop (Liu et al. 2024, arXiv 2411.10803, section 3)",
    follows=(
        "the paper in count-driven form. Tower: windows merge in the order of their mean similarity, where the paper "
        "merges those above a threshold (0.8), then windows of windows; a merged token takes the slot of the token "
        "most similar to its window, where the code takes the last one. Entry: the tokens with the most class "
        "attention in the tower's last layer stay; the paper's 8 % that no later stage may drop are not known to the "
        "decoder. Decoder: tokens go by the larger of share and peak, which are the two thresholds of the paper moved "
        "together. The cache eviction of the paper's decoding stage is not part of the rule"
    ),
    default_places=("vision", "entry", "decoder"),
)
