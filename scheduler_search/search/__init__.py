"""The search: which candidate is tried next, and which one is decided on.

Knows: G-Search, P-Sigmoid, their stages, the surrogate model and the baselines. Does not know: databases, clocks,
models or data; it is told scores and returns candidates. Importing it loads neither torch nor Optuna.
"""

from __future__ import annotations

from scheduler_search.search.algorithm import Algorithm, algorithm_for
from scheduler_search.search.baselines import Baseline, baselines
from scheduler_search.search.g_search import GSearch
from scheduler_search.search.observation import Explored, Observation, decide, incumbent, observe
from scheduler_search.search.p_sigmoid import MeanKeepRate, PrefillFlops, PSigmoid
from scheduler_search.search.race import Race, race_for
from scheduler_search.search.stage import CANDIDATE, Candidate, Effort, Stage
from scheduler_search.search.surrogate import next_batch

__all__ = [
    "CANDIDATE",
    "Algorithm",
    "Baseline",
    "Candidate",
    "Effort",
    "Explored",
    "GSearch",
    "MeanKeepRate",
    "Observation",
    "PSigmoid",
    "PrefillFlops",
    "Race",
    "Stage",
    "algorithm_for",
    "baselines",
    "decide",
    "incumbent",
    "next_batch",
    "observe",
    "race_for",
]
