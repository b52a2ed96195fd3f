"""Torch-free schedules: the value, rate families, cost arithmetic, budget solving and the JSON document.

Knows: which modules hold the public names. The document and its records need pydantic, and are imported when first
asked for: whoever only counts tokens does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from scheduler_search.schedule.budget import (
    family_rates_for_flops,
    sigmoid_rates_for_flops,
    solve_rate,
    uniform_rates_for_flops,
)
from scheduler_search.schedule.cost import (
    DecoderShape,
    ModelShape,
    SplitCost,
    VisionShape,
    kv_cache_bytes,
    kv_cache_ratio,
    mean_prefill_flops,
    prefill_flops,
    textbook_flops,
    vision_kv_cache_ratio,
)
from scheduler_search.schedule.counts import keep_count, keep_counts
from scheduler_search.schedule.families import free, mean_keep_rate, sigmoid, staircase, step, uniform, withdraw
from scheduler_search.schedule.values import ModelIdentity, Reduction, Schedule, VisionReduction

if TYPE_CHECKING:
    from scheduler_search.schedule.document import ScheduleDocument, parse_document, read_document, write_document
    from scheduler_search.schedule.record import (
        Baseline,
        Difference,
        Estimate,
        Measured,
        PrefillMilliseconds,
        PrefillTeraflops,
        Provenance,
    )
    from scheduler_search.schedule.schema import schedule_json_schema

_LATE = {
    "ScheduleDocument": "document",
    "parse_document": "document",
    "read_document": "document",
    "write_document": "document",
    "Baseline": "record",
    "Difference": "record",
    "Estimate": "record",
    "Measured": "record",
    "PrefillMilliseconds": "record",
    "PrefillTeraflops": "record",
    "Provenance": "record",
    "schedule_json_schema": "schema",
}

__all__ = [
    "Baseline",
    "DecoderShape",
    "Difference",
    "Estimate",
    "Measured",
    "ModelIdentity",
    "ModelShape",
    "PrefillMilliseconds",
    "PrefillTeraflops",
    "Provenance",
    "Reduction",
    "Schedule",
    "ScheduleDocument",
    "SplitCost",
    "VisionReduction",
    "VisionShape",
    "family_rates_for_flops",
    "free",
    "keep_count",
    "keep_counts",
    "kv_cache_bytes",
    "kv_cache_ratio",
    "mean_keep_rate",
    "mean_prefill_flops",
    "parse_document",
    "prefill_flops",
    "read_document",
    "schedule_json_schema",
    "sigmoid",
    "sigmoid_rates_for_flops",
    "solve_rate",
    "staircase",
    "step",
    "textbook_flops",
    "uniform",
    "uniform_rates_for_flops",
    "vision_kv_cache_ratio",
    "withdraw",
    "write_document",
]


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
