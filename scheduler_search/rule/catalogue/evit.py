"""EViT: inattentive tokens of the vision tower fused into one."""

from __future__ import annotations

from scheduler_search.rule.declaration import Declaration, Parameter, Reads, Stages

EVIT = Declaration(
    name="evit",
    version=1,
    stages={
        "vision": Stages(
            "attention.least_attended",
            correlate="evit.inattentive",
            compress="evit.fuse",
            reads=lambda _rule: Reads(rows="class"),
        )
    },
    parameters=(
        Parameter(
            "normalise",
            False,
            "whether the weights in the fused token are brought to sum to one; the paper takes the attention as it is",
        ),
    ),
    source="EViT (Liang et al. 2022, section 3.2); seed 000, eq. 4, 7, 10",
    follows=(
        "the paper, as its code: class attention averaged over heads; the fused token is the sum of the others, each "
        "weighted with its attention, not normalised. Differences: the fused token is one of the promised ones, where "
        "the code keeps it beside them; it sits in the slot of the most attended of its parts and kept tokens stay in "
        "order, where the code sorts by attention and appends it; tokens go at the boundary between two layers, by the "
        "attention of the layer before, not between attention and MLP. In a later reduction the fused token is a token "
        "like the others, as in the code"
    ),
)
