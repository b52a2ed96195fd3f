"""Loading the model and the processor of a study, and the digests of what was loaded.

Knows: where a model comes from (the testbed, a local directory, the hub), how it is loaded, and how the library's many
errors become one line. Does not know: data, prompts, reductions.
"""

from __future__ import annotations

import hashlib
import inspect
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants as hub
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.utils import logging as transformers_logging

from scheduler_search.errors import ModelError, UnsupportedError
from scheduler_search.evaluation.placement import Placement, check_maps_are_served, placement_of
from scheduler_search.schedule.canonical import digest_of

if TYPE_CHECKING:
    from scheduler_search.study.sections import ModelSection

TESTBED = "testbed:"
# What from_pretrained raises for a directory, a repository or a file that it cannot use.
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)
_HUB_TIMEOUT_SECONDS = 10.0
_PROCESSOR_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is loaded from.

    Args:
        source: what from_pretrained is given: a directory or a hub id.
        id: hub id, or the name of the local directory, never its path.
        revision: of the hub; None for a directory.
        offline: whether only files that are already on this machine may be used.
    """

    source: str
    id: str
    revision: str | None
    offline: bool = True

    @property
    def directory(self) -> Path | None:
        """The local directory; None for a model of the hub."""
        return None if self.revision is not None else Path(self.source)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with its processor.

    Args:
        weights: digest of the safetensors files of a directory, or the resolved commit of the hub.
        files: digest of configuration, tokenizer and processor files, or the resolved commit.
        revision: the resolved commit; None for a directory.
        device: where its inputs go, and all of it is unless there is a ``placement``.
    """

    model: Any
    processor: Any
    checkpoint: Checkpoint
    device: torch.device
    weights: str
    files: str
    revision: str | None
    placement: Placement | None = None

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that it runs on."""
        return (self.device,) if self.placement is None else self.placement.devices


def find_checkpoint(section: ModelSection) -> Checkpoint:
    """Where the model of the study is.

    Raises:
        ModelError: an unknown testbed model, or a directory that is not there or holds no model.
    """
    if section.id.startswith(TESTBED):
        return _testbed_checkpoint(section.id.removeprefix(TESTBED))
    directory = Path(section.id).expanduser()
    if directory.is_dir():
        _check_directory(directory)
        return Checkpoint(str(directory), directory.resolve().name, None)
    if section.id[0] in "./~":
        raise ModelError(
            "the directory of the model must exist", actual=str(directory), remedy="check [model] id in the study file"
        )
    return Checkpoint(section.id, section.id, section.revision, offline=not _hub_answers())


def _hub_answers() -> bool:
    """Whether the hub can be reached; asked once, because the library itself retries every file for half a minute."""
    if hub.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(hub.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _testbed_checkpoint(name: str) -> Checkpoint:
    from scheduler_search import testbed

    if name != testbed.MODEL_NAME:
        remedy = f"the testbed has {TESTBED}{testbed.MODEL_NAME}"
        raise ModelError("a testbed model must be a known one", actual=repr(name), remedy=remedy)
    _check_directory(testbed.checkpoint())
    return Checkpoint(str(testbed.checkpoint()), name, None)


def _check_directory(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise ModelError("the directory of a model must hold a config.json", place=str(directory))
    if not any(directory.glob("*.safetensors")):
        raise ModelError(
            "the weights of a model must be safetensors files",
            place=str(directory),
            remedy="save the model with save_pretrained",
        )


def load_model(section: ModelSection) -> LoadedModel:
    """Load model and processor: weights from safetensors only, all of them, evaluation mode, on the study's device(s).

    ``dtype = "auto"`` is float32 on a CPU and the dtype of the checkpoint elsewhere. Of the checkpoint's generation
    settings only the special tokens stay, so that generation is plain greedy decoding.

    Raises:
        ModelError: the model or its processor cannot be loaded.
        UnsupportedError: the model cannot be given vision features that were computed before.
    """
    checkpoint = find_checkpoint(section)
    if section.device_map is not None:
        check_maps_are_served(checkpoint.id)
    device = _device(section.device)
    with _quiet_library():
        processor = _load_processor(section, checkpoint)
        model = _load_weights(section, checkpoint, _dtype(section.dtype, device))
    _check_serves_stored_features(model, checkpoint.id)
    model.generation_config = _greedy(model.generation_config, processor.tokenizer.pad_token_id)
    model.eval().requires_grad_(False)
    placement = None
    if section.device_map is None:
        _move(model, device, checkpoint.id)
    else:
        placement = placement_of(model, section.device_map, checkpoint.id)
        device = placement.main
    revision = getattr(model.config, "_commit_hash", None) if checkpoint.directory is None else None
    weights, files = _digests(checkpoint, revision)
    return LoadedModel(model, processor, checkpoint, device, weights, files, revision, placement)


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
    except _LOADING_ERRORS as error:
        raise _loading_error("the processor of the model must load", error, checkpoint) from error
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
    except _LOADING_ERRORS as error:
        raise _loading_error("the model must load", error, checkpoint) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            "a checkpoint must hold every weight of the model",
            actual=f"{len(missing)} missing, the first is {missing[0]}",
            place=checkpoint.id,
        )
    return model


def _loading_error(rule: str, error: Exception, checkpoint: Checkpoint) -> ModelError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    remedy = "check the directory: it must be one that save_pretrained wrote"
    if checkpoint.directory is None:
        remedy = "check [model] id and revision, and the network; or give a local directory"
    return ModelError(rule, actual=reason[:200], place=checkpoint.id, remedy=remedy)


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


def _digests(checkpoint: Checkpoint, revision: str | None) -> tuple[str, str]:
    directory = checkpoint.directory
    if directory is not None:
        weights, files = _files_digest(directory, ("*.safetensors",)), _files_digest(directory, _PROCESSOR_FILES)
        return weights, files
    if revision is None:
        raise ModelError("the commit of a hub model must be known", place=checkpoint.id)
    return revision, revision


def _files_digest(directory: Path, patterns: tuple[str, ...]) -> str:
    """``sha256:`` over names and contents of the files that match."""
    paths = sorted(path for pattern in patterns for path in directory.glob(pattern))
    return digest_of([[path.name, _file_digest(path)] for path in paths])


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _quiet_library() -> Iterator[None]:
    """No progress bars or warnings of the library meanwhile: what matters is raised, and the terminal is ours."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
