"""The baselines that every rule must beat: random tokens, and pooled ones (seed 001)."""

from __future__ import annotations

from scheduler_search.rule.catalogue.common import POSITIONS, QUOTA
from scheduler_search.rule.declaration import Declaration, Parameter, Reads, Stages

_RANDOM = Stages("random.at_random", reads=lambda _rule: Reads(ids=True))

RANDOM = Declaration(
    name="random",
    version=1,
    stages={"decoder": _RANDOM, "entry": _RANDOM},
    parameters=(
        Parameter(
            "seed",
            0,
            "seed of the ranking; the sample's input ids are the other half of the key",
            low=0,
            high=2**128 - 1,
        ),
        QUOTA,
    ),
    source="baseline of seed 001",
)

POOLING = Declaration(
    name="pooling",
    version=1,
    stages={
        "entry": Stages(
            "pooling.beside_the_centre",
            correlate="pooling.region",
            compress="compress.given",
            reads=lambda _rule: Reads(grids=True),
        ),
        "decoder": Stages(
            "pooling.beside_the_nearest",
            correlate="pooling.nearest_of_region",
            compress="compress.into_the_best",
            reads=lambda _rule: Reads(grids=True),
        ),
    },
    parameters=(POSITIONS,),
    source="baseline of seed 001, Algorithm 4: average pooling of neighbouring patches, to the promised count",
    follows="the paper's average, of regions that any count allows, at the position of the central patch. Algorithm 4 "
    "pools windows in front of one decoder layer, and as printed keeps the token of each with the largest L1 norm, not "
    "the mean. In the decoder, a later layer pools what is left of the tokens, each counted once",
    default_places=("entry",),
)
