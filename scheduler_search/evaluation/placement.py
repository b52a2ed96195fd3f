"""Where the parts of a loaded model are that is spread over several devices (``[model] device_map``).

Knows: that accelerate is needed, and how transformers says what it put where. Does not know: how a place is chosen
(transformers does, from the memory that is free) or how tensors get from one device to the next (accelerate, and
``runtime.placement``). Tested with weights on a CPU and on disk, and with devices that are labels; it has not run on a
machine with two GPUs, since none was available.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from scheduler_search.errors import ModelError
from scheduler_search.runtime import execution_device

_OFFLOADED = ("cpu", "disk")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Where the modules of a model run.

    Args:
        name: of the map, as the study file has it.
        modules: device by the name of a module; one that has its weights elsewhere runs on the main device.
        main: the device that inputs go to.
        offloaded: modules whose weights are brought from host memory or disk for every pass.
    """

    name: str
    modules: tuple[tuple[str, torch.device], ...]
    main: torch.device
    offloaded: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All that anything runs on, the main one first."""
        return tuple(dict.fromkeys([self.main, *(device for _, device in self.modules)]))

    @classmethod
    def of(cls, name: str, model: Any) -> Placement:
        """Where a model is that was loaded with a device map of this name."""
        whole = {"": model.device}  # nothing is noted where one device holds the whole model
        found: Mapping[str, Any] = getattr(model, "hf_device_map", whole)  # numbers of GPUs, devices, "cpu" or "disk"
        running = [_device(place) for place in found.values() if str(place) not in _OFFLOADED]
        main = execution_device(model, running[0] if running else torch.device("cpu"))
        modules = ((key, main if str(place) in _OFFLOADED else _device(place)) for key, place in found.items())
        elsewhere = ("disk",) if main.type == "cpu" else _OFFLOADED
        offloaded = tuple(key for key, place in found.items() if str(place) in elsewhere)
        return cls(name, tuple(modules), main, offloaded)


def _device(place: Any) -> torch.device:
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def check_maps_are_served(place: str) -> None:
    """ModelError where the package is missing that a device map needs."""
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError(
            "a model on several devices needs the package accelerate",
            actual="it is not installed",
            place=place,
            remedy="install it with: pip install -c constraints.txt '.[multi-gpu]'; or leave out [model] device_map",
        )


def placement_of(model: Any, name: str, place: str) -> Placement:
    """Where a model that was loaded with a device map of this name is; says so where not all of it is on devices."""
    found = Placement.of(name, model)
    if found.offloaded:
        _log.warning(
            "%s: the devices do not hold the whole model; %d of its %d parts are brought there for every pass, which "
            "is slow; more GPUs per worker ([workers] gpus) or a smaller [model] dtype would do without",
            place,
            len(found.offloaded),
            len(found.modules),
        )
    return found
