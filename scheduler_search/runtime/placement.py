"""Where the parts of a model run that accelerate has spread over several devices (``device_map``).

accelerate replaces the ``forward`` of every module by one that first moves arguments to the module's device, and the
weights too where they are kept elsewhere. A forward pre-hook of torch runs before that. So ours, in front of a decoder
layer, finds hidden states where the layer before left them, and masks and rotary embeddings where the model made them;
it gathers each of these where it is, and accelerate moves what it gives. Keys and values stay where their layer runs.

Tested with weights that are offloaded from a CPU, and with devices that are labels on tensors of a CPU. It has not run
on a machine with two GPUs: none was available.
"""

from __future__ import annotations

import torch
from torch import nn


def execution_device(module: nn.Module, default: torch.device) -> torch.device:
    """The device that accelerate runs this module on; ``default`` where it has no part in it."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):  # several where weights are offloaded
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return default
