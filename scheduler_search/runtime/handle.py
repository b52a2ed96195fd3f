"""The hooks of one schedule on one model, and their removal.

Hooks are the model's only change, beside a guard around ``generate`` and a listener in the attention tap; removal takes
all of them away. A forward pass keeps its state in a thread-local slot of the handle, emptied when the pass ends,
also by an exception: threads that share the model do not mix.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import nn

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Prompt, Reducer, Text
from scheduler_search.runtime.blocks import Blocks, Saying
from scheduler_search.runtime.cache import cache_bytes, sliding_layers
from scheduler_search.runtime.families import Family
from scheduler_search.runtime.injection import Injection
from scheduler_search.runtime.plan import Plan
from scheduler_search.runtime.prefill import Continuation, Masks, Prefill
from scheduler_search.runtime.prefix import PrefixRun, Shortcut
from scheduler_search.runtime.prompts import PromptReader
from scheduler_search.runtime.question import QuestionEncoder, Questions, text_of
from scheduler_search.runtime.refusals import (
    attention_implementation,
    check_attention,
    check_behind_tower,
    check_generation,
    check_labels,
    check_not_compiling,
    check_prefill,
    pads_alone,
    prompt_slots,
)
from scheduler_search.runtime.report import LayerReport, Report
from scheduler_search.runtime.smaller_images import image_hooks
from scheduler_search.runtime.tap import AttentionInputs, AttentionTap, Listener, subscribe, unsubscribe
from scheduler_search.runtime.tower import TowerHooks
from scheduler_search.runtime.tower_plan import entry_reads, plan_tower
from scheduler_search.runtime.views import Arrival, TowerViews, given_views, lay_out
from scheduler_search.schedule.values import Reduction


class _Pass(Saying):
    """The forward pass that this thread is in."""

    state: Prefill | Continuation | None = None
    plan: Plan | None = None
    injection: Injection | None = None
    slots: int = 0


class ScheduleHandle(Blocks):
    """A schedule at work on a model. A context manager; ``remove`` restores the model bit for bit.

    Built by ``apply_schedule`` and ``apply_reduction``.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        reduction: Reduction,
        entry: Reducer | None,
        decoder: Reducer,
        prefix: PrefixRun | None = None,
        encoder: QuestionEncoder | None = None,
    ) -> None:
        self.model, self.reduction = model, reduction
        self._prefix = prefix
        self._shortcut: Shortcut | None = None
        self._family, self._entry, self._decoder = family, entry, decoder
        self._layers: list[nn.Module] = list(family.decoder(model).layers)  # type: ignore[arg-type]
        self._implementation = attention_implementation(model, family)
        rules = (decoder,) if entry is None else (entry, decoder)
        wanted = entry_reads(model, family, reduction.entry_rule)
        if entry is not None and reduction.vision is not None and reduction.vision.keep_rates[-1] < 1.0:
            check_behind_tower(entry.reads, entry.rule.name)
        tower = plan_tower(model, family, reduction.vision, wanted, encoder)
        self._tower = None if tower is None else TowerHooks(tower)
        self._images = image_hooks(model, reduction)
        self._reader = PromptReader(family, model.config, rules)
        self._pass: _Pass = _Pass()
        self._report: Report | None = None
        self._tap: AttentionTap | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._attach()

    def __enter__(self) -> ScheduleHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def report(self) -> Report:
        """What the last finished prefill did (of any thread); UnsupportedError if there was none."""
        if self._report is None:
            raise UnsupportedError("a report needs a prefill", remedy="run the model once, then ask again")
        return self._report

    def remove(self) -> None:
        """Take the schedule off the model; a second call does nothing."""
        for part in (self._tower, self._images):
            if part is not None:
                part.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._shortcut is not None:
            self._shortcut.remove()
            self._shortcut = None
        if self._tap is not None:
            unsubscribe(self._tap, self._attention_modules())
            self._tap = None
        guard = vars(self.model).get("generate")
        if guard is not None and getattr(guard, "handle", None) is self:
            del self.model.generate

    # -- installation

    @property
    def _first(self) -> int:
        """First layer (0-based) in front of which something can be dropped or is kept; as many as layers for none."""
        rates = self.reduction.keep_rates
        return next((layer for layer, rate in enumerate(rates) if rate < 1.0 or layer == self._captured), len(rates))

    @property
    def _captured(self) -> int | None:
        return None if self._prefix is None else self._prefix.capture

    def _attach(self) -> None:
        inputs = self._family.input_module(self.model)
        self._hooks.append(inputs.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._hooks.append(inputs.register_forward_hook(self._end, always_call=True))
        if self._prefix is not None and self._prefix.start is not None:
            self._shortcut = Shortcut(self._layers, self._prefix.start, self._in_prefill)
        if self._first == len(self._layers):
            return  # nothing is ever dropped
        self._hooks.append(self.model.register_forward_pre_hook(self._check_call, with_kwargs=True))
        for part in (self._tower, self._images):
            if part is not None:
                part.attach()
        windowed = sliding_layers(self._family.decoder(self.model).config)
        for layer in sorted({0, *windowed, *range(self._first, len(self._layers))}):
            hook = functools.partial(self._enter_layer, layer)
            self._hooks.append(self._layers[layer].register_forward_pre_hook(hook, with_kwargs=True))
        self._attach_injection()
        listeners = self._listeners()
        if listeners:
            self._tap = subscribe(self._implementation, listeners)
        self._guard_generate()

    def _attach_injection(self) -> None:
        """Hooks that move the features which the decoder adds between its first layers behind those layers."""
        depth = self._family.injected_layers(self.model.config)
        if not depth:
            return
        decoder = self._family.decoder(self.model)
        self._hooks.append(decoder.register_forward_pre_hook(self._enter_decoder, with_kwargs=True))
        for layer in range(depth):
            hook = functools.partial(self._leave_layer, layer)
            self._hooks.append(self._layers[layer].register_forward_hook(hook))

    def _listeners(self) -> dict[nn.Module, Listener]:
        """Listeners of the layers whose attention can rank: those in front of a layer that can reduce, or that itself.

        Where the attention has its sliding window from elsewhere than the mask, also of the layers that are reduced.
        """
        reads = self._decoder.reads
        watched = self._first if pads_alone(self._implementation) else len(self._layers)
        rates = (*self.reduction.keep_rates, 1.0)
        read = {
            layer
            for layer in range(len(self._layers))
            if (reads.layer_before and (rates[layer + 1] < 1.0 or layer + 1 == self._captured))
            or (reads.layer and reads.own_layer and rates[layer] < 1.0)
        }
        return {
            module: functools.partial(self._listen, layer)
            for layer, module in enumerate(self._attention_modules())
            if layer >= watched or layer in read
        }

    def _attention_modules(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self._layers]  # type: ignore[misc]

    def _guard_generate(self) -> None:
        """Refuse settings of ``generate`` that no forward pass can see, and remember the length of its prompt.

        Passes without a cache, and the first of assisted decoding, have more than the prompt in them. What they keep of
        the prompt must be what a plain prefill keeps, so that these ways to generate differ in nothing but speed.
        """
        generate: Any = self.model.generate

        @functools.wraps(generate)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            check_generation(self.model, args, kwargs)
            before = self._pass.asked
            self._pass.asked = replace(before, generates=True, slots=prompt_slots(args, kwargs))
            self._forget_tower(kwargs)  # it runs in front of the first pass
            if self._images is not None:
                self._images.expect_prompts(self._reader, args, kwargs)
            try:
                return generate(*args, **kwargs)
            finally:
                self._pass.asked = before
                self._forget_tower({})

        guarded.handle = self  # type: ignore[attr-defined]
        self.model.generate = guarded  # type: ignore[assignment]

    # -- hooks

    def _check_call(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_labels(kwargs)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Plan the pass: a prefill of a prompt with vision tokens, a continuation, or neither."""
        current = self._pass
        current.state = current.plan = current.injection = None
        reduces = self._first < len(self._layers)
        if reduces:
            check_not_compiling()
        if not current.asked.generates or kwargs.get("pixel_values") is not None:
            self._forget_tower(kwargs)
        if _continues(kwargs):
            if reduces:
                current.state = Continuation(self._masks())
            return
        if args:
            kwargs = {"input_ids": args[0], **kwargs}
        if reduces:
            check_prefill(module, kwargs, current.asked.vision)
        if kwargs.get("input_ids") is not None or current.asked.vision is not None:
            self._plan(kwargs)

    def _plan(self, arguments: dict[str, Any]) -> None:
        prompt = self._reader.read(arguments, self._pass.asked)
        plan = self._plan_of(prompt.vision_tokens)
        if self._images is not None and not self._pass.asked.generates:
            self._images.expect(prompt.vision_tokens)
        self._pass.plan, self._pass.slots = plan, prompt.slots
        if self._prefix is not None:
            self._prefix.check(prompt, plan, cached=arguments.get("past_key_values") is not None)
        if plan.reduces:
            self._family.check_prompt(self.model.config, prompt.slots)
        if plan.reduces or self._prefix is not None:
            watched = self._tower is not None or self._images is not None
            tower = functools.partial(self._arrival, prompt, plan) if watched else None
            self._pass.state = Prefill(prompt, plan, self._entry, self._decoder, self._masks(), self._prefix, tower)

    def _arrival(self, prompt: Prompt, plan: Plan, device: torch.device) -> Arrival:
        """What the tower gave for the images of a prompt."""
        if self._images is not None:
            return self._images.arrival(prompt, plan.before(0), self._pass.asked.views, device)
        assert self._tower is not None
        views = self._pass.asked.views if self._tower.views is None else self._tower.views
        reads = self._tower.plan.wanted if plan.chooses_at(0) else ()
        if not any(prompt.vision_tokens) or (plan.survivors is None and not reads):
            return Arrival(None)
        views = given_views(views, reads, reduced=plan.survivors is not None)
        text = self._text(views, prompt) if reads and reads[0].text else None
        return lay_out(views, prompt, reads[0] if reads else None, device, text)

    def _text(self, views: TowerViews, prompt: Prompt) -> Text:
        """What the questions say: computed with the features of the tower, or said in a block."""
        assert self._tower is not None
        asked, encoder = self._pass.asked, self._tower.plan.encoder
        said: Text | Questions | None = views.text
        if said is None and asked.questions is not None and encoder is not None:
            said = Questions(encoder, asked.questions)
        return text_of(said, prompt.samples, repeats=asked.generates)

    def _forget_tower(self, arguments: dict[str, Any]) -> None:
        for part in (self._tower, self._images):
            if part is not None:
                part.forget(whole=_continues(arguments))

    def _plan_of(self, vision_tokens: tuple[int, ...]) -> Plan:
        patches = None if self.reduction.vision is None else self._family.vision_tower(self.model).patches
        return Plan.under(self.reduction, vision_tokens, patches)

    def _in_prefill(self) -> bool:
        return isinstance(self._pass.state, Prefill)

    def _enter_decoder(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not isinstance(self._pass.state, Prefill):
            return None
        arguments, self._pass.injection = self._family.take_injection(kwargs)
        return args, arguments

    def _leave_layer(
        self, layer: int, _module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        state, injection = self._pass.state, self._pass.injection
        if injection is None or not isinstance(state, Prefill):
            return None
        return injection.add(layer, output, state.kept)

    def _enter_layer(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        check_not_compiling()  # a layer may be compiled by itself
        state = self._pass.state
        if state is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        changed = state.enter_layer(layer, hidden, kwargs, functools.partial(_forward, module, args[1:]))
        if changed is None:
            return None
        hidden, arguments = changed
        if args:
            return (hidden, *args[1:]), arguments
        return args, {**arguments, "hidden_states": hidden}

    def _listen(self, layer: int, inputs: AttentionInputs) -> None:
        if self._pass.state is not None:
            self._pass.state.take_attention(layer, inputs)

    def _end(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        current = self._pass
        plan, state = current.plan, current.state
        if not current.asked.generates:
            self._forget_tower({})
        current.state = current.plan = current.injection = None
        if plan is None or output is None:  # a continuation, or an exception
            return
        layers = len(self._layers)
        if isinstance(state, Prefill) and self._prefix is not None and self._prefix.captured is None:
            self._prefix.captured = state.captured
        slots = state.slots if isinstance(state, Prefill) else [current.slots] * layers
        sizes = cache_bytes(getattr(output, "past_key_values", None), layers)
        rows = zip(range(1, layers + 1), slots, plan.counts, sizes, strict=True)
        tower = () if self._tower is None else self._tower.plan.report
        self._report = Report(tuple(LayerReport(*row) for row in rows), plan.vision_tokens, tower)

    def _masks(self) -> Masks:
        implementation = attention_implementation(self.model, self._family)
        if implementation != self._implementation:
            check_attention(self._family, self.model.config, implementation)
            raise UnsupportedError(
                "the attention implementation must be the one the schedule was applied under",
                actual=f"{implementation!r} after {self._implementation!r}",
                remedy="remove the schedule, change the implementation, apply the schedule again",
            )
        additive: torch.dtype | None = self.model.dtype if implementation == "eager" else None  # type: ignore[assignment]
        return Masks(additive, padding=pads_alone(implementation))


def _continues(arguments: dict[str, Any]) -> bool:
    """Whether a call is about what follows on a prompt that is in its cache."""
    cache = arguments.get("past_key_values")
    return cache is not None and cache.get_seq_length() > 0


def _forward(module: nn.Module, others: tuple[Any, ...], hidden: torch.Tensor, arguments: dict[str, Any]) -> object:
    """A layer without its hooks: of other hidden states and keyword arguments, and of its other positional ones."""
    keywords = {name: value for name, value in arguments.items() if name != "hidden_states"}
    return module.forward(hidden, *others, **keywords)
