"""Images made smaller in front of the vision tower, for families whose number of vision tokens follows their size.

Each image is scaled to the smallest grid near its aspect with at least the vision tokens that it is promised, and runs
through tower and projector so; then ``reducers.downsample`` brings its features to exactly the promised number. They
are put in the slots of the whole image below them, the other slots are not numbers and dropped in front of the first
decoder layer: the prompt, and the positions of what is left of it, stay as they are.

Knows: patches as processors pack them, and grids of images. Does not know: decoders. What is done follows from the
sizes of the images and the lengths of the prompts alone, which the host knows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Grid, Prompt
from scheduler_search.reducers.downsample import resampling, smaller_grid
from scheduler_search.reducers.pooling import share_regions
from scheduler_search.rule import Rule, shrinks_images
from scheduler_search.runtime.families import family_of
from scheduler_search.runtime.families.tower import ScalableTower
from scheduler_search.runtime.prompts import Asked, PromptReader
from scheduler_search.runtime.refusals import check_not_compiling, check_unscheduled
from scheduler_search.runtime.views import Arrival, LeftOfImages, other_images
from scheduler_search.schedule.counts import keep_count
from scheduler_search.schedule.values import Reduction

T = TypeVar("T")


@dataclass(frozen=True)
class SmallerImages:
    """What is asked for: the share of each sample's vision tokens that is left, and the rule with its parameters."""

    keep_rate: float
    rule: Rule


def smaller_images(reduction: Reduction) -> SmallerImages | None:
    """What a reduction does to images; None for nothing."""
    if reduction.entry_rule is None or reduction.image_rate == 1.0:
        return None
    return SmallerImages(reduction.image_rate, reduction.entry_rule)


# -- pixels


def unpack(patches: torch.Tensor, grid: Grid, tower: ScalableTower) -> torch.Tensor:
    """The image [values, height, width] of the packed patches of one; ``grid`` is in vision tokens."""
    blocks = (grid.height, grid.width, tower.merge, tower.merge, -1, tower.patch, tower.patch)
    image = patches.reshape(blocks).permute(4, 0, 2, 5, 1, 3, 6)
    side = tower.merge * tower.patch
    return image.reshape(-1, grid.height * side, grid.width * side)


def pack(image: torch.Tensor, tower: ScalableTower) -> torch.Tensor:
    """The packed patches [n, values x patch x patch] of an image [values, height, width]."""
    values, height, width = image.shape
    side = tower.merge * tower.patch
    blocks = (values, height // side, tower.merge, tower.patch, width // side, tower.merge, tower.patch)
    return image.reshape(blocks).permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, values * tower.patch**2)


def scaled(patches: torch.Tensor, grid: Grid, small: Grid, tower: ScalableTower) -> torch.Tensor:
    """The packed patches of an image, scaled to another grid: bicubic with antialiasing, as processors do."""
    side = tower.merge * tower.patch
    image = unpack(patches, grid, tower)
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    image = F.interpolate(image[None], (small.height * side, small.width * side), mode="bicubic", antialias=True)[0]
    return pack(image, tower).to(patches.dtype)


# -- one run of the tower


