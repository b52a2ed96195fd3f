"""What lives in a process of a cluster, in the process of a test."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_restored() -> Iterator[None]:
    """Afterwards nobody collects lines and warnings any more."""
    handlers = {name: list(logging.getLogger(name).handlers) for name in ("", "transformers")}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        for name, before in handlers.items():
            logging.getLogger(name).handlers = before
