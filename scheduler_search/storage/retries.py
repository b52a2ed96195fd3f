"""Doing something again after the database server went away and came back.

Knows: how long and how often to try. Does not know: SQL; what is done again must be one transaction that changes
nothing when it is done twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from scheduler_search.errors import DatabaseError
from scheduler_search.storage.server import ConnectionLostError

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0

_P = ParamSpec("_P")
_R = TypeVar("_R")
_logger = logging.getLogger("scheduler_search.database")


class Retrying(Protocol):
    """Something whose methods may be ``retried``."""

    def retrying(self, operation: Callable[[], _R]) -> _R:
        """Do it, again after a lost connection."""


_Self = TypeVar("_Self", bound=Retrying)


def retried(method: Callable[Concatenate[_Self, _P], _R]) -> Callable[Concatenate[_Self, _P], _R]:
    """Let a method that is one transaction begin again where its connection is lost."""

    @wraps(method)
    def again(instance: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return instance.retrying(lambda: method(instance, *args, **kwargs))

    return again


def retry(operation: Callable[[], _R], seconds: float) -> _R:
    """The result of ``operation``, tried with growing pauses for ``seconds`` while the server is away.

    Raises:
        DatabaseError: the server did not come back.
    """
    began = time.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return operation()
        except ConnectionLostError as error:
            if time.monotonic() + pause > began + seconds:
                raise _gone(error, seconds) from error
            if pause == _FIRST_PAUSE_SECONDS:
                _logger.warning("%s; trying again for %g s", error, seconds)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _gone(error: ConnectionLostError, seconds: float) -> DatabaseError:
    rule = error.rule if seconds == 0 else f"{error.rule} again within {seconds:g} s"
    return DatabaseError(rule, actual=error.actual, place=error.place, remedy=error.remedy)
