"""VisionTrim (seed 004): in front of the decoder, in its layers, or both."""

from __future__ import annotations

from scheduler_search.rule.catalogue.common import POSITIONS, QUOTA, TEXT_FEATURES, from_clip
from scheduler_search.rule.declaration import Declaration, Parameter, Reads, Stages

# The paper gives no values for its kernels. These are those of the pixel-adaptive refinement (AFA, arXiv 2203.02664)
# from which eq. 4 and 5 have their form.
_KERNELS = (
    Parameter("window", 3, "side of the square window of neighbours (k; the paper names none)", choices=(3, 5, 7)),
    Parameter("feature_scale", 0.3, "w1 of eq. 4 (the paper names none)", low=1e-3),
    Parameter("position_scale", 0.3, "w2 of eq. 4 (the paper names none)", low=1e-3),
    Parameter("position_weight", 0.01, "w3 of eq. 5 (the paper names none)", low=0.0),
)

_PARAMETERS = (
    Parameter(
        "complement",
        0.25,
        "share R / (K + R) of complement tokens among the kept ones; 0.25 in Table 9, 0.125 in Table 10",
        low=0.0,
        high=1.0,
    ),
    Parameter("iterations", 1, "repetitions of eq. 8-11 (the paper gives no T; published code: 3)", low=0, high=9),
    *_KERNELS,
    POSITIONS,
    QUOTA,
)

_ENTRY = Stages(
    "visiontrim.class_dominant",
    correlate="visiontrim.class_clusters",
    compress="compress.given",
    reads=lambda rule: Reads(rows="class", grids=True, text=from_clip(rule)),
)

_DECODER = Stages(
    "visiontrim.text_dominant",
    correlate="visiontrim.text_clusters",
    compress="compress.given",
    reads=lambda _rule: Reads(grids=True),
)

_FOLLOWS = (
    "the paper; published code overwrites the scores of eq. 6 and has no decoder stage. Eq. 11 as written: weights "
    "into a complement token sum to more than one. The local score is the affinity that neighbours hand to a token: "
    "eq. 5, averaged as it is written, is the same for all tokens. In the decoder, the question is the hidden states "
    "of the instruction"
)

VISIONTRIM = Declaration(
    name="visiontrim",
    version=1,
    stages={"entry": _ENTRY, "decoder": _DECODER},
    parameters=(TEXT_FEATURES, *_PARAMETERS),
    source="seed 004: eq. 1-12 (DVTS, TGVC) at the entry, eq. 13 and 14 in the decoder",
    follows=_FOLLOWS + "; at the entry, it is the decoder's embeddings of the instruction against projected patches, "
    "which no training has brought together; the paper takes CLIP's text encoder: text_features 'clip', which changes "
    "nothing in the decoder. Class attention is of the layer whose features the decoder gets, the penultimate one in "
    "LLaVA. Eq. 6 takes the variance of the normalised global scores that it weighs: so small that class "
    "attention decides almost alone at the entry",
    default_places=("entry", "decoder"),
)

VISIONTRIM_DECODER = Declaration(
    name="visiontrim-decoder",
    version=1,
    stages={"decoder": _DECODER},
    parameters=_PARAMETERS,
    source="seed 004, eq. 13 and 14",
    follows=_FOLLOWS + "; eq. 14 with the training-free weights of eq. 11 for its learned ones",
)