class ImageRun:
    """One run of the tower over the images of a batch.

    Args:
        grids: of the images, in vision tokens.
        vision_tokens: N of each sample.
    """

    def __init__(
        self, tower: ScalableTower, asked: SmallerImages, grids: Sequence[Grid], vision_tokens: Sequence[int]
    ) -> None:
        self._tower, self._rule, self._grids = tower, asked.rule, grids
        counts: list[int] = []
        for tokens, images in zip(vision_tokens, _by_sample(grids, vision_tokens), strict=True):
            counts += share_regions(tuple(grid.tokens for grid in images), keep_count(asked.keep_rate, tokens))
        self._small = [smaller_grid(grid, max(count, 1)) for grid, count in zip(grids, counts, strict=True)]
        plans = zip(self._small, grids, counts, strict=True)
        self._plans = [resampling(small, grid, count, asked.rule) for small, grid, count in plans]
        self._vision_tokens = tuple(vision_tokens)
        self.changes = tuple(counts) != tuple(grid.tokens for grid in grids)

    def enter(self, patches: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches [n, ...] and sizes [K, 3] of the smaller images; those that lose nothing are as they were."""
        per_token = self._tower.merge**2
        packed = patches.split([grid.tokens * per_token for grid in self._grids])
        found = [
            own if small == grid else scaled(own, grid, small, self._tower)
            for own, grid, small in zip(packed, self._grids, self._small, strict=True)
        ]
        merge = self._tower.merge
        rows = [[1, small.height * merge, small.width * merge] for small in self._small]
        return torch.cat(found), torch.tensor(rows, dtype=sizes.dtype, device=sizes.device)

    def spread(self, features: torch.Tensor) -> torch.Tensor:
        """Features [m, D] of the smaller images at the tokens of the whole ones, [N, D]; elsewhere not numbers."""
        device, precise = features.device, torch.promote_types(features.dtype, torch.float32)
        small, large = _starts(self._small), _starts(self._grids)
        plans = list(zip(self._plans, small, large, strict=True))
        cells = torch.from_numpy(np.concatenate([plan.cells + first for plan, first, _ in plans])).to(device)
        slots = torch.from_numpy(np.concatenate([plan.slots + first for plan, _, first in plans])).to(device)
        one, two, three, four = (features[rows].to(precise) for rows in cells.unbind(1))
        tokens = ((one + two) + (three + four)) / 4  # in pairs: the mean of four equal ones is exact
        total = sum(grid.tokens for grid in self._grids)
        whole = features.new_full((total, features.shape[1]), float("nan"))
        return whole.index_copy_(0, slots, tokens.to(features.dtype))

    @property
    def left(self) -> LeftOfImages:
        """Which vision tokens of each sample there are."""
        kept = np.zeros(sum(grid.tokens for grid in self._grids), np.bool_)
        for plan, first in zip(self._plans, _starts(self._grids), strict=True):
            kept[plan.slots + first] = True
        return LeftOfImages(tuple(np.split(kept, np.cumsum(self._vision_tokens)[:-1])))


def _by_sample(grids: Sequence[Grid], vision_tokens: Sequence[int]) -> list[list[Grid]]:
    """The images of each sample; UnsupportedError where they do not make up its vision tokens."""
    left = list(reversed(grids))
    found: list[list[Grid]] = []
    for tokens in vision_tokens:
        images: list[Grid] = []
        while left and sum(grid.tokens for grid in images) < tokens:
            images.append(left.pop())
        found.append(images)
        if sum(grid.tokens for grid in images) != tokens:
            raise other_images(vision_tokens, f"images of {[grid.tokens for grid in grids]}")
    if left:
        raise other_images(vision_tokens, f"images of {[grid.tokens for grid in grids]}")
    return found


def _starts(grids: Sequence[Grid]) -> list[int]:
    ends = np.cumsum([0, *(grid.tokens for grid in grids)])
    return [int(end) for end in ends[:-1]]


# -- the hooks


class _Local(threading.local):
    """``expected``: N of the samples whose images this thread runs next. ``whole``: they are to stay as they are."""

    expected: tuple[int, ...] | None = None
    run: ImageRun | None = None
    left: LeftOfImages | None = None
    whole: bool = False


class ImageHooks:
    """The hooks that make images smaller in front of a tower, and their removal."""

    def __init__(self, tower: ScalableTower, asked: SmallerImages) -> None:
        self._tower, self._asked = tower, asked
        self._local = _Local()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on the model."""
        module = self._tower.module
        self._hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
        self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def remove(self) -> None:
        """Take them off; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def expect(self, vision_tokens: tuple[int, ...]) -> None:
        """Say whose images this thread runs next: samples with so many vision tokens."""
        self._local.expected = vision_tokens

    def expect_prompts(self, reader: PromptReader, positional: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        """As ``expect``, of what ``generate`` is called with: it runs the tower in front of the first pass."""
        given = (arguments.get("input_ids"), arguments.get("inputs"), *positional[:1])
        ids = next((one for one in given if isinstance(one, torch.Tensor)), None)
        if ids is not None and not self._local.whole:
            read = {"input_ids": ids, "attention_mask": arguments.get("attention_mask")}
            self.expect(reader.read(read, Asked()).vision_tokens)

    @property
    def left(self) -> LeftOfImages | None:
        """What this thread's last run left, since it was forgotten."""
        return self._local.left

    def forget(self, *, whole: bool = False) -> None:
        """Let go of what this thread's last run left.

        Args:
            whole: whether its next runs are of images that are kept whole.
        """
        self._local.expected = self._local.run = self._local.left = None
        self._local.whole = whole

    def arrival(self, prompt: Prompt, counts: tuple[int, ...], given: object, device: torch.device) -> Arrival:
        """What is left of the images of a prompt.

        Args:
            counts: vision tokens of each sample that are to be left.
            given: what was left beside features that were computed before.
        """
        left = self._local.left or given
        if not any(prompt.vision_tokens):
            return Arrival(None)
        if not isinstance(left, LeftOfImages):
            raise UnsupportedError(
                "vision features that were computed before must be those of the smaller images, and come with what is "
                "left of them",
                actual="features without it",
                place="handle.tower_views",
                remedy="pass pixel_values, or what compute_smaller_features gives beside the features",
            )
        return Arrival(None, torch.from_numpy(left.at(prompt, counts)).to(device))

    def _enter(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        local = self._local
        if local.whole or local.expected is None:
            return None
        check_not_compiling()
        patches = args[0] if args else kwargs["hidden_states"]
        sizes = args[1] if len(args) > 1 else kwargs["grid_thw"]
        local.run = run = ImageRun(self._tower, self._asked, self._grids(sizes), local.expected)
        local.left = run.left
        if not run.changes:
            local.run = None
            return None
        patches, sizes = run.enter(patches, sizes)
        return (patches,), {name: value for name, value in kwargs.items() if name != "hidden_states"} | {
            "grid_thw": sizes
        }

    def _grids(self, sizes: torch.Tensor) -> list[Grid]:
        merge, found = self._tower.merge, sizes.tolist()
        if any(frames != 1 for frames, _, _ in found):
            raise UnsupportedError(
                "only images can be made smaller in front of the tower",
                actual="a video",
                place=f"rule {self._asked.rule.name!r}",
                remedy="use a decoder rule for prompts with videos",
            )
        return [Grid(height // merge, width // merge) for _, height, width in found]

    def _leave(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        run, self._local.run = self._local.run, None
        if run is None or output is None:  # nothing was changed, or an exception
            return None
        output.pooler_output = run.spread(output.pooler_output)
        deeper = getattr(output, "deepstack_features", None)
        if deeper is not None:
            output.deepstack_features = [run.spread(features) for features in deeper]
        return output


def image_hooks(model: nn.Module, reduction: Reduction) -> ImageHooks | None:
    """The hooks that a reduction needs; None where it makes no images smaller.

    Raises:
        UnsupportedError: a rule that makes images smaller, on a model that cannot take them.
    """
    if reduction.entry_rule is None or not shrinks_images(reduction.entry_rule):
        return None
    tower, asked = family_of(model).scalable_tower(model), smaller_images(reduction)
    return None if asked is None else ImageHooks(tower, asked)


def compute_smaller_features(
    model: nn.Module, compute: Callable[[], T], asked: SmallerImages, vision_tokens: Sequence[int]
) -> tuple[T, LeftOfImages | None]:
    """What ``compute`` gives, which runs the tower once, of smaller images, and what is left of them.

    Args:
        vision_tokens: N of each sample whose images ``compute`` runs, in their order.

    Raises:
        UnsupportedError: a tower that cannot take smaller images, or that is under a schedule.
    """
    tower = family_of(model).scalable_tower(model)
    check_unscheduled(tower.module, ImageHooks)
    hooks = ImageHooks(tower, asked)
    hooks.attach()
    try:
        hooks.expect(tuple(vision_tokens))
        return compute(), hooks.left
    finally:
        hooks.remove()
