"""Vision features: what of them is kept, how they are moved, and where those of each batch are.

Knows: the forms in which the families give them. Does not know: how they are computed (``batches``) or where memory is
(``memory``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, cast

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from scheduler_search.evaluation.layout import Place
from scheduler_search.evaluation.memory import HOST, Entry, Memory

# A tensor, or tensors for each image, for each decoder layer that takes some, or for each image of each of these.
Nested = Tensor | Sequence["Nested"]
_SHARE = 4  # at most a quarter of what memory there is: the vision tower is the cheapest to run again


@dataclass(frozen=True)
class Features:
    """What models read of the output of ``get_image_features``, in the form in which they gave it."""

    output: ModelOutput

    @classmethod
    def of(cls, output: ModelOutput) -> Self:
        """Of all that the vision tower gave."""
        names = (_main(output), "deepstack_features")
        return cls(type(output)(**{name: output[name] for name in names if output.get(name) is not None}))

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        tensors = [tensor for value in self.output.values() for tensor in _tensors(value)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def count(self) -> int:
        """Vision tokens, of all images together."""
        return sum(tensor.numel() // tensor.shape[-1] for tensor in _tensors(self.output[_main(self.output)]))

    def to(self, device: torch.device) -> Self:
        """The same on a device; tensors that are there already are shared."""
        moved = {name: _moved(value, device) for name, value in self.output.items()}
        return type(self)(type(self.output)(**moved))


class Shelf(Protocol):
    """The place of one batch's features."""

    def get(self) -> Features | None:
        """The features, if they are here."""

    def keep(self, features: Features) -> None:
        """Keep the features, if memory allows."""


class OwnShelf:
    """Keeps features on the host, whatever memory they take."""

    def __init__(self) -> None:
        self._features: Features | None = None

    def get(self) -> Features | None:
        """The features, once they were kept."""
        return self._features

    def keep(self, features: Features) -> None:
        """Keep the features."""
        self._features = features.to(HOST)


class FeatureStore:
    """Vision features by place, as many as fit.

    Those that came first stay, since chunks take turns. Prefixes make room for them: they are in every run.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @property
    def bytes(self) -> int:
        """Memory of all features, on device and host."""
        return self._memory.bytes_of("features")

    def shelf(self, place: Place) -> Shelf:
        """The shelf of a batch."""
        return _StoreShelf(self._memory, place)


@dataclass(frozen=True)
class _StoreShelf:
    _memory: Memory
    _place: Place

    def get(self) -> Features | None:
        for entry in self._memory.at(self._place, "features"):
            self._memory.touch(entry)
            return cast("Features", entry.item)
        return None

    def keep(self, features: Features) -> None:
        entry = Entry(self._place, "features", features, share=_SHARE)
        self._memory.keep(entry, lambda other: (0, other.used) if other.kind == "prefix" else None)


ShelfOf = Callable[[Place], Shelf]


def _main(output: ModelOutput) -> str:
    """Name of the features themselves: what Llama 4 calls its hidden state is projected already."""
    return "last_hidden_state" if output.get("pooler_output") is None else "pooler_output"


def _moved(features: Nested, device: torch.device) -> Nested:
    if isinstance(features, Tensor):
        return features.to(device)
    return tuple(_moved(part, device) for part in features)


def _tensors(features: Nested) -> Iterator[Tensor]:
    if isinstance(features, Tensor):
        yield features
        return
    for part in features:
        yield from _tensors(part)
