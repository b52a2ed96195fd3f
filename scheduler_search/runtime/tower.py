"""The vision tower under a schedule: what entry rules read of it, and reductions between its layers.

Knows: the tower's modules, their attention, and the images of one run. Does not know: prompts (``views`` lays out what
is found here), or the decoder. A run keeps its state in a thread-local slot, and so does what it gave, until the
prefill that reads it has ended: threads that share the model do not mix.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import AttentionRows, Prompt, Reducer, Tokens, reduce_tokens
from scheduler_search.rule import Reads
from scheduler_search.runtime.families import family_of
from scheduler_search.runtime.layout import compact, gather_tokens, to_device
from scheduler_search.runtime.question import Questions
from scheduler_search.runtime.refusals import check_not_compiling, check_unscheduled
from scheduler_search.runtime.seen import Seen, look
from scheduler_search.runtime.tap import AttentionInputs, AttentionTap, Listener, subscribe, unsubscribe
from scheduler_search.runtime.tower_plan import TowerPlan, plan_tower
from scheduler_search.runtime.views import TowerViews
from scheduler_search.schedule.values import VisionReduction

T = TypeVar("T")


class _Local(threading.local):
    """The run that this thread is in, and what its last one gave. ``whole``: runs are not to be reduced or read."""

    run: TowerRun | None = None
    views: TowerViews | None = None
    whole: bool = False


class TowerHooks:
    """The hooks of a plan on its tower, and their removal."""

    def __init__(self, plan: TowerPlan) -> None:
        self.plan = plan
        self._local = _Local()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._tap: AttentionTap | None = None
        self._implementation = plan.tower.implementation

    def attach(self) -> None:
        """Put the hooks on the model."""
        tower = self.plan.tower
        self._hooks.append(tower.module.register_forward_pre_hook(self._begin))
        self._hooks.append(tower.module.register_forward_hook(self._end, always_call=True))
        self._hooks.append(tower.projector.register_forward_hook(self._projected))
        for layer in self.plan.entered:
            hook = functools.partial(self._enter_layer, layer)
            self._hooks.append(tower.layers[layer].register_forward_pre_hook(hook))
        modules = tower.attention_modules
        listeners: dict[nn.Module, Listener] = {
            modules[layer]: functools.partial(self._listen, layer) for layer in self.plan.listened
        }
        if listeners:
            self._tap = subscribe(self._implementation, listeners)

    def remove(self) -> None:
        """Take them off; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._tap is not None:
            unsubscribe(self._tap, self.plan.tower.attention_modules)
            self._tap = None

    @property
    def views(self) -> TowerViews | None:
        """What this thread's last run gave, since it was forgotten."""
        return self._local.views

    def forget(self, *, whole: bool = False) -> None:
        """Let go of what this thread's last run gave.

        Args:
            whole: whether its next runs are of images that are kept whole.
        """
        self._local.run = self._local.views = None
        self._local.whole = whole

    def _begin(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        self.forget(whole=self._local.whole)
        if self._local.whole:
            return
        check_not_compiling()
        implementation = self.plan.tower.implementation
        if implementation != self._implementation:
            raise UnsupportedError(
                "the attention implementation of the tower must be the one the schedule was applied under",
                actual=f"{implementation!r} after {self._implementation!r}",
                remedy="remove the schedule, change the implementation, apply the schedule again",
            )
        self._local.run = TowerRun(self.plan)

    def _enter_layer(self, layer: int, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        run = self._local.run
        if run is None:
            return None
        hidden, mask = run.enter_layer(layer, args[0])
        return (hidden, mask, *args[2:])

    def _listen(self, layer: int, inputs: AttentionInputs) -> None:
        if self._local.run is not None:
            self._local.run.take_attention(layer, inputs)

    def _end(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if output is None:  # an exception
            self._local.run = None
        elif self._local.run is not None:
            self._local.run.take_output(output)

    def _projected(self, _module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        run, self._local.run = self._local.run, None
        if run is None:
            return None
        self._local.views = run.views(output)
        return run.restore(output)


class TowerRun:
    """One run of the tower over the K images of a batch. S slots are class tokens, then the patches that are left."""

    def __init__(self, plan: TowerPlan) -> None:
        self.plan = plan
        self._position: torch.Tensor | None = None  # [K, S] patch of each slot, -1 for class tokens; None for all
        self._sizes: torch.Tensor | None = None
        self._seen: Seen | None = None
        self._views: dict[Reads, Seen] = {}
        self._prompt: Prompt | None = None

    def enter_layer(self, layer: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states behind the reduction of a layer, and what is added to the logits of its attention."""
        if self.plan.reduces_at(layer):
            hidden = self._reduce(layer, hidden)
        if self._sizes is None:
            return hidden, None
        # A token that stands for n patches is attended to like n of them.
        return hidden, self._sizes.log()[:, None, None, :].to(hidden.dtype)

    def take_attention(self, layer: int, inputs: AttentionInputs) -> None:
        """Look at the attention of a layer that is about to run."""
        inputs = replace(inputs, mask=_open(inputs), window=None)
        for reads in self.plan.wanted:
            if reads.layer and reads.tower_layer == layer:
                self._views[reads] = self._at_patches(self._look(reads, inputs))
        if self.plan.reads.layer and self.plan.reduces_at(layer + 1):
            self._seen = self._look(self.plan.reads, inputs)

    def take_output(self, output: Any) -> None:
        """Bring what the last layer gave into the space of questions, for rules that compare it with them."""
        encoder, asking = self.plan.encoder, [reads for reads in self.plan.wanted if reads.text]
        if encoder is None or not asking:
            return
        features = self._spread(encoder.project(output.last_hidden_state))
        for reads in asking:
            self._views[reads] = replace(self._views.get(reads, Seen()), features=features)

    def _look(self, reads: Reads, inputs: AttentionInputs) -> Seen:
        K, _, S, _ = inputs.query.shape
        first = self.plan.tower.class_tokens if reads.rows == "vision" else 0
        last = self.plan.tower.class_tokens if reads.rows == "class" else S
        rows = torch.arange(first, last, device=inputs.query.device).expand(K, -1)
        weights = torch.full(rows.shape, 1.0 / max(last - first, 1), dtype=torch.float64, device=rows.device)
        return look(reads, inputs, rows, weights)

    # -- reduction

    def _reduce(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        reducer, count = self.plan.reducer, self.plan.counts[layer]
        assert reducer is not None
        tokens = replace(self._tokens(hidden, count, reducer), present=(self.plan.before(layer),) * len(hidden))
        if count:
            reduced = reduce_tokens(reducer, tokens)
            stay, hidden, sizes = reduced.kept, reduced.hidden, reduced.sizes
        else:
            stay, sizes = torch.zeros_like(tokens.vision), tokens.sizes
        self._seen = None
        index, _ = compact(stay | ~tokens.vision, count + self.plan.tower.class_tokens, fillers=False)
        self._position = (tokens.position - self.plan.tower.class_tokens).gather(1, index)
        self._sizes = None if sizes is None else sizes.gather(1, index)
        return gather_tokens(hidden, index, 1)

    def _tokens(self, hidden: torch.Tensor, count: int, reducer: Reducer) -> Tokens:
        K, S = hidden.shape[:2]
        device, classes = hidden.device, self.plan.tower.class_tokens
        if self._prompt is None:
            self._prompt = self._images(K)
        slots = torch.arange(S, device=device).expand(K, -1)
        seen = Seen() if self._seen is None else self._seen.to(device)
        sizes = to_device(self._sizes, device)
        if sizes is None and reducer.reads.sizes:
            sizes = torch.ones(K, S, dtype=torch.promote_types(hidden.dtype, torch.float32), device=device)
        return Tokens(
            hidden=hidden,
            vision=slots >= classes,
            position=slots if self._position is None else self._position.to(device) + classes,
            attention=seen.attention,
            keep=torch.full((K,), count, device=device),
            counts=(count,) * K,
            prompt=self._prompt,
            rows=seen.rows,
            keys=seen.keys,
            sizes=sizes,
        )

    def _images(self, images: int) -> Prompt:
        """The images as a batch whose samples they are."""
        tower = self.plan.tower
        shape = images, tower.class_tokens + tower.patches
        vision = np.tile(np.arange(shape[1]) >= tower.class_tokens, (images, 1))
        number = np.where(vision, 0, -1)
        ids, real = np.zeros(shape, np.int64), np.ones(shape, np.bool_)
        return Prompt(ids, real, vision, ((tower.grid,),) * images, number)

    # -- what it gave

    def views(self, features: torch.Tensor) -> TowerViews:
        """What it gave beside the features [K, n, D] of the patches that are left."""
        tower, count = self.plan.tower, self.plan.counts[-1]
        if features.shape[1] != count:
            raise UnsupportedError(
                f"the projector must get the {count} patches that are left behind tower layer {tower.used_layers}",
                actual=f"{features.shape[1]} tokens",
                place="the vision tower",
                remedy="leave vision_feature_layer and vision_feature_select_strategy as the configuration has them",
            )
        kept = sizes = None
        if self._position is not None:
            kept = torch.zeros(len(features), tower.patches, dtype=torch.bool, device=features.device)
            kept.scatter_(1, self._left(features.device), True)
        if self._sizes is not None:
            sizes = self._sizes.new_zeros(len(features), tower.patches)
            sizes.scatter_(1, self._left(sizes.device), self._sizes[:, tower.class_tokens :])
        return TowerViews(len(features), tower.patches, self._views, kept, sizes)

    def restore(self, features: torch.Tensor) -> torch.Tensor | None:
        """The features at the slots of all patches [K, P, D], NaN for those that are gone; None where all are left."""
        if self._position is None:
            return None
        K, _, D = features.shape
        index = self._left(features.device)[..., None].expand(-1, -1, D)
        return features.new_full((K, self.plan.tower.patches, D), float("nan")).scatter_(1, index, features)

    def _left(self, device: torch.device) -> torch.Tensor:
        """The patches that are left, [K, n]."""
        assert self._position is not None
        return self._position[:, self.plan.tower.class_tokens :].to(device)

    def _at_patches(self, seen: Seen) -> Seen:
        """What was seen of the slots of a layer, at the patches: [K, P] instead of [K, S]."""
        spread, rows = self._spread, seen.rows
        if rows is not None:
            classes = self.plan.tower.class_tokens
            patch = rows.slots - classes
            if self._position is not None:
                patch = self._position.to(rows.slots.device).gather(1, rows.slots)
            values = spread(rows.values.transpose(1, 2)).transpose(1, 2)
            rows = AttentionRows(values, patch.clamp(min=-1), rows.weights)
        return Seen(None if seen.attention is None else spread(seen.attention), rows, _given(spread, seen.keys))

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        values = values[:, self.plan.tower.class_tokens :]
        if self._position is None:
            return values.clone()  # not a view that keeps all of the tower's keys alive
        shape = (len(values), self.plan.tower.patches, *values.shape[2:])
        index = self._left(values.device).view(*values.shape[:2], *(1,) * (values.ndim - 2)).expand_as(values)
        return values.new_zeros(shape).scatter_(1, index, values)


def _open(inputs: AttentionInputs) -> torch.Tensor:
    """The mask of a tower's attention, where every slot may see every other one: None is causal in the decoder."""
    S = inputs.query.shape[2]
    if inputs.mask is None:
        return torch.ones((), dtype=torch.bool, device=inputs.query.device).expand(1, 1, S, S)
    return inputs.mask.expand(*inputs.mask.shape[:2], S, S)


def _given(change: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else change(tensor)


def compute_features(
    model: nn.Module,
    compute: Callable[[], T],
    vision: VisionReduction | None = None,
    wanted: tuple[Reads, ...] = (),
    questions: Questions | None = None,
) -> tuple[T, TowerViews | None]:
    """What ``compute`` gives, which runs the tower once, and what the tower gave beside it, if anything was asked for.

    Args:
        vision: what is done to the tower meanwhile.
        wanted: what is read of it, as ``views_wanted`` gives it.
        questions: of the samples whose images these are; needed where rules compare patches with them.

    Raises:
        UnsupportedError: a tower that cannot be served, or that is under a schedule.
    """
    plan = plan_tower(model, family_of(model), vision, wanted, None if questions is None else questions.encoder)
    if plan is None:
        return compute(), None
    check_unscheduled(plan.tower.module, TowerHooks)
    hooks = TowerHooks(plan)
    hooks.attach()
    try:
        found, views = compute(), hooks.views
    finally:
        hooks.remove()
    if views is not None and questions is not None and any(reads.text for reads in wanted):
        views = replace(views, text=questions.encode())
    return found, views
