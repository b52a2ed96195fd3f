"""The state of one forward pass, from its first hook to its last: a prefill that reduces, or a continuation of one.

Nothing here outlives the pass. What a later pass needs (which prompt tokens a layer holds) is in the cache layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Prompt, Reducer, Text, Tokens, reduce_tokens
from scheduler_search.runtime.ahead import Forward, look_ahead, stop_here
from scheduler_search.runtime.cache import LogicalDynamicLayer, prepare_cache
from scheduler_search.runtime.layout import (
    Kept,
    compact,
    continue_mask,
    continue_padding,
    gather_mask,
    gather_positions,
    gather_rotary,
    gather_tokens,
    to_device,
)
from scheduler_search.runtime.plan import Plan
from scheduler_search.runtime.prefix import Prefix, PrefixRun, held_layers, kept_on
from scheduler_search.runtime.refusals import check_window
from scheduler_search.runtime.rows import RowReader
from scheduler_search.runtime.seen import Seen, look
from scheduler_search.runtime.tap import AttentionInputs
from scheduler_search.runtime.views import Arrival

LayerArguments = tuple[torch.Tensor, dict[str, Any]]


class Memo:
    """Values computed once per forward pass from arguments that all layers share, keyed by the arguments' identity.

    The arguments are kept alive beside the value, so that an id cannot come to mean another object.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def get(self, compute: Callable[[], Any], *arguments: object) -> Any:
        """``compute()``, or what it gave for these very objects before."""
        key = tuple(id(argument) for argument in arguments)
        if key not in self._values:
            self._values[key] = (compute(), arguments)
        return self._values[key][0]


@dataclass(frozen=True)
class Masks:
    """How the model's attention takes its mask.

    Args:
        additive: None for bool, else the dtype of an additive mask.
        padding: whether it is [B, S] for padding alone, the attention itself being causal (flash attention).
    """

    additive: torch.dtype | None
    padding: bool = False


