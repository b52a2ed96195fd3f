"""What a family must say for its tests: a configuration, and one image with its number of vision tokens.

To add a family: subclass ``Builder``, give ``name``, ``model_class``, ``config`` and ``image``, and add it to BUILDERS
in ``__init__``. Where the family differs from the usual, override

* ``attention``, if it does not have sdpa (Gemma 2 has a softcap);
* ``varying``, if its images have several sizes (else samples differ in their number of images),
* ``videos``, if ``image`` also makes an image of the size "video", whose ``token`` is VIDEO;
* ``collate``, if images of a batch are not simply stacked along the first dimension;
* ``extras``, for arguments that follow from the input ids (token_type_ids and the like),
* ``grid``, the vision tokens of an image as rows and columns; None where pooling must be refused,
* ``flops``, how far the arithmetic of costs may be from torch's FLOP counter, if that is more than 1 %.

Everything else (weights, prompts, padding, single samples) is done here, alike for all families. Vision placeholders
are the ids IMAGE and VIDEO in every family, so that the reference needs no family to find them. Images are drawn per
sample from a seed, so that a sample is the same alone and in every batch.
"""

from __future__ import annotations

import abc
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from tests.runtime.tiny import IMAGE, LAYERS, PAD, VIDEO, VOCABULARY  # noqa: F401  # builders take VIDEO from here

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 8,
}
SHAPES = ("single", "padded", "varying")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Image:
    """One image: its vision tokens, and its part of the vision arguments (first dimension: images, tiles, patches)."""

    tokens: int
    arguments: Tensors
    token: int = IMAGE


@dataclass(frozen=True)
class Sample:
    ids: torch.Tensor  # [S]
    images: tuple[Image, ...]


class Builder(abc.ABC):
    """Tiny models and inputs of one family."""

    name: str
    model_class: type[transformers.PreTrainedModel]
    attention: tuple[str, ...] = ("sdpa", "eager")
    # Images of each sample of the shape "varying", by what ``image`` knows as their size.
    varying: tuple[tuple[str, ...], ...] = (("usual",), ("usual", "usual"), ("usual",))
    videos: bool = False
    grid: tuple[int, int] | None = (6, 6)
    flops: float = 0.01

    @abc.abstractmethod
    def config(self) -> Any:
        """The family's own configuration class, with LAYERS decoder layers, VOCABULARY ids, IMAGE and VIDEO."""

    @abc.abstractmethod
    def image(self, size: str, generator: torch.Generator) -> Image:
        """A random image; sizes other than "usual" only where ``varying`` names them."""

    def collate(self, samples: Sequence[Sample]) -> Tensors:
        """The vision arguments of a batch."""
        parts: dict[str, list[torch.Tensor]] = {}
        for sample in samples:
            for image in sample.images:
                for name, value in image.arguments.items():
                    parts.setdefault(name, []).append(value)
        return {name: torch.cat(values) for name, values in parts.items()}

    def extras(self, input_ids: torch.Tensor) -> Tensors:  # noqa: ARG002
        """Arguments that follow from input_ids [B, S]."""
        return {}

    # -- the same for all families

    def build(self, attention: str = "sdpa", seed: int = 0) -> Any:
        """A model whose attention is far from uniform, so that rankings and outputs are not degenerate."""
        torch.manual_seed(seed)
        model: Any = self.model_class(self.config()).eval()
        model.set_attn_implementation(attention)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim >= 2:
                    weight.mul_(4.0 if "q_proj" in name or "k_proj" in name else 2.0)
        return model.requires_grad_(False)

    @property
    def shapes(self) -> tuple[str, ...]:
        """SHAPES, and "video" where there are videos."""
        return (*SHAPES, "video") if self.videos else SHAPES

    def samples(self, shape: str) -> list[Sample]:
        """Samples of one of ``shapes``; they differ in their text, so that a batch of them is padded."""
        usual: tuple[tuple[str, ...], ...] = (("usual",), ("usual",), ("usual",))
        video = (("video",), ("usual", "video"), ("usual",))
        images = {"single": usual[:1], "padded": usual, "varying": self.varying, "video": video}[shape]
        texts = ((3, 7), (5, 4), (2, 5))
        return [self.sample(row, *texts[row], sizes) for row, sizes in enumerate(images)]

    def sample(self, seed: int, before: int, after: int, sizes: Sequence[str]) -> Sample:
        """``before`` text tokens, images of these sizes with two text tokens between them, ``after`` text tokens."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.name} {seed}".encode()))
        images = tuple(self.image(size, generator) for size in sizes)
        parts = [_text(before, generator)]
        for index, image in enumerate(images):
            if index:
                parts.append(_text(2, generator))
            parts.append(torch.full((image.tokens,), image.token))
        return Sample(torch.cat([*parts, _text(after, generator)]), images)

    def batch(self, samples: Sequence[Sample]) -> Tensors:
        """Left-padded arguments of forward and generate."""
        length = max(len(sample.ids) for sample in samples)
        ids = torch.full((len(samples), length), PAD)
        for row, sample in enumerate(samples):
            ids[row, length - len(sample.ids) :] = sample.ids
        language = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
        return language | self.extras(ids) | self.collate(samples)


def _text(tokens: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(3, 80, (tokens,), generator=generator)


def pixels(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)
