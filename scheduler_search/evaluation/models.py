"""Loading the model and the processor of a study, and the text encoder beside it.

Knows: how they are loaded, from where ``checkpoints`` finds them, and onto which device. Does not know: data, prompts,
reductions.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from scheduler_search.errors import ModelError, UnsupportedError
from scheduler_search.evaluation.checkpoints import (
    Checkpoint,
    digests,
    find_checkpoint,
    loading_error,
    quiet_library,
)
from scheduler_search.evaluation.encoders import LoadedEncoder, load_encoder
from scheduler_search.evaluation.placement import Placement, check_maps_are_served, placement_of
from scheduler_search.runtime.question import LOADING_ERRORS, QuestionEncoder

if TYPE_CHECKING:
    from scheduler_search.study.sections import ModelSection


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with its processor.

    Args:
        weights: digest of the safetensors files of a directory, or the resolved commit of the hub.
        files: digest of configuration, tokenizer and processor files, or the resolved commit.
        revision: the resolved commit; None for a directory.
        device: where its inputs go, and all of it is unless there is a ``placement``.
        encoder: of questions, where the study names one.
    """

    model: Any
    processor: Any
    checkpoint: Checkpoint
    device: torch.device
    weights: str
    files: str
    revision: str | None
    placement: Placement | None = None
    encoder: LoadedEncoder | None = None

    @property
    def question_encoder(self) -> QuestionEncoder | None:
        """The encoder alone."""
        return None if self.encoder is None else self.encoder.encoder

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that it runs on."""
        return (self.device,) if self.placement is None else self.placement.devices


def load_model(section: ModelSection) -> LoadedModel:
    """Load model and processor: weights from safetensors only, all of them, evaluation mode, on the study's device(s).

    ``dtype = "auto"`` is float32 on a CPU and the dtype of the checkpoint elsewhere. Of the checkpoint's generation
    settings only the special tokens stay, so that generation is plain greedy decoding.

    Raises:
        ModelError: the model or its processor cannot be loaded.
        UnsupportedError: the model cannot be given vision features that were computed before.
    """
    checkpoint = find_checkpoint(section.id, section.revision)
    if section.device_map is not None:
        check_maps_are_served(checkpoint.id)
    device = _device(section.device)
    with quiet_library():
        processor = _load_processor(section, checkpoint)
        model = _load_weights(section, checkpoint, _dtype(section.dtype, device))
        encoder = load_encoder(section, _dtype(section.dtype, device))
    _check_serves_stored_features(model, checkpoint.id)
    model.generation_config = _greedy(model.generation_config, processor.tokenizer.pad_token_id)
    model.eval().requires_grad_(False)
    placement = None
    if section.device_map is None:
        _move(model, device, checkpoint.id)
    else:
        placement = placement_of(model, section.device_map, checkpoint.id)
        device = placement.main
    if encoder is not None:
        _move(encoder.encoder, device, encoder.id)
    revision = getattr(model.config, "_commit_hash", None) if checkpoint.directory is None else None
    weights, files = digests(checkpoint, revision)
    return LoadedModel(model, processor, checkpoint, device, weights, files, revision, placement, encoder)


def _move(model: Any, device: torch.device, place: str) -> None:
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise _no_room(error, place) from None


def _no_room(error: torch.OutOfMemoryError, place: str) -> ModelError:
    return ModelError(
        "the model must fit into the memory of its device, with room for a chunk",
        actual=str(error).split(" If reserved")[0][:300],
        place=place,
        remedy="choose a smaller [model] dtype, fewer workers per GPU ([workers] gpus), a GPU with more memory, or"
        ' several: [model] device_map = "auto" and [workers] gpus = 2 or more',
    )


def _load_processor(section: ModelSection, checkpoint: Checkpoint) -> Any:
    try:
        processor = AutoProcessor.from_pretrained(
            checkpoint.source,
            revision=checkpoint.revision,
            local_files_only=checkpoint.offline,
            trust_remote_code=section.trust_remote_code,
        )
    except LOADING_ERRORS as error:
        raise loading_error("the processor of the model must load", error, checkpoint) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(
            "the processor must take images and text", actual=type(processor).__name__, place=checkpoint.id
        )
    if getattr(processor, "patch_size", 0) is None:
        raise ModelError("the processor must know the patch size", place=checkpoint.id, remedy="set it in its files")
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # any token will do: padding is masked
    return processor


def _load_weights(section: ModelSection, checkpoint: Checkpoint, dtype: torch.dtype | str) -> Any:
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            checkpoint.source,
            revision=checkpoint.revision,
            local_files_only=checkpoint.offline,
            dtype=dtype,
            attn_implementation=section.attention,
            trust_remote_code=section.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **({} if section.device_map is None else {"device_map": section.device_map}),
        )
    except torch.OutOfMemoryError as error:
        raise _no_room(error, checkpoint.id) from None
    except LOADING_ERRORS as error:
        raise loading_error("the model must load", error, checkpoint) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            "a checkpoint must hold every weight of the model",
            actual=f"{len(missing)} missing, the first is {missing[0]}",
            place=checkpoint.id,
        )
    return model


def _check_serves_stored_features(model: Any, place: str) -> None:
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise UnsupportedError(
            "a model must accept vision features that were computed before (mm_encoder_outputs)",
            actual=type(model).__name__,
            place=place,
            remedy="update transformers, or choose another model",
        )


def _greedy(settings: GenerationConfig, pad_token_id: int) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=settings.bos_token_id,
        eos_token_id=settings.eos_token_id,
        pad_token_id=pad_token_id,
        do_sample=False,
        num_beams=1,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            "the device of the model must exist",
            actual=repr(name),
            place="[model] device",
            remedy=f"this machine has {torch.cuda.device_count()} CUDA devices",
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype: torch.dtype = getattr(torch, name)
    return dtype
