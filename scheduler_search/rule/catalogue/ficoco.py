"""FiCoCo-V, FiCoCo-L and FiCoCo-VL (seed 000): filter, correlate, compress by attention."""

from __future__ import annotations

from scheduler_search.rule.catalogue.common import HEADS, POSITIONS, PREVIOUS, QUOTA, heads_of
from scheduler_search.rule.declaration import Declaration, Parameter, Reads, Rule, Stages

LAMBDA = Parameter(
    "lambda",
    0.35,
    "in the tower: share of the local redundancy, the attention that a patch pays to patches, in its score; the rest is"
    " the class token's attention to it",
    low=0.0,
    high=1.0,
)
WINDOW = Parameter(
    "window",
    2,
    "in the tower: side of the windows of the grid in which the local penalty raises the highest score; 1 is none",
    low=1,
)
PENALTY = Parameter("penalty", 2.0, "in the tower: scaling coefficient of the local penalty; 1.0 is none", low=1.0)
BETA = Parameter(
    "beta",
    0.6,
    "in the decoder: share of the local redundancy, the attention that a token pays to vision tokens, in its score; the"
    " rest is the attention that it receives from text",
    low=0.0,
    high=1.0,
)
GAMMA = Parameter(
    "gamma", 0.6, "in the decoder: share of direct attention in a correlation; the rest goes by text", low=0.0, high=1.0
)
EPSILON = Parameter(
    "epsilon",
    0.998,
    "quantile of a dropped token's correlations from which on kept tokens receive some of it",
    low=0.0,
    high=1.0,
)


def _every_row(rule: Rule) -> Reads:
    return Reads(rows="every", matrix=True, heads=heads_of(rule))


def _every_row_on_the_grid(rule: Rule) -> Reads:
    return Reads(rows="every", matrix=True, heads=heads_of(rule), grids=True)


_VISION = Stages(
    "ficoco.replaceable_patches",
    correlate="ficoco.direct",
    compress="ficoco.shared_by_quantile",
    reads=_every_row_on_the_grid,
)
_DECODER = Stages(
    "ficoco.replaceable_in_context",
    correlate="ficoco.direct_and_by_text",
    compress="ficoco.shared_by_quantile",
    reads=_every_row,
)
_PAPER = (
    "the paper. Its published code scores by logits before the softmax, in the tower with lambda and 1 - lambda"
    " exchanged, and lets dropped tokens be targets."
)
_CAUSAL = (
    " Attention between text and vision is what vision tokens receive from text, as the prose says: the causal mask"
    " makes the other direction, which the equations write, zero."
)

FICOCO_V = Declaration(
    name="ficoco-v",
    version=1,
    stages={"vision": _VISION},
    parameters=(LAMBDA, WINDOW, PENALTY, EPSILON, HEADS, PREVIOUS),
    source="FiCoCo (seed 000), section 3.1, eq. 11 to 13 and Algorithm 1",
    follows=_PAPER + " Without a class token, the mean attention received from all patches stands for its attention.",
)

FICOCO_L = Declaration(
    name="ficoco-l",
    version=1,
    stages={"decoder": _DECODER},
    parameters=(BETA, GAMMA, EPSILON, HEADS, PREVIOUS, POSITIONS, QUOTA),
    source="FiCoCo (seed 000), section 3.2, eq. 13 to 15 and Algorithm 2",
    follows=_PAPER + _CAUSAL,
)

FICOCO_VL = Declaration(
    name="ficoco-vl",
    version=1,
    stages={"vision": _VISION, "decoder": _DECODER},
    parameters=(LAMBDA, WINDOW, PENALTY, BETA, GAMMA, EPSILON, HEADS, PREVIOUS, POSITIONS),
    source="FiCoCo (seed 000), section 3.2: FiCoCo-V in the tower and FiCoCo-L in the decoder",
    follows=_PAPER + _CAUSAL,
    default_places=("vision", "decoder"),
)
