"""The sections of a study file as frozen values.

Knows: every key below a section, its type, range, default, and which keys exclude each other (those of ``[rule]`` and
``[search]`` are in ``rule_section`` and ``search_section``). Does not know: the file (``file``), how pydantic's
complaints are worded for people (``faults``), or whether a path or a model exists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from scheduler_search.study.section import Positive, Section, broken
from scheduler_search.study.values import SplitName

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]


class ModelSection(Section):
    """Which model is searched, and how it is run. ``id``: hub id, local directory, or ``testbed:tiny-llava``.

    ``device_map`` spreads one model over the GPUs of a worker, as ``from_pretrained`` does it; None for one device.
    ``text_encoder``: the CLIP model that questions are given to, for rules that ask for it.
    """

    id: Text
    revision: Text = "main"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = "auto"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    prompt: Text = "auto"
    trust_remote_code: bool = False
    text_encoder: Text | None = None
    text_encoder_revision: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_a_revision_of_its_encoder(cls, data: Any) -> Any:
        """The default is written out where there is an encoder, and absent where there is none."""
        if not isinstance(data, Mapping):
            return data
        if data.get("text_encoder") is not None:
            given = data.get("text_encoder_revision")
            return {**data, "text_encoder_revision": "main" if given is None else given}
        if data.get("text_encoder_revision") is not None:
            remedy = "name the text_encoder, or remove the key"
            raise broken("only a text_encoder has such a revision", key="text_encoder_revision", remedy=remedy)
        return data

    @model_validator(mode="after")
    def _is_placed_in_one_way(self) -> Self:
        if self.device_map is not None and self.device != "auto":
            rule = 'device_map chooses the devices itself, so device must be "auto"'
            remedy = "remove device, or device_map for a model that one device holds"
            raise broken(rule, key="device_map", actual=repr(self.device), remedy=remedy)
        return self

    @field_validator("prompt")
    @classmethod
    def _has_a_place_for_the_question(cls, prompt: str) -> str:
        if prompt != "auto" and "{question}" not in prompt:
            raise broken('prompt must be "auto" (the chat template of the processor) or contain {question}')
        return prompt


class SplitSection(Section):
    """How many samples a split has, and the file they come from where the splits do not share ``[data] path``."""

    samples: Positive
    path: Text | None = None


class DataSection(Section):
    """The data set and its splits; paths of a definition that was read from a file are absolute."""

    source: Literal["testbed", "jsonl"]
    path: Text | None = None
    images: Text | None = None
    metric: Literal["exact-match", "vqa-accuracy", "fidelity"] = "exact-match"
    search: SplitSection
    validation: SplitSection | None = None
    test: SplitSection | None = None
    chunk: Positive = 16
    max_new_tokens: Positive = 16

    @property
    def splits(self) -> dict[SplitName, SplitSection]:
        """The splits that the study has, by name, in the order search, validation, test."""
        named: dict[SplitName, SplitSection | None] = {
            "search": self.search,
            "validation": self.validation,
            "test": self.test,
        }
        return {name: split for name, split in named.items() if split is not None}

    def split_path(self, name: SplitName) -> str | None:
        """File of a split: its own, or the one of the section; None for the testbed."""
        return self.splits[name].path or self.path

    def image_folder(self, name: SplitName) -> Path | None:
        """Folder that the relative image paths of a split start from; None for the testbed."""
        path = self.split_path(name)
        if path is None:
            return None
        return Path(self.images) if self.images is not None else Path(path).parent

    @model_validator(mode="after")
    def _paths_fit_the_source(self) -> Self:
        if self.source == "testbed":
            self._refuse_paths()
        else:
            self._require_paths()
            self._refuse_shared_paths()
        return self

    def _refuse_paths(self) -> None:
        keys = [key for key in ("path", "images") if getattr(self, key) is not None]
        keys += [f"{name}.path" for name, split in self.splits.items() if split.path is not None]
        for key in keys:
            raise broken('source = "testbed" makes its own samples and takes no path', key=key, remedy="remove the key")

    def _require_paths(self) -> None:
        for name in self.splits:
            if self.split_path(name) is None:
                remedy = "give path in [data], or in every split"
                raise broken(f'source = "{self.source}" needs a path', key=name, remedy=remedy)

    def _refuse_shared_paths(self) -> None:
        """Splits that all draw from ``[data] path`` are cut apart by image; a file named for a split is read whole."""
        seen: dict[str, SplitName] = {}
        for name in self.splits:
            path = os.path.realpath(self.split_path(name) or "")
            other = seen.setdefault(path, name)
            if other != name and (self.splits[other].path is not None or self.splits[name].path is not None):
                remedy = "name another file, or give the file once as path of [data] to have it split by image"
                raise broken(f"{other} and {name} must not share data", key=f"{name}.path", actual=path, remedy=remedy)


_AMOUNT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMG])iB")
_POWERS = {"K": 10, "M": 20, "G": 30}


def _is_an_amount(value: object, info: ValidationInfo) -> object:
    if value is None or (type(value) is int and value == 0):
        return value
    if isinstance(value, str) and _AMOUNT.fullmatch(value):
        return value
    key = info.field_name
    rule = f"{key} must be 0 or a text of a number and KiB, MiB or GiB"
    raise broken(rule, actual=repr(value)[:60], remedy=f'for example {key} = "4GiB"')


Amount = Annotated[int | str | None, BeforeValidator(_is_an_amount)]


class WorkersSection(Section):
    """Who runs the chunks, and with what. Only ``threads`` can change a score, so only it is part of what a study is.

    All other keys may change when a study goes on.

    Args:
        executor: this process, or the workers of a Ray cluster.
        threads: CPU threads per worker, part of the evaluation key.
        count: Ray workers at once, at most; None for as many as the cluster holds.
        gpus: of each Ray worker, a fraction where several share one; None for one where the model runs on a GPU.
        cpus: of each Ray worker; None for ``threads``.
        memory: device memory of a worker for what it need not compute again; None for its default, 0 for none.
        prefix_memory: host memory of a worker for the same, beyond that; None for its default, 0 for none.
        chunk_timeout: seconds that a Ray worker may take for a chunk before it is replaced.
        attempts: how often one chunk may fail on Ray workers before the study stops.
    """

    executor: Literal["local", "ray"] = "local"
    threads: Positive = 1
    count: Positive | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    cpus: Annotated[float, Field(gt=0)] | None = None
    memory: Amount = None
    prefix_memory: Amount = None
    chunk_timeout: Annotated[float, Field(gt=0)] = 600.0
    attempts: Positive = 3

    @field_validator("gpus")
    @classmethod
    def _is_a_share_or_whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise broken("gpus must be a fraction of one GPU or a whole number", actual=repr(gpus))
        return gpus

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes; None where it is not given."""
        return _bytes(self.memory)

    @property
    def prefix_bytes(self) -> int | None:
        """``prefix_memory`` in bytes; None where it is not given."""
        return _bytes(self.prefix_memory)

    def identity(self) -> dict[str, object]:
        """What of this section is part of what a study is. ``executor`` was, before there was another than this."""
        return {"executor": "local", "threads": self.threads}


def _bytes(amount: int | str | None) -> int | None:
    found = _AMOUNT.fullmatch(amount) if isinstance(amount, str) else None
    if found is None:
        return None if amount is None else 0
    return int(float(found[1]) * 2 ** _POWERS[found[2]])
