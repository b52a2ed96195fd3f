"""Scoring a model under a reduction: data sets, prompts, metrics, and the executor that runs chunks in this process.

Knows: how a study definition becomes samples, inputs, answers and scores in [0, 1]. Does not know: the study database,
what is searched, or who asks. Nothing here imports torch or transformers before it is needed: use
``from scheduler_search.evaluation.local import LocalExecutor``, or the same name from this package, which is looked up
on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scheduler_search.evaluation.local import LocalExecutor

__all__ = ["LocalExecutor"]


def __getattr__(name: str) -> Any:
    if name == "LocalExecutor":
        from scheduler_search.evaluation.local import LocalExecutor

        return LocalExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
