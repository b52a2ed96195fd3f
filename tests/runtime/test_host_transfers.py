"""No host synchronisation per layer: what a pass asks of the device does not grow with the number of layers.

On a GPU each of these waits for the device. On the CPU they are counted: operators that read a value out (seen by a
dispatch mode), methods that copy a tensor to the host, and copies from the host (``from_numpy``, ``tensor``).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scheduler_search.rule import make_rule
from scheduler_search.runtime import apply_reduction
from scheduler_search.schedule.values import Reduction
from tests.runtime.flash import emulated_kernels, use_flash
from tests.runtime.tiny import batch, build

# Operators whose result, or its shape, is a value that the host must wait for.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.repeat_interleave.Tensor,
}
METHODS = ("cpu", "numpy", "tolist")


class _Operators(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indexed_by_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in WAITING or indexed_by_mask:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()

    def counting(name: str, original: Any) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if not isinstance(result, torch.Tensor) or result.numel():  # a cache layer starts as an empty tensor
                counts[name] += 1
            return result

        return method

    with pytest.MonkeyPatch.context() as patch, _Operators(counts):
        for name in METHODS:
            patch.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
        for name in ("from_numpy", "tensor", "as_tensor"):
            patch.setattr(torch, name, counting(name, getattr(torch, name)))
        yield counts


def every_layer(layers: int, rule: str, entry: str | None = None, **parameters: Any) -> Reduction:
    """Something is chosen in front of every layer that the rule can act at."""
    rates = [1.0 - 0.9 * (layer / layers) for layer in range(layers)]
    if entry is not None:
        rates = [0.95 * rate for rate in rates]
    return Reduction(tuple(rates), make_rule(rule, parameters), None if entry is None else make_rule(entry))


RULES: dict[str, dict[str, Any]] = {
    "attention-rank": {"rule": "attention-rank"},
    "per-image": {"rule": "attention-rank", "quota": "per-image"},
    "fastv": {"rule": "fastv", "head_reduction": "max"},
    "fastv-window": {"rule": "fastv-window", "window": 2},
    "importance-redundancy": {"rule": "importance-redundancy"},
    "pyramid-drop": {"rule": "pyramid-drop"},
    "random": {"rule": "random", "entry": "random"},
    "pooling": {"rule": "attention-rank", "entry": "pooling"},
    "pooling in the decoder": {"rule": "pooling"},
    "sparsevlm": {"rule": "sparsevlm", "recycled": 0.5, "tokens_per_cluster": 3},
    "dart": {"rule": "dart"},
    "ficoco-l": {"rule": "ficoco-l"},
    "visiontrim-decoder": {"rule": "visiontrim-decoder"},
    "divprune": {"rule": "attention-rank", "entry": "divprune"},
    "cdpruner": {"rule": "attention-rank", "entry": "cdpruner"},
}


@cache
def plain_transfers(attention: str, name: str) -> tuple[Counter[str], Counter[str]]:
    """Those of the model itself."""
    return transfers(built(attention, 6), batch(name), None)


@cache
def built(attention: str, layers: int) -> Any:
    return build(attention=attention, layers=layers)


def transfers(
    model: Any, inputs: dict[str, torch.Tensor], applied: Reduction | None
) -> tuple[Counter[str], Counter[str]]:
    """Of a prefill, and of one decoding step after it."""
    with contextlib.nullcontext() if applied is None else apply_reduction(model, applied):
        model(**inputs)  # what is done once per model is not asked
        with counted() as prefill:
            cache = model(**inputs).past_key_values
        mask = torch.cat([inputs["attention_mask"], torch.ones(len(inputs["input_ids"]), 1, dtype=torch.long)], dim=1)
        new = torch.full((len(mask), 1), 7)
        with counted() as step:
            model(input_ids=new, attention_mask=mask, past_key_values=cache)
    return prefill, step


@pytest.mark.parametrize("rule", [pytest.param(r, marks=() if r == "per-image" else pytest.mark.slow) for r in RULES])
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["single", "varying"])
def test_transfers_do_not_grow_with_the_layers(name, attention, rule):
    found = []
    for layers in (6, 12):
        found.append(transfers(built(attention, layers), batch(name), every_layer(layers, **RULES[rule])))
    # Regions are laid out on the host, from counts that it knows: two small copies to the device for each reduction.
    found[1][0]["from_numpy"] -= 2 * 6 if rule == "pooling in the decoder" else 0
    assert found[0] == found[1]
    plain, plain_step = plain_transfers(attention, name)
    added = found[0][0] - plain
    assert added["cpu"] == 2, "ids and padding mask come to the host"
    assert not {key for key in added if "aten" in key}, "and nothing else does"
    assert found[0][1] == plain_step, "a decoding step asks nothing"


@pytest.mark.parametrize("name", ["single", pytest.param("varying", marks=pytest.mark.slow)])
def test_flash_attention_without_fillers(name):
    """With fillers the kernels' own unpadding waits in every layer, as it does for padding without a schedule."""
    found = []
    for layers in (6, 12):
        model = use_flash(build(layers=layers))
        with emulated_kernels() as calls:
            found.append((transfers(model, batch(name), every_layer(layers, "attention-rank")), calls))
    (first, _), (second, calls) = found
    if name == "single":
        assert first == second
        assert not calls.padded
    else:
        assert calls.padded


@pytest.mark.parametrize("leak", ["item", "nonzero", "index", "cpu", "tolist", "bool"])
def test_a_transfer_is_noticed(leak):
    """The count would see one in every layer."""
    values = torch.arange(4)
    leaks = {
        "item": lambda: values[2].item(),
        "nonzero": lambda: values.nonzero(),
        "index": lambda: values[values > 1],
        "cpu": lambda: values.cpu(),
        "tolist": lambda: values.tolist(),
        "bool": lambda: bool((values > 1).any()),
    }
    with counted() as counts:
        leaks[leak]()
    assert sum(counts.values()) >= 1
