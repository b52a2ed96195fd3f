"""Rules between the tower and the decoder that look at the class token, at how tokens differ, or at the patch grid.

Published ones reduce the tower's features in front of the projector and number positions anew; here, they reduce what
comes out of the projector, and kept tokens keep their positions. Attention and keys are those of the tower layer whose
features the decoder gets: the penultimate one in LLaVA, as published. A tower without a class token cannot serve the
rules that read its row.
"""

from __future__ import annotations

from scheduler_search.rule.catalogue.common import POSITIONS, QUOTA, TEXT_FEATURES, from_clip
from scheduler_search.rule.declaration import Declaration, Parameter, Reads, Rule, Stages

_MERGE = Parameter(
    "merge",
    "published",
    "whether a merged token stays whole and the others are added to it, as in published code, or all are averaged",
    choices=("published", "average"),
)


def _class_row(_rule: Rule) -> Reads:
    return Reads(rows="class")


def _class_row_and_keys(_rule: Rule) -> Reads:
    return Reads(rows="class", keys=True)


DOWNSAMPLE = Declaration(
    name="downsample",
    version=1,
    stages={
        "entry": Stages(
            "downsample.beside_the_centre",
            correlate="downsample.interpolated",
            compress="compress.given",
            reads=lambda _rule: Reads(grids=True),
        )
    },
    parameters=(
        Parameter(
            "level",
            "grid",
            "whether the grid of features is down-sampled, or the image in front of the tower (families with images of "
            "any size) and then the grid of its features",
            choices=("grid", "image"),
        ),
        Parameter(
            "interpolation",
            "bilinear",
            "whether the grid is interpolated at the new points, or the nearest patch is taken",
            choices=("bilinear", "nearest"),
        ),
        POSITIONS,
    ),
    source="baseline of seed 001: down-sampling, of the image or of the patch grid, to the promised count",
    follows="seed 001 makes the image smaller in front of the tower (level 'image'), which only families with images "
    "of any size can take; here the promised count is met exactly, by the grid of the smaller image's features",
)

FASTERVLM = Declaration(
    name="fastervlm",
    version=1,
    stages={"entry": Stages("attention.least_attended", reads=_class_row)},
    parameters=(POSITIONS, QUOTA),
    source="FasterVLM (arXiv 2412.01818): attention of the class token, mean over heads",
)

VISIONZIP = Declaration(
    name="visionzip",
    version=1,
    stages={
        "entry": Stages(
            "visionzip.dominant_then_contextual",
            correlate="visionzip.alike_keys",
            compress="visionzip.merged",
            reads=lambda _rule: Reads(rows="class", heads="sum", keys=True),
        )
    },
    parameters=(
        Parameter(
            "contextual",
            0.15625,
            "share of contextual tokens among the kept ones; 10 of 64 and 30 of 192 in the paper",
            low=0.0,
            high=1.0,
        ),
        _MERGE,
        POSITIONS,
        QUOTA,
    ),
    source="VisionZip (arXiv 2412.04467): dominant tokens by class attention, contextual ones by merging the rest",
    follows="the published code, which adds the mean of the others to the target; the paper's prose averages (merge "
    "'average'). Not as there: the class token, for which no prompt has a slot, is none of the dominant tokens",
)

PRUMERGE = Declaration(
    name="prumerge",
    version=1,
    stages={
        "entry": Stages(
            "attention.least_attended",
            correlate="prumerge.alike_keys",
            compress="prumerge.by_attention",
            reads=_class_row_and_keys,
        )
    },
    parameters=(
        Parameter("neighbours", 32, "tokens that are merged into each kept one, the nearest by their keys", low=0),
        _MERGE,
        POSITIONS,
        QUOTA,
    ),
    source="LLaVA-PruMerge (arXiv 2403.15388): class attention, and clusters of nearest keys weighted with it",
    follows="the published code, which adds the nearest of all other tokens, kept ones too, times their attention; the "
    "paper's prose is a weighted average (merge 'average', here over the token and dropped ones). Not as there: the "
    "paper's penultimate layer (the one whose features the decoder gets) for the code's last one, the mean attention "
    "of the heads where the code has one softmax over all heads side by side, no token for all that was dropped, and "
    "the schedule's count for the threshold on outliers",
)

DIVPRUNE = Declaration(
    name="divprune",
    version=1,
    stages={"entry": Stages("diversity.far_from_each_other")},
    parameters=(POSITIONS, QUOTA),
    source="DivPrune (arXiv 2503.02175): greedy max-min diversity under cosine distance",
)

CDPRUNER = Declaration(
    name="cdpruner",
    version=1,
    stages={
        "entry": Stages(
            "diversity.relevant_and_diverse", reads=lambda rule: Reads(text=from_clip(rule), tower_layer=-1)
        )
    },
    parameters=(
        TEXT_FEATURES,
        Parameter(
            "relevance",
            "near",
            "whether the tokens near the question are the relevant ones, or those far from it, as published code has "
            "it for CLIP",
            choices=("near", "far"),
        ),
        POSITIONS,
        QUOTA,
    ),
    source="CDPruner (arXiv 2506.10967): greedy MAP inference of a conditional determinantal point process",
    follows="the paper, relevance being the mean cosine to the question; published code turns its sign for CLIP, whose "
    "text encoder it takes (relevance 'far'). Here, the question is the decoder's embeddings of the instruction, and "
    "patches are what the projector gave; with text_features 'clip', the tokens of CLIP's text encoder, and "
    "patches in CLIP's space",
)
