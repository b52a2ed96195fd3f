"""What questions say to CLIP: its text encoder beside a model, in the space that text and patches share.

Knows: the text tower and the two projections of a ``CLIPModel``, and which vision towers they are of. Does not know:
prompts, hooks, or who compares what with what.

Every token of a question counts, CLIP's start and end token too; what is longer than CLIP's context (77 tokens of the
published models) is cut off. A patch is what the tower's last layer gives for it, through CLIP's own norm and
projection, whichever layer the decoder's features are taken from: this is what CLIP does with its class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from scheduler_search.errors import ModelError, UnsupportedError
from scheduler_search.reducers import Text
from scheduler_search.runtime.families.tower import Tower

# What from_pretrained raises for a directory, a repository or a file that it cannot use.
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)
_TOWER = "clip_vision_model"
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
_REMEDY = 'give the CLIP model whose tower this is, or use a rule with text_features = "decoder"'


class QuestionEncoder:
    """The text tower and the projections of one CLIP model; of its vision tower, only the last norm is held.

    Args:
        clip: a ``CLIPModel``.
        tokenizer: its own; it is made to pad on the right.
        name: what errors call it.

    Attributes:
        commit: of the hub, where it was loaded from there.
    """

    def __init__(self, clip: Any, tokenizer: Any, name: str = "CLIP") -> None:
        self.name, self._vision = name, clip.config.vision_config
        self.commit: str | None = getattr(clip.config, "_commit_hash", None)
        self._context = int(clip.config.text_config.max_position_embeddings)
        self._text, self._text_projection = clip.text_model, clip.text_projection
        self._norm, self._visual_projection = clip.vision_model.post_layernorm, clip.visual_projection
        self._modules = (self._text, self._text_projection, self._norm, self._visual_projection)
        for module in self._modules:
            module.eval().requires_grad_(False)
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token  # any token will do: padding is masked
        self._tokenizer = tokenizer

    def to(self, device: torch.device | str) -> QuestionEncoder:
        """The encoder itself, moved to a device."""
        for module in self._modules:
            module.to(device)
        return self

    @torch.no_grad()
    def encode(self, questions: Sequence[str]) -> Text:
        """The tokens of each question [B, T, E], T those of the longest, in float32 or better; padding is zero."""
        inputs = self._tokenizer(
            list(questions), padding=True, truncation=True, max_length=self._context, return_tensors="pt"
        )
        weight = self._text_projection.weight
        ids, mask = (inputs[name].to(weight.device) for name in ("input_ids", "attention_mask"))
        values = self._text_projection(self._text(input_ids=ids, attention_mask=mask).last_hidden_state)
        real = mask.to(torch.bool)
        precise = torch.promote_types(weight.dtype, torch.float32)
        return Text(values.to(precise).masked_fill(~real[..., None], 0.0), real)

    @torch.no_grad()
    def project(self, states: torch.Tensor) -> torch.Tensor:
        """[K, S, E] in the same space, on their device: the last hidden states [K, S, D] of the vision tower."""
        weight = self._visual_projection.weight
        found: torch.Tensor = self._visual_projection(self._norm(states.to(weight.device, weight.dtype)))
        return found.to(states.device)

    def check_tower(self, tower: Tower) -> None:
        """UnsupportedError for a vision tower that is not the one of this CLIP model, as far as its shape tells."""
        config: Any = tower.module.config
        if config.model_type != _TOWER:
            actual = f"a tower of type {config.model_type!r}"
        else:
            others = [name for name in _SHAPE if getattr(config, name) != getattr(self._vision, name)]
            if not others:
                return
            actual = ", ".join(f"{name} {getattr(config, name)}, not {getattr(self._vision, name)}" for name in others)
        raise UnsupportedError(
            f"questions in CLIP's space need a model whose vision tower is that of {self.name}",
            actual=actual,
            place="the vision tower",
            remedy=_REMEDY,
        )


def load_question_encoder(
    name_or_path: str | Path,
    revision: str = "main",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    offline: bool = False,
) -> QuestionEncoder:
    """The text side of a CLIP model: from safetensors files alone, without code that comes with them.

    Args:
        revision: of the hub.
        device: best that of the vision tower, and the same for ``dtype``.
        offline: whether only files that are already on this machine may be used.

    Raises:
        ModelError: what is there cannot be loaded, or is no CLIP model.
    """
    place = str(name_or_path)
    source: dict[str, Any] = {"revision": revision, "local_files_only": offline, "trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(place, **source).model_type
        if kind != "clip":
            raise ModelError("a text encoder must be a CLIP model", actual=f"type {kind!r}", place=place)
        tokenizer = AutoTokenizer.from_pretrained(place, **source)
        source.pop("trust_remote_code")
        clip, report = CLIPModel.from_pretrained(
            place, dtype=dtype, use_safetensors=True, output_loading_info=True, **source
        )
    except LOADING_ERRORS as error:
        raise _loading_error(error, place) from error
    missing = sorted(report["missing_keys"])
    if missing:
        actual = f"{len(missing)} missing, the first is {missing[0]}"
        raise ModelError("a checkpoint must hold every weight of the model", actual=actual, place=place)
    return QuestionEncoder(clip, tokenizer, place).to(device)


def reason_of(error: Exception) -> str:
    """The first line of what the library says, or what kind of error it is."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _loading_error(error: Exception, place: str) -> ModelError:
    return ModelError(
        "the text encoder must load",
        actual=reason_of(error),
        place=place,
        remedy="name a CLIP model with its tokenizer and safetensors weights, on the hub or in a directory",
    )


def check_encoder(encoder: QuestionEncoder | None, tower: Tower) -> None:
    """UnsupportedError where there is none, or one of another vision tower."""
    if encoder is None:
        raise UnsupportedError(
            'a rule with text_features = "clip" needs the text encoder of CLIP',
            place="question_encoder",
            remedy='pass question_encoder=load_question_encoder(...), or use text_features = "decoder"',
        )
    encoder.check_tower(tower)


@dataclass(frozen=True)
class Questions:
    """The questions of a batch, one of each sample, and who encodes them."""

    encoder: QuestionEncoder
    texts: tuple[str, ...]

    def encode(self) -> Text:
        """See ``QuestionEncoder.encode``."""
        return self.encoder.encode(self.texts)


def text_on(text: Text, device: torch.device) -> Text:
    """The same on a device; tensors that are there already are shared."""
    return Text(text.values.to(device), text.real.to(device))


def text_of(said: Text | Questions | None, samples: int, *, repeats: bool) -> Text:
    """What the questions of a pass over so many samples say.

    Args:
        said: the questions, or what they were computed to say before.
        repeats: whether samples may be there several times, side by side, as beam search has them.

    Raises:
        UnsupportedError: there are no questions, or not one of each sample.
    """
    if said is None:
        raise UnsupportedError(
            "a rule that compares patches with the question in CLIP's space must be told the questions",
            place="handle.questions",
            remedy="run the model inside `with handle.questions([...]):`, one text of each sample of the batch",
        )
    given = len(said.texts) if isinstance(said, Questions) else len(said.real)
    times = samples // given if given else 0
    if times * given != samples or (times > 1 and not repeats):
        raise UnsupportedError(
            f"there must be one question of each of the {samples} samples of the batch",
            actual=f"{given} questions",
            place="handle.questions",
        )
    text = said.encode() if isinstance(said, Questions) else said
    if times == 1:
        return text
    return Text(text.values.repeat_interleave(times, dim=0), text.real.repeat_interleave(times, dim=0))
