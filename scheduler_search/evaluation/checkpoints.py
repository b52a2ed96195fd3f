"""Where models of a study are, and the digests of what is there.

Knows: the testbed, local directories, the hub, and how the library's many errors become one line. Does not know: what
is loaded from there (``models``, ``encoders``).
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants as hub
from transformers.utils import logging as transformers_logging

from scheduler_search.errors import ModelError
from scheduler_search.runtime.question import reason_of
from scheduler_search.schedule.canonical import digest_of

TESTBED = "testbed:"
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


def find_checkpoint(name: str, revision: str, key: str = "id") -> Checkpoint:
    """Where a model of the study is, under its hub id, directory or testbed name.

    Args:
        key: of ``[model]`` that names it.

    Raises:
        ModelError: an unknown testbed model, or a directory that is not there or holds no model.
    """
    if name.startswith(TESTBED):
        return _testbed_checkpoint(name.removeprefix(TESTBED))
    directory = Path(name).expanduser()
    if directory.is_dir():
        _check_directory(directory)
        return Checkpoint(str(directory), directory.resolve().name, None)
    if name[0] in "./~":
        raise ModelError(
            "the directory of the model must exist",
            actual=str(directory),
            remedy=f"check [model] {key} in the study file",
        )
    return Checkpoint(name, name, revision, offline=not _hub_answers())


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


def loading_error(rule: str, error: Exception, checkpoint: Checkpoint) -> ModelError:
    """One line about what from_pretrained raised for a checkpoint."""
    remedy = "check the directory: it must be one that save_pretrained wrote"
    if checkpoint.directory is None:
        remedy = "check [model] id and revision, and the network; or give a local directory"
    return ModelError(rule, actual=reason_of(error), place=checkpoint.id, remedy=remedy)


def digests(checkpoint: Checkpoint, revision: str | None) -> tuple[str, str]:
    """Of the weights, and of configuration, tokenizer and processor files; for the hub, both are the commit."""
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
def quiet_library() -> Iterator[None]:
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
