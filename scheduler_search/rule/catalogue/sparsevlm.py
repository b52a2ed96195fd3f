"""SparseVLM: text tokens that matter rate the vision tokens, and the best of the dropped ones are recycled."""

from __future__ import annotations

from scheduler_search.rule.catalogue.common import HEADS, POSITIONS, PREVIOUS, heads_of
from scheduler_search.rule.declaration import Declaration, Parameter, Reads, Rule, Stages


def _raters(rule: Rule) -> Reads:
    return Reads(rows="raters", heads=heads_of(rule))


SPARSEVLM = Declaration(
    name="sparsevlm",
    version=1,
    stages={
        "decoder": Stages(
            "sparsevlm.unrated_or_not_a_centre",
            correlate="sparsevlm.nearest_centre",
            compress="sparsevlm.reconstructed",
            reads=_raters,
        )
    },
    parameters=(
        Parameter(
            "recycled",
            0.3,
            "share of the tokens that do not stay as they are that is clustered; 0.0 recycles nothing",
            low=0.0,
            high=1.0,
        ),
        Parameter("tokens_per_cluster", 10, "clustered tokens for each recycled one", low=2),
        Parameter(
            "reconstruction",
            "mean",
            "what a recycled token is of its cluster: mean (published code) or sum (paper)",
            choices=("mean", "sum"),
        ),
        HEADS,
        PREVIOUS,
        POSITIONS,
    ),
    source="SparseVLM (arXiv 2410.04417), section 3: raters, and token recycling by density peaks",
    follows=(
        "the paper in the raters: instruction tokens whose mean softmax similarity to the vision tokens, on the"
        " embeddings in front of the first layer, is at least the mean of all. The published code in the clustering:"
        " distances are per feature, a density looks at as many neighbours as there are clusters. Counts come from the"
        " schedule, not from the rank of the attention; recycled tokens count, and keep the position of their"
        " cluster's centre."
    ),
)
