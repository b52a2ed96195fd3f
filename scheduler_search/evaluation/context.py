"""What can change a score besides rule and keep counts, as one inspectable value, and its digest.

Knows: the ingredients of the evaluation key that an executor is responsible for. Does not know: how they are used.
"""

from __future__ import annotations

from importlib.metadata import version

import torch

from scheduler_search.evaluation.layout import LAYOUT_VERSION
from scheduler_search.evaluation.measures import Measure
from scheduler_search.evaluation.metrics import FIDELITY_VERSION
from scheduler_search.evaluation.models import LoadedModel
from scheduler_search.evaluation.prompts import Prompt
from scheduler_search.evaluation.scoring import SCORING_VERSION, Decoding

_LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy")


def model_context(loaded: LoadedModel, prompt: Prompt) -> dict[str, object]:
    """Weights, revision, processor, prompt, and how and where the model runs."""
    return {
        "weights": loaded.weights,
        "files": loaded.files,
        "revision": loaded.revision,
        "processor": [type(loaded.processor).__name__, type(loaded.processor.image_processor).__name__],
        "prompt": prompt.identity,
        "dtype": dtype_name(loaded),
        "attention": attention_name(loaded),
        "device": device_kind(loaded.device),
        **map_context(loaded),
        **encoder_context(loaded),
    }


def map_context(loaded: LoadedModel) -> dict[str, object]:
    """Of a model with a device map, its name and the kinds of device, by module where there are several; else nothing.

    Which of several devices of one kind a layer is on changes nothing.
    """
    placement = loaded.placement
    if placement is None:
        return {}
    kinds = {module: device_kind(device) for module, device in placement.modules}
    one = len(set(kinds.values())) == 1
    return {"device_map": [placement.name, device_kind(loaded.device) if one else kinds]}


def encoder_context(loaded: LoadedModel) -> dict[str, object]:
    """Weights and tokenizer of the text encoder; nothing where there is none."""
    return {} if loaded.encoder is None else {"text_encoder": [loaded.encoder.weights, loaded.encoder.files]}


def software_context(threads: int) -> dict[str, object]:
    """Library versions and thread count, which decide the order of floating-point sums."""
    return {
        "scoring": SCORING_VERSION,
        "threads": threads,
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def data_context(
    *, split_digest: str, chunk_size: int, measure: Measure, decoding: Decoding, end_tokens: object
) -> dict[str, object]:
    """Data, chunk layout, measure, and generation settings; a single prefill has none but itself."""
    metric = measure.metric
    context: dict[str, object] = {
        "data": split_digest,
        "chunk_size": chunk_size,
        "layout": LAYOUT_VERSION,
        "metric": [metric.name, metric.version],
        "generation": {"mode": decoding.mode},
    }
    if decoding.mode == "generate":
        settings = {"max_new_tokens": decoding.max_new_tokens, "end_tokens": end_tokens}
        context["generation"] = {"mode": decoding.mode, **settings}
    if measure.needs_fidelity and metric.score is not None:  # else the metric says it
        context["fidelity"] = {"weight": measure.weight, "version": FIDELITY_VERSION}
    return context


def dtype_name(loaded: LoadedModel) -> str:
    """``float32`` and the like, of the loaded weights."""
    return str(loaded.model.dtype).removeprefix("torch.")


def attention_name(loaded: LoadedModel) -> str:
    """The attention implementation in use."""
    return str(loaded.model.config._attn_implementation)


def device_kind(device: torch.device) -> str:
    """What decides which kernels run: the model of the accelerator, or the vector instructions of the CPU."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"
