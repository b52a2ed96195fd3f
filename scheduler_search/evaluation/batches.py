"""The inputs of one chunk: prompts and images through the processor, vision features once.

Knows: how a chunk of samples becomes left-padded batches, its parts, what of them is kept, and that the vision tower
runs once for each. Does not know: reductions, metrics, which split the chunk is from.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from scheduler_search.errors import ModelError
from scheduler_search.evaluation.layout import parts_of
from scheduler_search.evaluation.prompts import Prompt
from scheduler_search.evaluation.samples import Sample
from scheduler_search.runtime import vision_tokens

# A tensor, or tensors for each image, for each decoder layer that takes some, or for each image of each of these.
Features = Tensor | Sequence["Features"]


@dataclass(frozen=True)
class Batch:
    """Samples as the processor made them, on the host.

    Args:
        language: arguments of the language model, among them input_ids [B, S] and attention_mask [B, S].
        vision: arguments of ``get_image_features``, among them pixel_values; some may be in ``language`` too.
    """

    language: dict[str, Tensor]
    vision: dict[str, Tensor]

    @property
    def input_ids(self) -> Tensor:
        """[B, S], padded on the left."""
        return self.language["input_ids"]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample, text and vision, without padding."""
        lengths: list[int] = self.language["attention_mask"].sum(1).tolist()
        return lengths


class Part:
    """A batch whose vision features are computed on first use and then kept on the host; the pixels are let go.

    Args:
        rows: which samples of its chunk it holds; all of them by default.
    """

    def __init__(self, batch: Batch, rows: Sequence[int] | None = None) -> None:
        self.language = batch.language
        self.rows = tuple(range(len(batch.input_ids)) if rows is None else rows)
        self._vision: dict[str, Tensor] | None = batch.vision
        self._features: ModelOutput | None = None

    def arguments(self, model: Any, device: torch.device) -> dict[str, Any]:
        """Arguments of the model's forward or generate, on ``device``, with the stored features for its pixels."""
        if self._features is None:
            self._features = self._compute(model, device)
            self._vision = None
        return _on(device, self.language) | {"mm_encoder_outputs": {"image": _move(self._features, device)}}

    def _compute(self, model: Any, device: torch.device) -> ModelOutput:
        if self._vision is None:
            raise AssertionError("pixels are let go only once their features are kept")
        with torch.inference_mode():
            output = _tower(model).get_image_features(**_on(device, self._vision), return_dict=True)
        features = _move(output, torch.device("cpu"))
        self._check_counts(model, _count(features[_main(features)]))
        return features

    def _check_counts(self, model: Any, found: int) -> None:
        expected = int(vision_tokens(model, self.language["input_ids"]).sum())
        if found != expected:
            raise ModelError(
                "processor and model must agree on the number of vision tokens",
                actual=f"{expected} placeholders for {found} features",
                remedy="check patch_size and num_additional_image_tokens of the processor",
            )


def _tower(model: Any) -> Any:
    """The module whose forward asks itself for image features; the model's own method may not pass all arguments on."""
    return model.base_model


def _main(output: ModelOutput) -> str:
    """Name of the features themselves: what Llama 4 calls its hidden state is projected already."""
    return "last_hidden_state" if output.get("pooler_output") is None else "pooler_output"


def _move(output: ModelOutput, device: torch.device) -> ModelOutput:
    """What models read of the output of ``get_image_features``, on ``device``, in the form in which they gave it."""
    names = (_main(output), "deepstack_features")
    return type(output)(**{name: _features_on(device, output[name]) for name in names if output.get(name) is not None})


def _features_on(device: torch.device, features: Features) -> Features:
    if isinstance(features, Tensor):
        return features.to(device)
    return tuple(_features_on(device, part) for part in features)


def _count(features: Features) -> int:
    """Vision tokens in features whose last dimension is the width."""
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    return sum(map(_count, features))


def make_parts(samples: Sequence[Sample], prompt: Prompt, model: Any) -> tuple[Part, ...]:
    """The samples of a chunk as one batch, or as several where their lengths differ much (``layout``)."""
    whole = make_batch(samples, prompt, model)
    parts = parts_of(whole.lengths)
    if len(parts) == 1:
        return (Part(whole),)
    return tuple(Part(make_batch([samples[row] for row in rows], prompt, model), rows) for rows in parts)


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
    return split_arguments(dict(inputs), model)


def split_arguments(inputs: dict[str, Tensor], model: Any) -> Batch:
    """Tell the arguments that ``get_image_features`` takes from those of the language model.

    What token positions follow from in some families, the heights and widths of images, is both.
    """
    vision = set(inspect.signature(_tower(model).get_image_features).parameters) & set(inputs)
    positions = getattr(_tower(model), "get_rope_index", None)
    shared = set() if positions is None else vision & set(inspect.signature(positions).parameters)
    language = set(inputs) - vision | shared
    return Batch({name: inputs[name] for name in inputs if name in language}, {name: inputs[name] for name in vision})


def direct_arguments(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Arguments that let the model run its vision tower itself: what stored features are tested against."""
    return _on(device, batch.language) | _on(device, batch.vision)


def _on(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
