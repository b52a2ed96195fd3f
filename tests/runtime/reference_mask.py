"""A second opinion on every reduction: the unmodified full-length eager model with the dropped columns masked.

Nothing is shortened and nothing of the runtime is used. From the layer of its drop on, no query may attend to a dropped
token; what the others compute must then be what the runtime computes on the tokens that are left.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.runtime.tiny import IMAGE, VIDEO

Ranking = Callable[[int, list[int]], list[int]]  # (sample, vision slots that are left) -> the same, best first
# (attention each slot receives [S], hidden states [S, D], slots that are left) -> the same slots, best first
Order = Callable[[torch.Tensor, torch.Tensor, list[int]], list[int]]
Entry = Callable[[torch.Tensor, int, list[int]], list[int]]  # (hidden of a sample, sample, slots) -> kept; may write


class MaskedReference:
    """Context manager around an eager model. ``ranking`` replaces attention; ``entry`` acts before the first layer.

    ``order`` ranks by attention otherwise than by falling attention; ``ahead`` ranks by that of the layer behind the
    drop, which is run whole on what is in front of it. ``images`` (for each sample, the slots of each image) makes it
    a quota per image.
    """

    def __init__(
        self,
        model: Any,
        rates: Sequence[float],
        inputs: dict[str, torch.Tensor],
        *,
        rows: str = "instruction",
        heads: str = "mean",
        ranking: Ranking | None = None,
        entry: Entry | None = None,
        order: Order | None = None,
        ahead: bool = False,
        images: Sequence[Sequence[list[int]]] | None = None,
    ) -> None:
        assert model.config.text_config._attn_implementation == "eager"
        decoder = model.get_decoder()
        self.layers = decoder.layers if hasattr(decoder, "layers") else decoder.model.layers  # Llama 4
        self.rates, self.rows, self.heads = rates, rows, heads
        self.ranking, self.entry, self.images = ranking, entry, images
        self.order, self.ahead = order or most_attended, ahead
        self.ids, self.real = inputs["input_ids"], inputs["attention_mask"].bool()
        self.vision = (self.ids == IMAGE) | (self.ids == VIDEO)
        self.weights: torch.Tensor | None = None
        self.dead = torch.zeros_like(self.vision)
        self.dead_at: list[torch.Tensor] = []

    def __enter__(self) -> MaskedReference:
        modules = {layer.self_attn for layer in self.layers}

        def eager(module: Any, *args: Any, **kwargs: Any) -> Any:
            names = inspect.unwrap(type(module).forward).__code__.co_names
            name = next(name for name in names if name.endswith("eager_attention_forward"))
            output = getattr(sys.modules[type(module).__module__], name)(module, *args, **kwargs)
            if module in modules:
                self.weights = output[1]
            return output

        assert "eager" not in ALL_ATTENTION_FUNCTIONS._local_mapping
        ALL_ATTENTION_FUNCTIONS["eager"] = eager
        self.hooks = [
            layer.register_forward_pre_hook(self._before(index), with_kwargs=True)
            for index, layer in enumerate(self.layers)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        del ALL_ATTENTION_FUNCTIONS["eager"]
        for hook in self.hooks:
            hook.remove()

    def _before(self, index: int) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0]
            if hidden.shape[1] == self.ids.shape[1]:  # the prefill
                if self.ahead and index:
                    module.forward(*args, **{**self._masked(kwargs, self.dead), "past_key_values": None})
                hidden = self._drop(index, hidden)
                self.dead_at.append(self.dead.clone())
            return (hidden, *args[1:]), self._masked(kwargs, self.dead_at[index])

        return hook

    def _masked(self, kwargs: dict[str, Any], dead: torch.Tensor) -> dict[str, Any]:
        mask = kwargs["attention_mask"].expand(len(self.ids), -1, -1, -1).clone()
        prompt = self.ids.shape[1]
        mask[..., :prompt].masked_fill_(dead[:, None, None, :], torch.finfo(mask.dtype).min)
        return {**kwargs, "attention_mask": mask}

    def _drop(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        for sample in range(len(self.ids)):
            total = int(self.vision[sample].sum())
            keep = int(self.rates[index] * total + 0.5)
            left = (self.vision[sample] & ~self.dead[sample]).nonzero()[:, 0].tolist()
            if keep >= len(left):
                continue
            if index == 0 and self.entry is not None:
                chosen = self.entry(hidden[sample], sample, left)
            else:
                chosen = self._chosen(sample, self._ranked(sample, left, hidden[sample]), keep)
            assert len(chosen) == keep
            self.dead[sample, [slot for slot in left if slot not in chosen]] = True
        return hidden

    def _chosen(self, sample: int, ranked: list[int], keep: int) -> list[int]:
        """The best ``keep`` of all, or under a quota per image (``images``: the slots of each) the best of each."""
        if self.images is None:
            return ranked[:keep]
        images = self.images[sample]
        taken = [0] * len(images)
        for _ in range(keep):  # the next seat goes to the image that is furthest below its share
            claims = [Fraction(len(image), 2 * seats + 1) for image, seats in zip(images, taken, strict=True)]
            taken[claims.index(max(claims))] += 1
        best = [[slot for slot in ranked if slot in image][:seats] for image, seats in zip(images, taken, strict=True)]
        return [slot for slots in best for slot in slots]

    def _ranked(self, sample: int, left: list[int], hidden: torch.Tensor) -> list[int]:
        if self.ranking is not None:
            return self.ranking(sample, left)
        attention = self.weights[sample][:, self._query_rows(sample)]  # [H, R, S]
        by_row = {"mean": attention.mean(0), "sum": attention.sum(0), "max": attention.max(0).values}[self.heads]
        return self.order(by_row.mean(0), hidden, left)

    def _query_rows(self, sample: int) -> list[int]:
        real = self.real[sample].nonzero()[:, 0].tolist()
        images = self.vision[sample].nonzero()[:, 0].tolist()
        dead = self.dead[sample].nonzero()[:, 0].tolist()
        if self.rows == "every":
            return [slot for slot in real if slot not in dead]
        if self.rows == "last-vision":
            return [slot for slot in images if slot not in dead][-1:]
        text = [slot for slot in real if slot not in images]
        if self.rows == "all":
            return text
        if self.rows == "last":
            return [real[-1]]
        return [slot for slot in text if slot > images[-1]] or [real[-1]]


def most_attended(score: torch.Tensor, _hidden: torch.Tensor, left: list[int]) -> list[int]:
    """By falling attention, ties to the earlier."""
    return sorted(left, key=lambda slot: (-float(score[slot]), slot))


def masked_generate(
    model: Any, rates: Sequence[float], inputs: dict[str, torch.Tensor], steps: int = 6, **choice: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens [B, steps] and logits [B, steps, V] of the reference.

    The cache holds full layers (no config), so that sliding windows are in the mask alone and columns keep their place.
    """
    with MaskedReference(model, rates, inputs, **choice):
        output = model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            past_key_values=DynamicCache(),
        )
    return output.sequences[:, -steps:], torch.stack(output.logits, dim=1)


def masked_forward(
    model: Any, rates: Sequence[float], inputs: dict[str, torch.Tensor], tail: int, **choice: Any
) -> torch.Tensor:
    """Logits [B, tail, V] of the last positions."""
    with MaskedReference(model, rates, inputs, **choice):
        logits: torch.Tensor = model(**inputs).logits[:, -tail:]
    return logits
