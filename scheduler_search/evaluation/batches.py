"""The inputs of one chunk: prompts and images through the processor, vision features once.

Knows: how a chunk of samples becomes left-padded batches, its parts, what of them is kept, and that the vision tower
runs once for each that memory is found for, unless a reduction acts inside it. Does not know: metrics, which split the
chunk is from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scheduler_search.errors import ModelError
from scheduler_search.evaluation.features import Change, Features, OwnShelf, Pixels, Shelf
from scheduler_search.evaluation.layout import parts_of
from scheduler_search.evaluation.prompts import Prompt
from scheduler_search.evaluation.samples import Sample
from scheduler_search.rule import Reads
from scheduler_search.runtime import (
    Beside,
    QuestionEncoder,
    Questions,
    SmallerImages,
    compute_features,
    compute_smaller_features,
    smaller_images,
    views_wanted,
    vision_tokens,
)
from scheduler_search.schedule.values import Reduction


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
    """A batch whose vision features are computed on first use and then kept as memory allows; the pixels are let go.

    Args:
        rows: which samples of its chunk it holds; all of them by default.
        shelf: where the features are; by default they are kept on the host, whatever memory they take.
        again: makes the batch once more, for features that could not be kept; None where pixels must be held.
        wanted: what rules of later runs read of the tower, so that it need not run for that alone.
        questions: of its samples, for rules that compare patches with them.
    """

    def __init__(
        self,
        batch: Batch,
        rows: Sequence[int] | None = None,
        *,
        shelf: Shelf | None = None,
        again: Callable[[], Batch] | None = None,
        wanted: tuple[Reads, ...] = (),
        questions: Questions | None = None,
    ) -> None:
        self.language = batch.language
        self.rows = tuple(range(len(batch.input_ids)) if rows is None else rows)
        self._vision: dict[str, Tensor] | None = batch.vision
        self._shelf = OwnShelf() if shelf is None else shelf
        self._again = again
        self._wanted = wanted
        self._questions = questions

    @property
    def questions(self) -> tuple[str, ...] | None:
        """What is asked about its samples, for passes over whole arguments; None where no rule reads it."""
        return None if self._questions is None else self._questions.texts

    def arguments(self, model: Any, device: torch.device) -> dict[str, Any]:
        """Arguments of the model's forward or generate, on ``device``, with the stored features for its pixels."""
        return self.inputs(model, device, None)[0]

    def inputs(
        self, model: Any, device: torch.device, reduction: Reduction | None
    ) -> tuple[dict[str, Any], Beside | None]:
        """As ``arguments``, with the features that a reduction leaves inside the tower, or of smaller images.

        Beside them is what its rules read of the tower, or what is left of the images.

        Args:
            reduction: what the arguments are for; None for a pass that reads nothing of the tower but its features.
        """
        vision, wanted = _asked(model, reduction)
        features = self._shelf.get(vision)
        if features is None or (vision is not None and features.views is None) or set(wanted) - set(features.seen):
            everything = {*wanted, *(() if features is None else features.seen), *(() if vision else self._wanted)}
            features = self._compute(model, device, vision, tuple(everything))
            self._shelf.keep(features, vision)
        features = features.to(device)
        return _on(device, self.language) | {"mm_encoder_outputs": {"image": features.output}}, features.views

    def whole_arguments(self, device: torch.device) -> dict[str, Any]:
        """Arguments with the pixels, so that the model runs its tower itself."""
        return _on(device, self.language) | _on(device, self._pixels(often=True))

    def _compute(self, model: Any, device: torch.device, vision: Change | None, wanted: tuple[Reads, ...]) -> Features:
        pixels = _on(device, self._pixels(often=vision is not None))
        with torch.inference_mode():
            compute = partial(_tower(model).get_image_features, **pixels, return_dict=True)
            if isinstance(vision, SmallerImages):
                counts = vision_tokens(model, self.language["input_ids"]).sum(1).tolist()
                features = Features.of(*compute_smaller_features(model, compute, vision, counts))
            else:
                features = Features.of(*compute_features(model, compute, vision, wanted, self._questions))
        self._check_counts(model, features.count)
        return features

    def _pixels(self, *, often: bool) -> Mapping[str, Tensor]:
        """Arguments of the vision tower, the same whenever they are made.

        Args:
            often: whether they will be asked for again, so that they are kept if memory allows.
        """
        held = self._shelf.pixels()
        found = self._vision if held is None else held.arguments
        if found is None:
            if self._again is None:
                raise AssertionError("pixels that cannot be made again are held")
            found = self._again().vision
        if often and held is None:
            self._shelf.keep_pixels(Pixels(found))
        if self._again is not None:
            self._vision = None
        return found

    def _check_counts(self, model: Any, found: int) -> None:
        expected = int(vision_tokens(model, self.language["input_ids"]).sum())
        if found != expected:
            raise ModelError(
                "processor and model must agree on the number of vision tokens",
                actual=f"{expected} placeholders for {found} features",
                remedy="check patch_size and num_additional_image_tokens of the processor",
            )


def _asked(model: Any, reduction: Reduction | None) -> tuple[Change | None, tuple[Reads, ...]]:
    """What a reduction does inside the tower, or in front of it, and what its entry rule reads of it."""
    if reduction is None:
        return None, ()
    smaller = smaller_images(reduction)
    if smaller is not None:
        return smaller, ()
    vision = reduction.vision
    reduces = vision is not None and vision.keep_rates[-1] < 1.0
    return vision if reduces else None, views_wanted(model, reduction.entry_rule)


def _tower(model: Any) -> Any:
    """The module whose forward asks itself for image features; the model's own method may not pass all arguments on."""
    return model.base_model


def make_parts(
    samples: Sequence[Sample],
    prompt: Prompt,
    model: Any,
    shelf: Callable[[int], Shelf] | None = None,
    wanted: tuple[Reads, ...] = (),
    encoder: QuestionEncoder | None = None,
) -> tuple[Part, ...]:
    """The samples of a chunk as one batch, or as several where their lengths differ much (``layout``).

    Args:
        shelf: where the features of a part are, by its index; see ``Part``.
        wanted: see ``Part``.
        encoder: of their questions, where rules read these.
    """
    whole = make_batch(samples, prompt, model)
    found = []
    layout = parts_of(whole.lengths)
    for index, rows in enumerate(layout):
        again = partial(make_batch, [samples[row] for row in rows], prompt, model)
        batch = whole if len(layout) == 1 else again()
        own = None if shelf is None else shelf(index)
        texts = tuple(samples[row].question for row in rows)
        questions = None if encoder is None else Questions(encoder, texts)
        found.append(Part(batch, rows, shelf=own, again=again, wanted=wanted, questions=questions))
    return tuple(found)


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


def _on(device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
