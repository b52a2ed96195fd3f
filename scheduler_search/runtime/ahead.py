"""A look ahead: the attention of a layer over hidden states that it will not be given.

The layer's own forward is run up to its attention and no further: norms, projections and rotary embedding are its code,
and nothing is put in the cache. Knows: how such a run ends. Does not know: who listens to the attention, or why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NoReturn

import torch

# The forward of a layer, past its hooks, of hidden states and keyword arguments.
Forward = Callable[[torch.Tensor, dict[str, Any]], object]


class _AttentionReached(Exception):  # noqa: N818  (it says that all is well)
    """Ends the run; nobody but ``look_ahead`` sees it."""


def stop_here() -> NoReturn:
    """End a look ahead, from the listener that saw what it was for."""
    raise _AttentionReached


def look_ahead(forward: Forward, hidden: torch.Tensor, arguments: dict[str, Any]) -> None:
    """Run a layer until its listener stops it; one that nobody stops runs to its end, and its output is lost."""
    with torch.no_grad(), contextlib.suppress(_AttentionReached):
        forward(hidden, {**arguments, "past_key_values": None})
