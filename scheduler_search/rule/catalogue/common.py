"""Parameters that many rules share, so that they mean the same everywhere."""

from __future__ import annotations

from typing import cast

from scheduler_search.rule.declaration import HeadReduction, Parameter, Rule

HEADS = Parameter("head_reduction", "mean", "how the attention heads are combined", choices=("mean", "max", "sum"))
PREVIOUS = Parameter("score_layer", "previous", "the layer whose attention ranks the tokens", choices=("previous",))
POSITIONS = Parameter("positions", "keep", "whether kept tokens keep their rotary positions", choices=("keep",))
QUOTA = Parameter(
    "quota",
    "pooled",
    "whether the images of a sample share one ranking, or each keeps its share of the tokens and is ranked by itself",
    choices=("pooled", "per-image"),
)
TEXT_FEATURES = Parameter(
    "text_features",
    "decoder",
    "whether the question is the decoder's own embeddings of it, compared with projected patches, or what CLIP's text "
    "encoder makes of it, compared with patches in CLIP's space (at the entry; a study names it in [model])",
    choices=("decoder", "clip"),
)


def heads_of(rule: Rule) -> HeadReduction:
    """The value of ``HEADS``."""
    return cast(HeadReduction, rule.parameter("head_reduction"))


def from_clip(rule: Rule) -> bool:
    """Whether the value of ``TEXT_FEATURES`` is CLIP's."""
    return dict(rule.parameters).get("text_features") == "clip"


def shrinks_images(rule: Rule) -> bool:
    """Whether a rule at the entry makes images smaller in front of the tower, so that its stages are not run."""
    return dict(rule.parameters).get("level") == "image"
