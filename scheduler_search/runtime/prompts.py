"""What a forward pass is asked to read: which of its slots are vision tokens, and which belong to the prompt itself.

Knows: input ids, padding masks, and vision masks for prompts that come as embeddings. Does not know: schedules. One
transfer of ids, or vision mask, and padding mask is all that the device is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Grid, Prompt, Reducer
from scheduler_search.runtime.families import Family
from scheduler_search.runtime.views import Beside


@dataclass(frozen=True)
class Asked:
    """What the caller said about the prompt beside the arguments of the forward pass.

    Args:
        vision: [B, S] bool, for prompts that come as embeddings; None if nothing was said.
        generates: whether a ``generate`` of the hooked model is under way.
        slots: length of the prompt that this ``generate`` was given; None if it is not known, or none is under way.
        views: what the tower gave beside features that were computed before.
        questions: of each sample; None if nothing was said.
    """

    vision: torch.Tensor | None = None
    generates: bool = False
    slots: int | None = None
    views: Beside | None = None
    questions: tuple[str, ...] | None = None


class PromptReader:
    """Reads the prompts of one model for the rules of one schedule."""

    def __init__(self, family: Family, config: Any, rules: tuple[Reducer, ...]) -> None:
        self._family, self._config = family, config
        self._needs_grids = any(rule.reads.grids for rule in rules)
        self._needs_images = any(rule.reads.images or rule.per_image for rule in rules)
        self._needs_ids = any(rule.reads.ids for rule in rules)

    def read(self, arguments: Mapping[str, Any], asked: Asked) -> Prompt:
        """The prompt of a pass whose arguments have ``input_ids``, or embeddings that ``asked.vision`` describes.

        Raises:
            UnsupportedError: a vision mask that does not fit, or a rule that needs more than it says.
        """
        ids = arguments.get("input_ids")
        if ids is None:
            vision = self._explicit(arguments["inputs_embeds"], asked)
            content = vision.astype(np.int64)
        else:
            content = ids.cpu().numpy().astype(np.int64, copy=False)
            vision = np.isin(content, self._family.vision_token_ids(self._config))
        mask = arguments.get("attention_mask")
        real = np.ones(content.shape, np.bool_) if mask is None else mask.cpu().numpy().astype(np.bool_)
        given = asked.slots if asked.slots is not None and asked.slots < content.shape[1] else None
        vision = vision & real
        vision[:, given:] &= given is None  # a model may well generate the id of an image token: that is no image
        return Prompt(content, real, vision, *self._extras(vision), given)

    def _explicit(self, embeddings: torch.Tensor, asked: Asked) -> npt.NDArray[np.bool_]:
        assert asked.vision is not None
        if self._needs_ids:
            raise UnsupportedError(
                "a rule that is keyed by input_ids cannot choose among embeddings",
                place="rule 'random'",
                remedy="pass input_ids, or use a rule that ranks by attention",
            )
        mask, expected = asked.vision, tuple(embeddings.shape[:2])
        if asked.generates and mask.shape[0] and not expected[0] % mask.shape[0]:
            mask = mask.repeat_interleave(expected[0] // mask.shape[0], dim=0)  # as generate repeats for its beams
        if tuple(mask.shape) != expected:
            raise UnsupportedError(
                f"the vision mask must have the shape of the embeddings, {list(expected)}",
                actual=list(asked.vision.shape),
                place="vision_mask",
                remedy="pass one value for each embedding of the prompt, padding included",
            )
        explicit: npt.NDArray[np.bool_] = mask.cpu().numpy()
        return explicit

    def _extras(self, vision: npt.NDArray[np.bool_]) -> tuple[Any, npt.NDArray[np.int64] | None]:
        """Grids and images, where a rule asks for them."""
        grids: tuple[tuple[Grid, ...], ...] = ()
        if self._needs_grids:
            grids = tuple(self._family.grids(self._config, int(count)) for count in vision.sum(axis=1))
        return grids, self._family.images(self._config, vision) if self._needs_images else None
