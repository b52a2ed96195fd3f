"""The inputs of one chunk: prompts and images through the processor once, vision features once.

Knows: how a chunk of samples becomes one left-padded batch, what of it is kept, and that the vision tower runs once for
it. Does not know: reductions, metrics, which split the chunk is from.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from scheduler_search.errors import ModelError
from scheduler_search.evaluation.prompts import Prompt
from scheduler_search.evaluation.samples import Sample
from scheduler_search.runtime import vision_tokens


@dataclass(frozen=True)
class Batch:
    """One chunk as the processor made it, on the host.

    Args:
        language: arguments of the language model, among them input_ids [B, S] and attention_mask [B, S].
        vision: arguments of ``get_image_features``, among them pixel_values.
    """

    language: dict[str, Tensor]
    vision: dict[str, Tensor]

    @property
    def input_ids(self) -> Tensor:
        """[B, S], padded on the left."""
        return self.language["input_ids"]


class Chunk:
    """A batch whose vision features are computed on first use and then kept on the host; the pixels are let go."""

    def __init__(self, batch: Batch) -> None:
        self.language = batch.language
        self._vision: dict[str, Tensor] | None = batch.vision
        self._features: tuple[Tensor, ...] | None = None

    def arguments(self, model: Any, device: torch.device) -> dict[str, Any]:
        """Arguments of the model's forward or generate, on ``device``, with the stored features for its pixels."""
        if self._features is None:
            self._features = self._compute(model, device)
            self._vision = None
        features = tuple(feature.to(device) for feature in self._features)
        return _on(device, self.language) | {
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}
        }

    def _compute(self, model: Any, device: torch.device) -> tuple[Tensor, ...]:
        if self._vision is None:
            raise AssertionError("pixels are let go only once their features are kept")
        with torch.inference_mode():
            output = model.get_image_features(**_on(device, self._vision), return_dict=True)
        features = tuple(feature.cpu() for feature in output.pooler_output)
        self._check_counts(model, sum(len(feature) for feature in features))
        return features

    def _check_counts(self, model: Any, found: int) -> None:
        expected = int(vision_tokens(model, self.language["input_ids"]).sum())
        if found != expected:
            raise ModelError(
                "processor and model must agree on the number of vision tokens",
                actual=f"{expected} placeholders for {found} features",
                remedy="check patch_size and num_additional_image_tokens of the processor",
            )


def make_batch(samples: Sequence[Sample], prompt: Prompt, model: Any) -> Batch:
    """The samples as one batch, padded on the left."""
    texts = [prompt.text(sample.question, sample.id) for sample in samples]
    inputs = prompt.processor(
        images=[sample.load_image() for sample in samples],
        text=texts,
        padding=True,
        return_tensors="pt",
        add_special_tokens=prompt.adds_special_tokens(texts[0]),
    )
    names = set(inspect.signature(model.get_image_features).parameters) & set(inputs)
    vision = {name: inputs[name] for name in names}
    return Batch({name: inputs[name] for name in inputs if name not in names}, vision)


def direct_arguments(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Arguments that let the model run its vision tower itself: what stored features are tested against."""
    return _on(device, batch.language) | _on(device, batch.vision)


def _on(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
