"""ToMe: bipartite merging of similar tokens inside the vision tower."""

from __future__ import annotations

from scheduler_search.rule.declaration import Declaration, Reads, Stages

TOME = Declaration(
    name="tome",
    version=1,
    stages={
        "vision": Stages(
            "bipartite.best_edge",
            correlate="bipartite.partners",
            compress="compress.into_the_best",
            reads=lambda _rule: Reads(keys=True, sizes=True),
            halves=True,
        )
    },
    parameters=(),
    source="ToMe (Bolya et al. 2023, section 3); seed 000, eq. 3, 6 and 9",
    follows=(
        "the paper, as its code: alternate tokens, the class token first among them and never merged, cosine of the "
        "keys' mean over heads, averages weighted by sizes (seed 000's eq. 9 weighs each patch alike only in the first "
        "merge). Differences: tokens merge at the boundary between two layers, with the keys of the layer before, not "
        "between attention and MLP; r is what the schedule drops at the layer, in several rounds where that is more "
        "than half; a merged token stays in the slot of the second set's token, where the published code puts the "
        "second set behind the first, so that the tokens of later merges alternate differently"
    ),
)
