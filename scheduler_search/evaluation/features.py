"""Vision features: what of them is kept, how they are moved, and where those of each batch are.

Knows: the forms in which the families give them, and that each reduction in the tower, or of images, has its own. Does
not know: how they are computed (``batches``) or where memory is (``memory``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, cast

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from scheduler_search.evaluation.layout import Place
from scheduler_search.evaluation.memory import HOST, Entry, Item, Memory
from scheduler_search.rule import Reads
from scheduler_search.runtime import Beside, SmallerImages
from scheduler_search.schedule.values import VisionReduction

# A tensor, or tensors for each image, for each decoder layer that takes some, or for each image of each of these.
Nested = Tensor | Sequence["Nested"]
# What is done inside the tower, or to images in front of it, so that their features are others.
Change = VisionReduction | SmallerImages
_PIXELS = "pixels"
_SHARE = 4  # at most a quarter of what memory there is: the vision tower is the cheapest to run again


@dataclass(frozen=True)
class Features:
    """What models read of the output of ``get_image_features``, in the form in which they gave it.

    ``views``: what rules read of the tower beside it; None where nothing was asked for.
    """

    output: ModelOutput
    views: Beside | None = None

    @classmethod
    def of(cls, output: ModelOutput, views: Beside | None = None) -> Self:
        """Of all that the vision tower gave."""
        names = (_main(output), "deepstack_features")
        return cls(type(output)(**{name: output[name] for name in names if output.get(name) is not None}), views)

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        tensors = [tensor for value in self.output.values() for tensor in _tensors(value)]
        beside = 0 if self.views is None else self.views.bytes
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + beside

    @property
    def seen(self) -> tuple[Reads, ...]:
        """What there is of the tower beside the features."""
        return () if self.views is None else tuple(self.views.seen)

    @property
    def count(self) -> int:
        """Vision tokens, of all images together."""
        return sum(tensor.numel() // tensor.shape[-1] for tensor in _tensors(self.output[_main(self.output)]))

    def to(self, device: torch.device) -> Self:
        """The same on a device; tensors that are there already are shared."""
        moved = {name: _moved(value, device) for name, value in self.output.items()}
        return type(self)(type(self.output)(**moved), None if self.views is None else self.views.to(device))


@dataclass(frozen=True)
class Pixels:
    """Arguments of the vision tower."""

    arguments: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.arguments.values())

    def to(self, device: torch.device) -> Self:
        """The same on a device; tensors that are there already are shared."""
        return type(self)({name: tensor.to(device) for name, tensor in self.arguments.items()})


class Shelf(Protocol):
    """The place of what the vision tower gave for one batch.

    That is the features of the whole tower (None), and those of the last reduction in it, or of images, that was asked
    for.
    """

    def get(self, vision: Change | None = None) -> Features | None:
        """The features under a reduction, if they are here."""

    def keep(self, features: Features, vision: Change | None = None) -> None:
        """Keep the features, in place of others under the same or another reduction, if memory allows."""

    def pixels(self) -> Pixels | None:
        """What the tower reads, if it is here."""

    def keep_pixels(self, pixels: Pixels) -> None:
        """Keep what the tower reads, if memory allows: for batches that it runs over again and again."""


class OwnShelf:
    """Keeps everything on the host, whatever memory it takes."""

    def __init__(self) -> None:
        self._features: dict[bool, tuple[Change | None, Features]] = {}
        self._pixels: Pixels | None = None

    def get(self, vision: Change | None = None) -> Features | None:
        """The features, once they were kept."""
        found, features = self._features.get(vision is not None, (None, None))
        return features if found == vision else None

    def keep(self, features: Features, vision: Change | None = None) -> None:
        """Keep the features."""
        self._features[vision is not None] = vision, features.to(HOST)

    def pixels(self) -> Pixels | None:
        """What the tower reads, once it was kept."""
        return self._pixels

    def keep_pixels(self, pixels: Pixels) -> None:
        """Keep what the tower reads."""
        self._pixels = pixels.to(HOST)


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

    def get(self, vision: Change | None = None) -> Features | None:
        return cast("Features | None", self._get(vision))

    def keep(self, features: Features, vision: Change | None = None) -> None:
        for entry in self._memory.at(self._place, "features"):
            if entry.group != _PIXELS and (entry.group is None) == (vision is None):
                self._memory.drop(entry)
        self._keep(features, vision)

    def pixels(self) -> Pixels | None:
        return cast("Pixels | None", self._get(_PIXELS))

    def keep_pixels(self, pixels: Pixels) -> None:
        self._keep(pixels, _PIXELS)

    def _get(self, group: object) -> Item | None:
        for entry in self._memory.at(self._place, "features"):
            if entry.group == group:
                self._memory.touch(entry)
                return entry.item
        return None

    def _keep(self, item: Item, group: object) -> None:
        entry = Entry(self._place, "features", item, group, share=_SHARE)
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
