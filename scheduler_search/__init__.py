"""Search, validate, freeze and apply per-layer keep-rate schedules for the vision tokens of multimodal LLMs.

The two names that a serving process needs are imported when they are first used, so that ``import scheduler_search``
is light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scheduler_search.runtime.apply import apply_schedule
    from scheduler_search.schedule.values import Schedule

__all__ = ["Schedule", "apply_schedule"]


def __getattr__(name: str) -> Any:
    if name == "apply_schedule":
        from scheduler_search.runtime.apply import apply_schedule

        return apply_schedule
    if name == "Schedule":
        from scheduler_search.schedule.values import Schedule

        return Schedule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
