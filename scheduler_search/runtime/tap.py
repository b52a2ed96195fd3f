"""The attention tap: lets a handle see queries, keys and mask of the layers it asked for.

transformers looks attention functions up by name in one mapping per process. The tap stands in that mapping in front of
the function it found there, and calls it with unchanged arguments; modules nobody subscribed pass straight through. It
lives in the mapping and nowhere else: the last ``unsubscribe`` puts the mapping back as it was.

Replacing the function under its own name, instead of registering a new one, keeps the model's attention masks: an
unknown name gets none, and padding would be attended to.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_INSTALLATION = threading.Lock()  # guards the check-then-set of subscribe and unsubscribe


@dataclass(frozen=True)
class AttentionInputs:
    """Arguments of one attention call: query [B, H, S, E], key [B, Hkv, S, E], mask as the model made it.

    ``window`` is the sliding window that the attention may apply itself, in tokens; where masks are full it is in them.
    """

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    softcap: float | None
    window: int | None = None


class Listener(Protocol):
    """Called with the attention inputs of a subscribed module, before its attention runs."""

    def __call__(self, inputs: AttentionInputs) -> None:
        """Look, do not touch."""


class AttentionTap:
    """Stands for one attention implementation. ``previous`` is the mapping's own entry before, None if it had none."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.previous = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
        self.function: Callable[..., Any] | None = ALL_ATTENTION_FUNCTIONS.get(name)
        self.listeners: dict[nn.Module, Listener] = {}

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Tell the module's listener, if it has one, and run the attention that stood here before."""
        listener = self.listeners.get(module)
        if listener is not None:
            scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
            choices = kwargs.get("softcap"), kwargs.get("sliding_window")
            listener(AttentionInputs(query, key, attention_mask, scaling, *choices))
        function = self.function or _eager_function(type(module))
        return function(module, query, key, value, attention_mask, *args, **kwargs)


def _eager_function(kind: type[nn.Module]) -> Callable[..., Any]:
    """The eager attention of a module class.

    ``eager`` has no entry in the mapping: each modelling file passes its own function as the default. It is found here
    by the name that the class's forward uses for it (``eager_attention_forward`` in all but a few files).
    """
    names = inspect.unwrap(kind.forward).__code__.co_names
    name = next((name for name in names if name.endswith("eager_attention_forward")), "eager_attention_forward")
    function: Callable[..., Any] = getattr(sys.modules[kind.__module__], name)
    return function


def subscribe(name: str, listeners: dict[nn.Module, Listener]) -> AttentionTap:
    """Tap implementation ``name`` for these modules; installs the tap if it is not there."""
    with _INSTALLATION:
        tap = ALL_ATTENTION_FUNCTIONS.get(name)
        if not isinstance(tap, AttentionTap):
            tap = AttentionTap(name)
            ALL_ATTENTION_FUNCTIONS[name] = tap
        tap.listeners.update(listeners)
        return tap


def unsubscribe(tap: AttentionTap, modules: list[nn.Module]) -> None:
    """Stop listening to these modules; the last one to go takes the tap out of the mapping.

    A function that somebody else has put in front of the tap since is left alone: the tap behind it only passes on.
    """
    with _INSTALLATION:
        for module in modules:
            tap.listeners.pop(module, None)
        if tap.listeners or ALL_ATTENTION_FUNCTIONS.get(tap.name) is not tap:
            return
        if tap.previous is None:
            del ALL_ATTENTION_FUNCTIONS[tap.name]
        else:
            ALL_ATTENTION_FUNCTIONS[tap.name] = tap.previous