class Prefill:
    """A prefill under a plan that drops something.

    Args:
        entry: rule in front of the first layer; ``decoder``: rule in front of the others.
        masks: form of the attention masks.
        prefix: where to start, and what to keep. With one, the plan may drop nothing.
        tower: gives what the vision tower left and what the rules read of it, once the decoder starts; None for the
            whole tower, of which nothing is read.
    """

    def __init__(
        self,
        prompt: Prompt,
        plan: Plan,
        entry: Reducer | None,
        decoder: Reducer,
        masks: Masks,
        prefix: PrefixRun | None = None,
        tower: Callable[[torch.device], Arrival] | None = None,
    ) -> None:
        self.prompt, self.plan, self.masks = prompt, plan, masks
        self.prefix, self.tower = prefix, tower
        self.captured: Prefix | None = None
        self.entry, self.decoder = entry, decoder
        self.kept: Kept | None = None
        self.slots = [prompt.slots] * len(plan.counts)
        self._seen: Seen | None = None
        self._sizes: torch.Tensor | None = None
        self._text: Text | None = None
        self._looks_ahead = False
        self._vision: torch.Tensor | None = None
        self._rows = RowReader(prompt)
        self._keep: torch.Tensor | None = None
        self._memo = Memo()

    def enter_layer(
        self, layer: int, hidden: torch.Tensor, arguments: dict[str, Any], forward: Forward
    ) -> LayerArguments | None:
        """Reduce in front of a layer (0-based) and cut its arguments to the tokens left; None to change nothing.

        Args:
            forward: of the layer, past this very call.
        """
        cache = arguments.get("past_key_values")
        if layer == 0:
            prepare_cache(cache, len(self.plan.counts))
            if self.decoder.reads.rows == "raters":
                self._rows.rate(hidden)
        if self.prefix is not None:
            if layer < self.prefix.first:
                return None  # it is passed over
            self._resume_and_capture(self.prefix, layer, hidden, cache)
        if layer == 0 and self.tower is not None:
            hidden = self._arrive(self.tower(hidden.device), hidden)
        if self._reads_ahead(layer):
            self._look_ahead(hidden, arguments, forward)
        if self.plan.reduces_at(layer):
            hidden = self._reduce(layer, hidden)
        if self.kept is None:
            return None
        self.slots[layer] = self.kept.slots
        if cache is not None:
            cache.layers[layer].kept = self.kept
        return hidden, self._cut(arguments, self.kept)

    def _arrive(self, arrival: Arrival, hidden: torch.Tensor) -> torch.Tensor:
        """Leave out what the tower has dropped, whose features are not numbers."""
        if arrival.kept is not None:
            tokens = self._tokens(0, hidden)
            hidden = self._compact(hidden, tokens.vision & arrival.kept, tokens, self.plan.before(0))
            assert self.kept is not None
            arrival = arrival.at(self.kept)
        self._seen, self._sizes, self._text = arrival.seen, arrival.sizes, arrival.text
        return hidden

    def wants_attention(self, layer: int) -> bool:
        """Whether the rule reads the attention of this layer, in front of the next."""
        captured = self.prefix is not None and self.prefix.capture == layer + 1
        return self.decoder.reads.layer_before and (captured or self.plan.chooses_at(layer + 1))

    def _reads_ahead(self, layer: int) -> bool:
        """Whether the rule reads the attention that this layer would have without the reduction in front of it."""
        reads = self.decoder.reads
        return layer > 0 and reads.layer and reads.own_layer and self.plan.chooses_at(layer)

    def _look_ahead(self, hidden: torch.Tensor, arguments: dict[str, Any], forward: Forward) -> None:
        self._looks_ahead = True
        try:
            look_ahead(forward, hidden, arguments if self.kept is None else self._cut(arguments, self.kept))
        finally:
            self._looks_ahead = False

    def take_attention(self, layer: int, inputs: AttentionInputs) -> None:
        """Score the tokens of a layer whose attention is about to run."""
        if self.masks.padding and self.kept is not None:
            check_window(inputs.window, int(self.prompt.real.sum(axis=1).max()), layer)
        if self._looks_ahead:
            self._look(inputs, self.plan.before(layer))
            stop_here()
        if self.wants_attention(layer):
            self._look(inputs, self.plan.counts[layer])

    def _look(self, inputs: AttentionInputs, counts: tuple[int, ...]) -> None:
        """Keep what the rule reads of a layer over so many vision tokens."""
        reads = self.decoder.reads
        rows, weights = self._rows.at(reads.rows or "last", self.kept, self._vision, counts, inputs.query.device)
        self._seen = look(reads, inputs, rows, weights, padding=self.masks.padding)

    # -- prefixes

    def _resume_and_capture(self, run: PrefixRun, layer: int, hidden: torch.Tensor, cache: Any) -> None:
        if run.start is not None and layer == run.start.layer:
            self._resume(run.start, hidden.device)
        if layer == run.capture:
            self.captured = self._capture(run, layer, hidden, cache)
        if not self.plan.chooses_at(layer):
            self._seen = None  # it was computed for others

    def _resume(self, start: Prefix, device: torch.device) -> None:
        """Be where the prefix was made."""
        self.kept = kept_on(start.kept, device)
        self._vision = to_device(start.vision, device)
        self._seen = None if start.seen is None else start.seen.to(device)
        if self._vision is not None:
            self._keep = torch.tensor(self.plan.counts, device=device)
        self.slots[: start.layer] = start.slots

    def _capture(self, run: PrefixRun, layer: int, hidden: torch.Tensor, cache: Any) -> Prefix:
        return Prefix(
            layer=layer,
            reduction=run.reduction,
            counts=self.plan.counts[:layer],
            prompt=replace(self.prompt, _memo={}),
            hidden=hidden,
            seen=self._seen,
            vision=self._vision,
            kept=self.kept,
            slots=tuple(self.slots[:layer]),
            cache=held_layers(cache, layer),
        )

    # -- reduction

    def _reduce(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        tokens = self._tokens(layer, hidden)
        if self.plan.chooses_at(layer):
            reducer = self._reducer(layer)
            if reducer.reads.layer and layer and self._seen is None:
                raise UnsupportedError(
                    "the attention that ranks the tokens must pass through the tap",
                    place=f"decoder layer {layer}",
                    remedy="do not replace attention functions or their implementation while a schedule is applied",
                )
            reduced = reduce_tokens(reducer, tokens)
            stay, hidden = reduced.kept, reduced.hidden
        else:  # each sample keeps all of its tokens, or none
            stay = tokens.vision & (tokens.keep > 0)[:, None]
        self._seen = self._sizes = self._text = None
        return self._compact(hidden, stay, tokens, self.plan.counts[layer])

    def _reducer(self, layer: int) -> Reducer:
        if layer or self.entry is None:
            return self.decoder
        return self.entry

    def _tokens(self, layer: int, hidden: torch.Tensor) -> Tokens:
        device = hidden.device
        if self._vision is None:
            self._vision = torch.from_numpy(self.prompt.vision).to(device)
            self._keep = torch.tensor(self.plan.counts, device=device)
        assert self._keep is not None
        if self.kept is None:
            position = torch.arange(self.prompt.slots, device=device).expand(self.prompt.samples, -1)
        else:
            position = self.kept.position.to(device)
        seen = Seen() if self._seen is None else self._seen.to(device)
        return Tokens(
            hidden=hidden,
            vision=self._vision.to(device),
            position=position,
            attention=seen.attention,
            keep=self._keep[layer].to(device),
            counts=self.plan.counts[layer],
            prompt=self.prompt,
            rows=seen.rows,
            keys=seen.keys,
            sizes=self._sizes,
            text=self._text,
            features=seen.features,
            present=self.plan.before(layer),
        )

    def _compact(
        self, hidden: torch.Tensor, kept: torch.Tensor, tokens: Tokens, counts: tuple[int, ...]
    ) -> torch.Tensor:
        """Squeeze out dropped tokens, padding and old fillers; fillers are zero, since 0 x NaN would be NaN."""
        lengths = [text + vision for text, vision in zip(self.prompt.text_tokens, counts, strict=True)]
        slots = max(lengths)
        stay = kept | self._real(~tokens.vision)
        index, valid = compact(stay, slots, fillers=min(lengths) < slots)
        hidden = gather_tokens(hidden, index, 1)
        if valid is not None:
            hidden = hidden.masked_fill(~valid[..., None], 0.0)
        self._vision = kept.gather(1, index)
        candidates = 0 if self.prompt.given is None else self.prompt.slots - self.prompt.given
        self.kept = Kept(tokens.position.gather(1, index), valid, self.prompt.slots, candidates)
        self._memo = Memo()  # nothing of the layout before is asked for again
        return hidden

    def _real(self, marked: torch.Tensor) -> torch.Tensor:
        """``marked`` [B, S] bool without padding and fillers."""
        if self.kept is None:
            return marked & torch.from_numpy(self.prompt.real).to(marked.device)
        return marked if self.kept.valid is None else marked & self.kept.valid.to(marked.device)

    # -- what the layers get

    def _cut(self, arguments: dict[str, Any], kept: Kept) -> dict[str, Any]:
        """The layer's arguments for the kept tokens: every layer is given those of the whole prompt."""
        cut = dict(arguments)
        mask, rotary = arguments.get("attention_mask"), arguments.get("position_embeddings")
        positions = arguments.get("position_ids")
        if self.masks.padding:
            # All padding was squeezed out. Positions with gaps would be taken for packed sequences.
            cut["attention_mask"], positions = kept.valid, None
            cut["position_ids"] = None
        else:
            cut["attention_mask"] = self._memo.get(
                lambda: gather_mask(mask, kept, additive=self.masks.additive), kept, mask
            )
        if rotary is not None:
            cut["position_embeddings"] = self._memo.get(lambda: gather_rotary(rotary, kept.position), kept, rotary)
        if positions is not None:
            cut["position_ids"] = self._memo.get(lambda: gather_positions(positions, kept.position), kept, positions)
        return cut


class Continuation:
    """A pass over new tokens on a cache whose layers may hold a reduced prompt."""

    def __init__(self, masks: Masks) -> None:
        self.masks = masks
        self._memo = Memo()
        self._tokens: int | None = None  # that the present layer has seen, if it does not hold them all

    def enter_layer(
        self, layer: int, hidden: torch.Tensor, arguments: dict[str, Any], _forward: Forward
    ) -> LayerArguments | None:
        """Cut the mask's columns to the tokens that this layer's cache holds; None to change nothing."""
        cached = arguments["past_key_values"].layers[layer]
        self._tokens = None
        if not isinstance(cached, LogicalDynamicLayer):
            return None
        kept, mask, new, held = cached.kept, arguments.get("attention_mask"), hidden.shape[1], cached.held
        if kept is None:
            if mask is None or not cached.evicted:
                return None
            return hidden, {**arguments, "attention_mask": mask[..., -(held + new) :]}
        if kept.position.shape[0] != hidden.shape[0]:
            raise UnsupportedError(
                "the batch must be the one the cache was filled with",
                actual=f"{hidden.shape[0]} samples on a cache of {kept.position.shape[0]}",
                place=f"decoder layer {layer + 1}",
                remedy="repeat or select the samples of the cache with its own methods",
            )
        past = cached.get_seq_length()
        self._tokens = past + new
        window = getattr(cached, "sliding_window", None)  # layers that share it, and what they keep, hold as much
        if self.masks.padding:
            mask = self._memo.get(lambda: self._padding(mask, kept, new, past, held), kept, mask, window)
            return hidden, {**arguments, "attention_mask": mask, "position_ids": None}
        additive = self.masks.additive
        narrow = self._memo.get(
            lambda: continue_mask(mask, kept, new, past, held, additive=additive), kept, mask, window
        )
        return hidden, {**arguments, "attention_mask": narrow}

    def _padding(self, mask: torch.Tensor | None, kept: Kept, new: int, past: int, held: int) -> torch.Tensor | None:
        """None where the prompt's padding, which is gone from the cache, was all there is: the kernels' faster path."""
        if mask is not None and kept.valid is None and self._memo.get(lambda: bool(mask[:, kept.prompt :].all()), mask):
            return None
        return continue_padding(mask, kept, new, past, held)

    def take_attention(self, layer: int, inputs: AttentionInputs) -> None:
        """Nothing is ranked after the prefill."""
        if self.masks.padding and self._tokens is not None:
            check_window(inputs.window, self._tokens, layer)
