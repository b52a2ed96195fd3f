"""The vision-feature store serves every family: nobody can tell from the logits that the tower did not run."""

from typing import Any

import pytest
import torch

from scheduler_search.evaluation.batches import Part, direct_arguments, split_arguments
from scheduler_search.evaluation.scoring import first_logits
from scheduler_search.runtime import apply_reduction
from tests.runtime.families import BUILDERS
from tests.runtime.tiny import reduction

CPU = torch.device("cpu")
QUICK = ("llava-next", "idefics3", "internvl-qwen2")  # features as a tuple, as a list, as one tensor
FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BUILDERS]


@pytest.fixture
def tower_calls() -> list[str]:
    return []


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_stored_features_change_no_bit(name: str, tower_calls: list[str]) -> None:
    builder = BUILDERS[name]
    model: Any = builder.build(builder.attention[0])
    batch = split_arguments(builder.batch(builder.samples("varying")), model)
    part = Part(batch)
    hook = model.get_encoder(modality="image").register_forward_hook(lambda *_: tower_calls.append("tower"))
    for applied in (reduction((1.0,)), reduction()):
        with apply_reduction(model, applied):
            direct = first_logits(model, direct_arguments(batch, CPU))
            tokens = model.generate(**direct_arguments(batch, CPU), max_new_tokens=3, do_sample=False)
            tower_calls.clear()
            for _ in range(2):
                assert torch.equal(first_logits(model, part.arguments(model, CPU)), direct)
            stored = model.generate(**part.arguments(model, CPU), max_new_tokens=3, do_sample=False)
            assert torch.equal(stored, tokens)
            assert len(tower_calls) == (1 if applied.keep_rates[-1] == 1.0 else 0)  # for the store itself, once
    hook.remove()
