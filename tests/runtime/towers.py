"""A second opinion on vision towers: unmodified full-length eager models whose dropped patches are masked.

Nothing of the runtime is used: attention is what the eager modules return, and no query of a later layer may attend to
a dropped patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from scheduler_search.reducers import Reducer
from scheduler_search.runtime import apply, tower_plan
from tests.runtime import tiny
from tests.runtime.families.builder import CLIP, TEXT

CLASSES = {"clip": 1, "siglip": 0}


def build(kind: str = "clip", attention: str = "sdpa", seed: int = 0, **changes: Any) -> Any:
    """A tiny LLaVA with a tower of four layers, the last but one of which the decoder reads."""
    torch.manual_seed(seed)
    widths = {**CLIP, "num_hidden_layers": 4}
    classes = {"clip": transformers.CLIPVisionConfig, "siglip": transformers.SiglipVisionConfig}
    strategy = {"clip": "default", "siglip": "full"}[kind]
    config = transformers.LlavaConfig(
        vision_config=classes[kind](**widths),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=tiny.IMAGE,
        **{"vision_feature_layer": -2, "vision_feature_select_strategy": strategy, **changes},
    )
    model: Any = transformers.LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = tiny.PAD
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.mul_(4.0 if "q_proj" in name or "k_proj" in name else 2.0)
    return model.requires_grad_(False)


@contextmanager
def seen_attention(model: Any) -> Iterator[dict[int, torch.Tensor]]:
    """Attention [K, H, S, S] of each tower layer of an eager model, as its modules return it."""
    found: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            found[layer] = output[1]

        return hook

    layers = model.base_model.vision_tower.encoder.layers
    hooks = [layer.self_attn.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class MaskedTower:
    """Context manager around an eager model: at each layer, the patches with the least attention are masked.

    Attention is that of the class token in the layer before, or of all patches where there is no class token. ``dead``
    [K, P] are the patches that are gone.
    """

    def __init__(self, model: Any, kind: str, rates: tuple[float, ...]) -> None:
        self.model, self.classes, self.rates = model, CLASSES[kind], rates
        self.dead = torch.zeros(0)

    def __enter__(self) -> MaskedTower:
        self._attention = seen_attention(self.model)
        self.found = self._attention.__enter__()
        layers = self.model.base_model.vision_tower.encoder.layers
        self.hooks = [layer.register_forward_pre_hook(self._before(index)) for index, layer in enumerate(layers)]
        return self

    def __exit__(self, *_: object) -> None:
        self._attention.__exit__(None, None, None)
        for hook in self.hooks:
            hook.remove()

    def _before(self, layer: int) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...]) -> Any:
            hidden = args[0]
            if layer == 0:
                self.dead = torch.zeros(len(hidden), hidden.shape[1] - self.classes, dtype=torch.bool)
            else:
                self._drop(self.found[layer - 1], self.rates[layer])
            mask = torch.zeros(len(hidden), 1, 1, hidden.shape[1])
            mask[:, 0, 0, self.classes :].masked_fill_(self.dead, torch.finfo(mask.dtype).min)
            return (hidden, mask, *args[2:])

        return hook

    def _drop(self, attention: torch.Tensor, rate: float) -> None:
        for image, dead in enumerate(self.dead):
            left = (~dead).nonzero()[:, 0].tolist()
            rows = [0] if self.classes else left
            score = attention[image][:, rows].mean((0, 1))[self.classes :]
            keep = int(rate * len(dead) + 0.5)
            dead[sorted(left, key=lambda patch: (-float(score[patch]), patch))[keep:]] = True


def use_reducer(patch: Any, place: str, reducer: Reducer) -> None:
    """Have the runtime take this one for every rule at a place."""
    for module in (apply, tower_plan):
        load = module.load_reducer  # type: ignore[attr-defined]

        def loading(rule: Any, at: Any, load: Any = load) -> Reducer:
            return reducer if at == place else load(rule, at)

        patch.setattr(module, "load_reducer", loading)
