"""What a run of the vision tower gave beside its features: what entry rules read of it, and which patches it left.

Knows: images and their patches, and where they are in the prompts of a batch. Does not know: how it came about
(``tower``), or who reads it (``prefill``).

Shapes: K images, P patches of each, B samples, S0 slots of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import AttentionRows, Prompt, Text
from scheduler_search.rule import Reads
from scheduler_search.runtime.layout import Kept, gather_tokens, to_device
from scheduler_search.runtime.question import text_on
from scheduler_search.runtime.seen import Seen


@dataclass(frozen=True)
class TowerViews:
    """What the tower gave for the images of a batch, in their order. Tensors are shared, never written to.

    Args:
        images: K.
        patches: P.
        seen: by what was asked for, with ``tower_layer`` counted from 0: attention [K, P], rows [K, R, P] (their slots
            are patches, -1 for the class token), keys [K, P, H, E], features [K, P, E] in CLIP's space; zero for
            patches that were dropped before.
        kept: [K, P] bool, the patches that the tower left; None for all.
        sizes: [K, P] patches that each one stands for; None where they were not followed.
        text: what the question of each sample says, to compare those features with; None where nobody asked.
    """

    images: int
    patches: int
    seen: Mapping[Reads, Seen]
    kept: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    text: Text | None = None

    def serves(self, wanted: Iterable[Reads]) -> bool:
        """Whether everything that is asked for is here."""
        return all(one in self.seen for one in wanted)

    def to(self, device: torch.device) -> TowerViews:
        """The same on a device; tensors that are there already are shared."""
        seen = {reads: one.to(device) for reads, one in self.seen.items()}
        text = None if self.text is None else text_on(self.text, device)
        kept, sizes = to_device(self.kept, device), to_device(self.sizes, device)
        return replace(self, seen=seen, kept=kept, sizes=sizes, text=text)

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        text = () if self.text is None else (self.text.values, self.text.real)
        tensors = [self.kept, self.sizes, *text, *(tensor for one in self.seen.values() for tensor in one.tensors)]
        return sum(one.numel() * one.element_size() for one in tensors if one is not None)


@dataclass(frozen=True)
class LeftOfImages:
    """Which vision tokens of each sample the smaller images stand for, [N] bool each, on the host."""

    kept: tuple[npt.NDArray[np.bool_], ...]
    seen: Mapping[Reads, Seen] = field(default_factory=dict)

    def to(self, _device: torch.device) -> LeftOfImages:
        """Itself."""
        return self

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return sum(one.nbytes for one in self.kept)

    def at(self, prompt: Prompt, counts: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """[B, S] the vision slots of a batch that are left; beam search has every sample several times.

        Args:
            counts: how many they must be.

        Raises:
            UnsupportedError: the images are not those of the prompts, or were made smaller under another reduction.
        """
        times = prompt.samples // len(self.kept) if self.kept else 0
        rows = [one for one in self.kept for _ in range(times)]
        if tuple(len(one) for one in rows) != prompt.vision_tokens:
            raise other_images(prompt.vision_tokens, f"features of {[len(one) for one in self.kept]}")
        if tuple(int(one.sum()) for one in rows) != counts:
            raise UnsupportedError(
                f"of images that are made smaller, {list(counts)} vision tokens must be left",
                actual=[int(one.sum()) for one in self.kept],
                place="handle.tower_views",
                remedy="compute the features under this very reduction",
            )
        left = np.zeros_like(prompt.vision)
        left[prompt.vision] = np.concatenate(rows)
        return left


def other_images(vision_tokens: Sequence[int], actual: str) -> UnsupportedError:
    """The refusal of prompts, of so many vision tokens each, whose images are not those that are made smaller."""
    return UnsupportedError(
        f"images that are made smaller must be all that stands in the prompts, {list(vision_tokens)} vision tokens",
        actual=actual,
        place="the vision tower",
        remedy="pass the images as pixel_values, and no videos",
    )


# What there is of the tower beside its features.
Beside = TowerViews | LeftOfImages


@dataclass(frozen=True)
class Arrival:
    """What a rule at the entry reads of the tower, and what is left by it, at the slots of a layer's input.

    Args:
        seen: as ``Tokens`` has it: attention [B, S], rows [B, R, S], keys [B, S, H, E], features [B, S, E]; None where
            nothing is read.
        kept: [B, S] bool, the vision tokens that the tower left; None for all.
        sizes: [B, S] patches that each one stands for; None where they were not followed.
        text: what the questions say; None where nothing of them is read.
    """

    seen: Seen | None
    kept: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    text: Text | None = None

    def at(self, kept: Kept) -> Arrival:
        """The same at the slots that are left; query rows that are not are without weight."""
        index, seen = kept.position, self.seen
        if seen is not None:
            attention, keys, features = (_at(one, index) for one in (seen.attention, seen.keys, seen.features))
            rows = None if seen.rows is None else _rows_at(seen.rows, index, kept.prompt)
            seen = Seen(attention, rows, keys, features)
        return Arrival(seen, None, _at(self.sizes, index), self.text)


def _at(values: torch.Tensor | None, index: torch.Tensor) -> torch.Tensor | None:
    return None if values is None else gather_tokens(values, index, 1)


def _rows_at(rows: AttentionRows, index: torch.Tensor, slots: int) -> AttentionRows:
    index = index.to(rows.slots.device)
    present = torch.full((len(index), slots), -1, device=index.device)
    present.scatter_(1, index, torch.arange(index.shape[1], device=index.device).expand_as(index))
    place = present.gather(1, rows.slots)
    weights = rows.weights.masked_fill(place < 0, 0.0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return AttentionRows(gather_tokens(rows.values, index, 2), place.clamp(min=0), weights)


def given_views(views: Beside | None, wanted: Iterable[Reads], *, reduced: bool) -> TowerViews:
    """What a prefill needs of the tower; UnsupportedError if it is not there.

    Args:
        reduced: whether there must be a reduction inside the tower.
    """
    if not isinstance(views, TowerViews) or not views.serves(wanted) or (views.kept is not None) != reduced:
        raise UnsupportedError(
            "vision features that were computed before must come with what the rules read of the tower",
            actual="features without it" if views is None else "what another reduction gave",
            place="handle.tower_views",
            remedy="pass pixel_values, or what compute_features gives beside the features",
        )
    return views


def lay_out(
    views: TowerViews, prompt: Prompt, reads: Reads | None, device: torch.device, text: Text | None = None
) -> Arrival:
    """What a run of the tower gave, at the slots of the prompts that its images stand in.

    Args:
        reads: what is read, as ``views.seen`` has it; None for nothing.
        text: what the question of each sample of the prompts says.

    Raises:
        UnsupportedError: the images of the prompts are not those of the run.
    """
    places, views = _Places.of(prompt, views).to(device), views.to(device)
    seen = None
    if reads is not None:
        found = views.seen[reads]
        attention, keys, features = (places.given(one) for one in (found.attention, found.keys, found.features))
        seen = Seen(attention, None if found.rows is None else places.spread_rows(found.rows), keys, features)
    text = None if text is None else text_on(text, device)
    return Arrival(seen, places.given(views.kept), places.given(views.sizes), text)


@dataclass(frozen=True)
class _Places:
    """Where each image of the prompts is, I of them: beam search has every sample, and its images, several times.

    Args:
        image: [I] which image of the run it is.
        sample: [I]; ``number``: [I] which of its sample's images.
        slots: [I, P].
        per_sample: [B] images of each sample.
        shape: B and S0.
        most: images of the sample that has most.
    """

    image: torch.Tensor
    sample: torch.Tensor
    number: torch.Tensor
    slots: torch.Tensor
    per_sample: torch.Tensor
    shape: tuple[int, int]
    most: int

    @classmethod
    def of(cls, prompt: Prompt, views: TowerViews) -> _Places:
        sample, slot = np.nonzero(prompt.vision)
        counts, P = np.array(prompt.vision_tokens), views.patches
        total = len(slot) // P
        times = total // views.images if views.images else 0
        if (counts % P).any() or not times or total % views.images or prompt.samples % times:
            raise UnsupportedError(
                f"the vision tokens of a sample must be whole images of {P}, all of them from the tower",
                actual=f"{len(slot)} vision tokens for {views.images} images",
                place="the vision tower",
            )
        images = counts // P
        first = np.cumsum(images) - images
        start = np.cumsum(images[::times]) - images[::times]  # of each sample, among the images of the run
        number = np.arange(total) - np.repeat(first, images)
        return cls(
            image=torch.from_numpy(np.repeat(np.repeat(start, times), images) + number),
            sample=torch.from_numpy(sample[::P].copy()),
            number=torch.from_numpy(number),
            slots=torch.from_numpy(slot.reshape(total, P)),
            per_sample=torch.from_numpy(images),
            shape=(prompt.samples, prompt.slots),
            most=int(images.max()),
        )

    def to(self, device: torch.device) -> _Places:
        names = ("image", "sample", "number", "slots", "per_sample")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def given(self, values: torch.Tensor | None) -> torch.Tensor | None:
        """``spread`` of what there is."""
        return None if values is None else self.spread(values)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[K, P, ...] of the images at the slots of the prompts, [B, S0, ...]; zero at all others."""
        chosen = values.index_select(0, self.image)
        found = values.new_zeros(self.shape[0] * self.shape[1], *values.shape[2:])
        flat = self.sample[:, None] * self.shape[1] + self.slots
        return found.index_copy_(0, flat.flatten(), chosen.flatten(0, 1)).view(*self.shape, *values.shape[2:])

    def spread_rows(self, rows: AttentionRows) -> AttentionRows:
        """The rows of all images of a sample side by side; that of a class token is at its image's first patch."""
        (B, S), R = self.shape, rows.slots.shape[1]
        chosen = [part.index_select(0, self.image) for part in (rows.values, rows.slots, rows.weights)]
        values = rows.values.new_zeros(B, self.most, R, S)
        values[self.sample[:, None], self.number[:, None], :, self.slots] = chosen[0].transpose(1, 2)
        slots = self.slots.new_zeros(B, self.most, R)
        slots[self.sample, self.number] = self.slots.gather(1, chosen[1].clamp(min=0))
        weights = rows.weights.new_zeros(B, self.most, R)
        weights[self.sample, self.number] = chosen[2] / self.per_sample[self.sample][:, None]
        return AttentionRows(values.view(B, -1, S), slots.view(B, -1), weights.view(B, -1))
