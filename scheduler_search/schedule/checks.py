"""The checks that values, families and budgets share: each returns the checked value or raises one ScheduleError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from scheduler_search.errors import ScheduleError


def check_number(value: float, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a float if it is a finite number in [low, high]; a bool is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"{name} must be a number", actual=repr(value))
    if not math.isfinite(value):
        raise ScheduleError(f"{name} must be finite", actual=repr(value))
    if not low <= value <= high:
        raise ScheduleError(f"{name} must be {_interval(low, high)}", actual=repr(value))
    return float(value)


def check_rate(value: float, name: str) -> float:
    """``value`` as a float if it is in [0, 1]."""
    return check_number(value, name, 0.0, 1.0)


def check_index(value: int, name: str, low: int, high: int | None = None) -> int:
    """``value`` if it is an int in [low, high]; a bool is no int."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ScheduleError(f"{name} must be a whole number", actual=repr(value))
    if value < low or (high is not None and value > high):
        raise ScheduleError(f"{name} must be {_interval(low, math.inf if high is None else high)}", actual=value)
    return value


def check_non_increasing(rates: tuple[float, ...], name: str) -> tuple[float, ...]:
    """``rates`` if they never increase: a token that was dropped cannot come back."""
    for layer, (before, after) in enumerate(pairwise(rates), start=2):
        if after > before:
            actual = f"{after} after {before} at layer {layer}"
            raise ScheduleError(f"{name} must not increase from layer to layer", actual=actual)
    return rates


def check_rates(rates: Sequence[float], name: str) -> None:
    """Refuse anything but a non-empty tuple of floats in [0, 1] that never increase."""
    if not isinstance(rates, tuple) or not rates:
        raise ScheduleError(f"{name} must be a non-empty tuple of floats", actual=repr(rates)[:60])
    for layer, rate in enumerate(rates, start=1):
        if not isinstance(rate, float):
            raise ScheduleError(f"{name} must be floats", actual=f"{rate!r} at layer {layer}")
        check_rate(rate, f"{name} of layer {layer}")
    check_non_increasing(rates, name)


def _interval(low: float, high: float) -> str:
    if high == math.inf:
        return f"at least {low}"
    return f"between {low} and {high}"
