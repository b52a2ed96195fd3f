"""Signals as a wish to stop, which a run grants at its next chunk. Knows nothing of studies."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on(*signals: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Whether one of ``signals`` came since. A second SIGINT is a KeyboardInterrupt, for who cannot wait."""
    received: list[int] = []

    def receive(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, receive) for number in signals}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
