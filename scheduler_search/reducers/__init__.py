"""Token reduction as pure tensor functions: filter, correlate, compress.

Knows: tensors of one batch at the input of one layer, and how many tokens each sample keeps. Does not know: models,
hooks, caches, or which layer it is. The classes here are named by the declarations in ``scheduler_search.rule``.
"""

from scheduler_search.reducers.quota import image_runs
from scheduler_search.reducers.reducer import AttentionQuery, Pruning, Reducer, fold, reduce_tokens
from scheduler_search.reducers.selection import least_redundant
from scheduler_search.reducers.tokens import Grid, Prompt, Tokens

__all__ = [
    "AttentionQuery",
    "Grid",
    "Prompt",
    "Pruning",
    "Reducer",
    "Tokens",
    "fold",
    "image_runs",
    "least_redundant",
    "reduce_tokens",
]
