"""What the runtime says no to, and why: uses of a model that a reduced forward pass could not serve exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scheduler_search.errors import UnsupportedError
from scheduler_search.rule import Reads
from scheduler_search.runtime.cache import check_cache
from scheduler_search.runtime.families import Family
from scheduler_search.runtime.families.tower import Tower
from scheduler_search.schedule.counts import keep_count
from scheduler_search.schedule.values import Reduction

FLASH_ATTENTION = "flash_attention_2"
_PLACE = "model under a schedule"
_DYNAMIC = (None, "dynamic", "dynamic_full")
# The name that the model gets where transformers takes the kernel from the hub instead of the package flash_attn.
_KERNELS = {"kernels-community/flash-attn2": FLASH_ATTENTION}
_TOWER_ROWS = ("class", "vision", "every")
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k")


def check_model(model: nn.Module, family: Family, reduction: Reduction) -> None:
    """UnsupportedError for a model, or a part of a schedule, that cannot be hooked."""
    compiled = [name for name, part in model.named_modules() if _is_compiled(part)]
    if compiled:
        raise UnsupportedError(
            "a schedule needs a model that is not compiled",
            actual=f"a compiled {compiled[0] or 'model'}",
            remedy="apply the schedule to the model as from_pretrained returns it",
        )
    _check_first_layers(family, reduction)
    check_attention(family, model.config, attention_implementation(model, family))


def _check_first_layers(family: Family, reduction: Reduction) -> None:
    if any(rate < 1.0 for rate in reduction.keep_rates[: family.whole_layers]):
        rates = ", ".join(f"{rate:g}" for rate in reduction.keep_rates[: family.whole_layers])
        raise UnsupportedError(
            f"the first {family.whole_layers} decoder layers must see every vision token",
            actual=f"keep rates {rates}",
            place=family.architecture,
            remedy="search a schedule whose reduction starts later",
        )


def check_tower_rates(tower: Tower, rates: tuple[float, ...], place: str) -> None:
    """UnsupportedError for keep rates that the layers of a tower cannot follow."""
    used = tower.used_layers
    if len(rates) != len(tower.layers):
        rule, actual = f"the tower has {len(tower.layers)} layers, and each has one keep rate", f"{len(rates)} rates"
    elif rates[0] < 1.0:
        rule, actual = "the first tower layer must get every patch, since nothing has ranked them yet", f"{rates[0]:g}"
    elif any(rate != rates[used - 1] for rate in rates[used:]):
        rule = f"tower layers behind the {used} that the decoder reads must have the keep rate of the last of these"
        actual = ", ".join(f"{rate:g}" for rate in rates[used - 1 :])
    elif not tower.class_tokens and not keep_count(rates[-1], tower.patches):
        rule, actual = "a tower without a class token must be left a patch", f"{rates[-1]:g} of {tower.patches}"
    else:
        return
    raise UnsupportedError(rule, actual=actual, place=place, remedy="change the tower's keep rates")


def check_tower_rule(tower: Tower, reads: Reads, rule: str) -> None:
    """UnsupportedError for a rule that reads what no image has, or what this tower has not, inside the tower."""
    _check_tower_rows(tower, reads, rule)
    if reads.ids or reads.text:
        raise UnsupportedError(
            "a rule inside the tower can look at images alone",
            actual="one that reads the prompt",
            place=f"rule {rule!r}",
            remedy="use the rule at the entry of the decoder or inside it",
        )
    if reads.sizes and pads_alone(tower.implementation):
        raise UnsupportedError(
            "proportional attention needs an attention implementation that takes a bias",
            actual=repr(tower.implementation),
            place=f"rule {rule!r}",
            remedy="load the model with attn_implementation='sdpa'",
        )


def check_entry_rule(tower: Tower, reads: Reads, rule: str) -> None:
    """UnsupportedError for a rule in front of the decoder that reads what this tower does not have."""
    _check_tower_rows(tower, reads, rule)
    layers = len(tower.layers)
    if reads.tower_layer is None:
        known, actual = tower.used_layers > 0, "features in front of the first layer"
    else:
        known, actual = -layers <= reads.tower_layer < layers, str(reads.tower_layer)
    if not known:
        raise UnsupportedError(
            f"the tower layer that a rule reads must be one of {layers}", actual=actual, place=f"rule {rule!r}"
        )


def check_behind_tower(reads: Reads, rule: str) -> None:
    """UnsupportedError for an entry rule that needs whole images, where the tower leaves some of their patches."""
    if reads.grids:
        raise UnsupportedError(
            "a rule that reads the grid of the patches needs all of them",
            actual="a reduction inside the tower in front of it",
            place=f"rule {rule!r}",
            remedy="use an entry rule that ranks patches one by one, or leave the tower whole",
        )


def _check_tower_rows(tower: Tower, reads: Reads, rule: str) -> None:
    if reads.rows is not None and reads.rows not in _TOWER_ROWS:
        raise UnsupportedError(
            f"of the tower, a rule can read the attention of {', '.join(_TOWER_ROWS)} tokens",
            actual=repr(reads.rows),
            place=f"rule {rule!r}",
            remedy="use the rule inside the decoder",
        )
    if reads.rows == "class" and not tower.class_tokens:
        raise UnsupportedError(
            "a rule that ranks by the class token needs a tower that has one (CLIP)",
            actual=type(tower.module).__name__,
            place=f"rule {rule!r}",
            remedy="use a rule that reads no class token, or a decoder rule",
        )


def _is_compiled(part: nn.Module) -> bool:
    return getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod")


def attention_implementation(model: nn.Module, family: Family) -> str:
    """Name of the attention implementation that the decoder runs with now."""
    return str(family.decoder(model).config._attn_implementation)  # type: ignore[union-attr]


def pads_alone(implementation: str) -> bool:
    """Whether this attention takes a padding mask [B, S] and is causal by itself."""
    return _KERNELS.get(implementation, implementation) == FLASH_ATTENTION


def check_attention(family: Family, config: Any, implementation: str) -> None:
    """UnsupportedError for an attention implementation whose masks are not served."""
    served = family.served_attention(config)
    if _KERNELS.get(implementation, implementation) not in served:
        names = " or ".join(repr(name) for name in sorted(served))
        raise UnsupportedError(
            f"the attention implementation must be {names}",
            actual=repr(implementation),
            remedy="load the model with attn_implementation='sdpa'",
        )


def check_window(window: int | None, tokens: int, layer: int) -> None:
    """UnsupportedError where a kernel that counts the tokens that are left would take a window for wider than it is."""
    if window is not None and tokens > window:
        raise UnsupportedError(
            f"under flash attention, the text must stay within the sliding window of {window} tokens, since the kernel "
            "counts the tokens that are left and not their distance in the prompt",
            actual=f"{tokens} tokens",
            place=f"decoder layer {layer + 1}",
            remedy="load the model with attn_implementation='sdpa', whose mask holds the window",
        )


def check_labels(arguments: dict[str, Any]) -> None:
    """UnsupportedError if a loss is asked for: logits are shorter than the labels."""
    if arguments.get("labels") is not None:
        raise UnsupportedError(
            "labels cannot be used, since dropped tokens have no logits",
            place=_PLACE,
            remedy="compute the loss on the logits of the text after the last image, or remove the schedule",
        )


def check_prefill(module: nn.Module, arguments: dict[str, Any], vision_mask: torch.Tensor | None) -> None:
    """UnsupportedError for a prefill that would silently be reduced wrongly, or not at all."""
    check_cache(arguments.get("past_key_values"))
    mask = arguments.get("attention_mask")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        raise UnsupportedError(
            "the attention mask must be [batch, tokens], 0 for padding",
            actual=f"{getattr(mask, 'ndim', type(mask).__name__)} dimensions",
            place=_PLACE,
            remedy="pass the mask that the processor returns",
        )
    _check_tokens(arguments, vision_mask)
    _check_packing(arguments)
    if module.training and any(getattr(part, "gradient_checkpointing", False) for part in module.modules()):
        raise UnsupportedError(
            "gradient checkpointing cannot be used, since it runs layers again outside the forward pass",
            place=_PLACE,
            remedy="call model.eval() before the forward pass",
        )


def _check_tokens(arguments: dict[str, Any], vision_mask: torch.Tensor | None) -> None:
    if arguments.get("input_ids") is None and vision_mask is None:
        raise UnsupportedError(
            "input_ids must be given, since they tell vision tokens from text",
            actual="inputs_embeds",
            place=_PLACE,
            remedy="pass input_ids with pixel_values, or mark the vision tokens: handle.vision_mask(...)",
        )
    if arguments.get("input_ids") is not None and vision_mask is not None:
        raise UnsupportedError(
            "a vision mask is for prompts that come as embeddings",
            actual="a prompt of input_ids",
            place="vision_mask",
            remedy="pass inputs_embeds, or leave the vision_mask block: input_ids tell vision tokens from text",
        )


def _check_packing(arguments: dict[str, Any]) -> None:
    if any(arguments.get(name) is not None for name in _PACKED) or _restarts(arguments):
        raise UnsupportedError(
            "a row of the batch must be one prompt, since its tokens are ranked together",
            actual="packed sequences",
            place=_PLACE,
            remedy="pass one prompt per row, padded on the left",
        )


def _restarts(arguments: dict[str, Any]) -> bool:
    """Whether positions start again within a row, which transformers reads as packed where nothing says otherwise."""
    positions = arguments.get("position_ids")
    if positions is None or positions.ndim != 2:
        return False
    if arguments.get("attention_mask") is not None or arguments.get("past_key_values") is not None:
        return False
    return bool((positions[:, 1:] < positions[:, :-1]).any())


def check_not_compiling() -> None:
    """UnsupportedError inside of torch.compile: hooks keep state beside the graph that a trace would freeze."""
    if torch.compiler.is_compiling():
        raise UnsupportedError(
            "a forward pass under a schedule cannot be compiled", place=_PLACE, remedy="run it without torch.compile"
        )


def check_unscheduled(module: nn.Module, kind: type) -> None:
    """UnsupportedError for a tower that has hooks of this kind: its features would not be what is asked for."""
    if any(isinstance(getattr(hook, "__self__", None), kind) for hook in module._forward_hooks.values()):
        raise UnsupportedError(
            "features must be computed by a tower that is under no schedule",
            actual="a model that has one",
            remedy="compute them before the schedule is applied",
        )


def check_vision_mask(mask: object) -> None:
    """UnsupportedError for anything but a [B, S] tensor of bool."""
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
        found = f"{list(mask.shape)} of {mask.dtype}" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise UnsupportedError(
            "the vision mask must be a tensor [batch, tokens] of bool",
            actual=found,
            place="vision_mask",
            remedy="pass True for the embeddings of vision tokens, False for all others",
        )


def prompt_slots(positional: tuple[Any, ...], arguments: dict[str, Any]) -> int | None:
    """Length of the prompt that ``generate`` is called with, None if it has none."""
    first = positional[0] if positional else None
    given = (arguments.get("inputs_embeds"), arguments.get("input_ids"), arguments.get("inputs"), first)
    return next((int(prompt.shape[1]) for prompt in given if isinstance(prompt, torch.Tensor)), None)


def check_generation(model: nn.Module, positional: tuple[Any, ...], arguments: dict[str, Any]) -> None:
    """UnsupportedError for settings of ``generate`` that change how the prompt is read, before anything runs."""
    assistant = arguments.get("assistant_model")
    if assistant is not None and hasattr(getattr(assistant, "generate", None), "handle"):
        raise UnsupportedError(
            "an assistant must be without a schedule, since its cache is cropped into its prompt",
            actual="a model that has one",
            place="generate",
            remedy="remove the assistant's schedule; only guesses come from it",
        )
    configs = [arguments.get("generation_config"), *positional, getattr(model, "generation_config", None)]
    chunk = _setting("prefill_chunk_size", arguments, configs)
    if chunk is not None:
        raise UnsupportedError(
            "a prompt must be read in one piece, since tokens are ranked by the whole of it",
            actual=f"prefill_chunk_size={chunk}",
            place="generate",
            remedy="leave prefill_chunk_size unset",
        )
    cache = _setting("cache_implementation", arguments, configs)
    if cache not in _DYNAMIC:
        raise UnsupportedError(
            "the KV cache must be a plain DynamicCache, since layers hold different numbers of tokens",
            actual=f"cache_implementation={cache!r}",
            place="generate",
            remedy="leave cache_implementation unset",
        )


def _setting(name: str, arguments: dict[str, Any], configs: list[Any]) -> Any:
    """A generation setting: the keyword, or the first configuration that has it."""
    if arguments.get(name) is not None:
        return arguments[name]
    return next((value for config in configs if (value := getattr(config, name, None)) is not None), None)
