"""Token reduction as pure tensor functions: filter, correlate, compress.

Knows: tensors of one batch at the input of one layer, and how many tokens each sample keeps. Does not know: models,
hooks, caches, or which layer it is. The stages here are named by the declarations in ``scheduler_search.rule``.
"""

from scheduler_search.reducers.quota import image_runs
from scheduler_search.reducers.reducer import Reduced, Reducer, fold, reduce_tokens
from scheduler_search.reducers.selection import least_redundant
from scheduler_search.reducers.tokens import AttentionRows, Grid, Prompt, Text, Tokens

__all__ = [
    "AttentionRows",
    "Grid",
    "Prompt",
    "Reduced",
    "Reducer",
    "Text",
    "Tokens",
    "fold",
    "image_runs",
    "least_redundant",
    "reduce_tokens",
]
