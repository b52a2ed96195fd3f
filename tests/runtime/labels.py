"""Several devices on a machine with one: every tensor has a label, and tensors of two labels never meet.

The tensors are those of the CPU, so results are, bit for bit, those of the CPU. Inside ``labelled_devices`` the label
is what ``.device`` says and what ``.to`` changes; a call with tensors of two labels raises ``MixedDevicesError``, as
CUDA does, but for scalars and indices on the host.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

HOST = torch.device("cpu")
FIRST, SECOND, THIRD = (torch.device("cpu", index) for index in range(3))
_DEVICE = torch.Tensor.device.__get__
_MOVES = (torch.Tensor.to, torch.Tensor.cpu)
_SAME_AS_FIRST = (torch.Tensor.copy_,)
_INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
_HOST_ONLY = (torch.Tensor.numpy, torch.Tensor.__array__)


class MixedDevicesError(RuntimeError):
    """Tensors of several devices met."""


def label_of(tensor: torch.Tensor) -> torch.device:
    """Where a tensor is said to be; the host unless it was said."""
    return getattr(tensor, "said_to_be_on", HOST)


def put(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Say where a tensor is."""
    tensor.said_to_be_on = device  # type: ignore[attr-defined]
    return tensor


class _Labels(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.moves = 0
        self.between = 0  # of them, those that neither start nor end on the host

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE:
            return label_of(args[0])
        if func in _MOVES:
            return self._move(func, args, kwargs)
        if func in _HOST_ONLY and label_of(args[0]) != HOST:
            raise MixedDevicesError(f"{func.__name__} of a tensor on {label_of(args[0])}")
        given = kwargs.get("device")
        if given is not None:
            kwargs["device"] = HOST
        device = self._meet(func, args, kwargs) if given is None else torch.device(given)
        result = func(*args, **kwargs)
        if func is torch.Tensor.__iter__:
            return iter([put(one, device) for one in result])
        known = {id(one) for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)}
        for one in tree_iter(result):
            if isinstance(one, torch.Tensor) and id(one) not in known:
                put(one, device)
        return result

    def _meet(self, func: Any, args: Any, kwargs: Any) -> torch.device:
        tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)]
        if func in _SAME_AS_FIRST:
            return label_of(tensors[0])
        if func in _INDEXING:
            tensors = [one for one in tensors if one is tensors[0] or label_of(one) != HOST]
        there = [label_of(one) for one in tensors if one.ndim or label_of(one) != HOST]
        if len(set(there)) > 1:
            shapes = ", ".join(f"{list(one.shape)} on {label_of(one)}" for one in tensors)
            raise MixedDevicesError(f"{getattr(func, '__name__', func)} of {shapes}")
        return there[0] if there else HOST

    def _move(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
        tensor, *rest = args
        target = HOST if func is torch.Tensor.cpu else kwargs.get("device")
        for one in rest:
            if isinstance(one, torch.Tensor):
                target = label_of(one)
            elif isinstance(one, str | torch.device):
                target = one
        device = label_of(tensor) if target is None else torch.device(target)
        rest = [HOST if isinstance(one, str | torch.device) else one for one in rest]
        if "device" in kwargs:
            kwargs["device"] = HOST
        moved = func(tensor, *rest, **kwargs)
        if device != label_of(tensor):
            self.moves += 1
            self.between += HOST not in (device, label_of(tensor))
            moved = moved.clone() if moved is tensor else moved
        return put(moved, device)


@contextmanager
def labelled_devices() -> Iterator[_Labels]:
    """Tensors are where their labels say meanwhile; those without one are on the host. Gives the moves so far."""
    labels = _Labels()
    with labels:
        yield labels


def spread(model: nn.Module, layers: nn.ModuleList, devices: list[torch.device], rest: torch.device) -> nn.Module:
    """Spread a model as ``device_map`` does: decoder layers over the devices in turn, and all else on ``rest``.

    accelerate puts its hooks on the modules of the map and on all below them. It is told that all is on the CPU, since
    it would move the weights, and where its hooks run the modules is said afterwards.
    """
    from accelerate import dispatch_model

    names = {module: name for name, module in model.named_modules()}
    turns = {names[layer]: devices[index % len(devices)] for index, layer in enumerate(layers)}
    above = {name.rsplit(".", depth)[0] for name in turns for depth in range(1, name.count(".") + 1)}
    placed = turns | {name: rest for name in _beside(model, {*above, ""}) if name not in turns}
    skipped = model._skip_keys_device_placement
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following device_map keys do not match any submodules")
        dispatch_model(model, dict.fromkeys(placed, "cpu"), skip_keys=skipped, force_hooks=True)
    for name, module in model.named_modules():
        device = next((placed[key] for key in placed if f"{name}.".startswith(f"{key}.")), rest)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            put(tensor, device)
        if hasattr(module, "_hf_hook"):
            module._hf_hook.execution_device = device  # type: ignore[union-attr,assignment]
    return model


def _beside(model: nn.Module, above: set[str]) -> Iterator[str]:
    """Names of the modules and weights right below the modules named, but for these modules themselves."""
    for name in above:
        module = model.get_submodule(name)
        below = (
            *module.named_children(),
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
        yield from ({f"{name}.{key}" if name else key for key, _ in below} - above)
