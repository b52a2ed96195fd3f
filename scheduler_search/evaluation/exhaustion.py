"""What happens when the memory of a device is exhausted: what is stored there goes, and the work is done again, once.

Knows: torch's error, and how it is worded for people. Does not know: what the work is. Scores are the same, since
nothing that is stored changes one. Tested with errors that a test raises; it has not met a full GPU yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from scheduler_search.errors import ModelError
from scheduler_search.evaluation.memory import Memory

_T = TypeVar("_T")
_MIB = 2**20
_log = logging.getLogger(__name__)


def within_memory(work: Callable[[], _T], memory: Memory, place: str) -> _T:
    """What the work gives; where the device's memory does not suffice, what it gives with nothing stored there.

    Raises:
        ModelError: the device's memory does not suffice even then.
    """
    found, reason = _try(work)
    if reason is None:
        return found[0]
    given_up = memory.give_device_up()
    _empty_cache()
    _log.warning("%s: out of device memory; %.0f MiB of stores given up (%s)", place, given_up / _MIB, reason)
    found, reason = _try(work)
    if reason is None:
        return found[0]
    _empty_cache()
    raise ModelError(
        "a chunk must fit into the memory of the device",
        actual=reason,
        place=place,
        remedy="choose a smaller [data] chunk or [model] dtype (either makes it another study), fewer workers per GPU"
        " ([workers] gpus), or a GPU with more memory",
    )


def _try(work: Callable[[], _T]) -> tuple[list[_T], str | None]:
    """The result of the work, or why there is none; the error is let go, since its frames hold tensors."""
    try:
        return [work()], None
    except torch.OutOfMemoryError as error:
        return [], _first_sentences(error)


def _first_sentences(error: torch.OutOfMemoryError) -> str:
    """What was asked for and what there was, without torch's advice."""
    return str(error).split(" If reserved")[0].split("\n")[0].strip()[:300] or type(error).__name__


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
