"""Vision features are computed once per batch, and nobody can tell from the logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from scheduler_search.evaluation.batches import Part, direct_arguments, make_batch
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.evaluation.prompts import make_prompt
from scheduler_search.evaluation.samples import Sample
from scheduler_search.evaluation.scoring import first_logits
from scheduler_search.evaluation.sources import read_splits
from scheduler_search.runtime import apply_reduction
from scheduler_search.study.definition import StudyDefinition
from tests.evaluation.conftest import FULL, REDUCED

CPU = torch.device("cpu")


@pytest.fixture
def loaded(definition: Callable[..., StudyDefinition]) -> LoadedModel:
    return load_model(definition().model)


@pytest.fixture
def samples(definition: Callable[..., StudyDefinition]) -> tuple[Sample, ...]:
    return read_splits(definition())["search"][:5]


@pytest.fixture
def batch(loaded: LoadedModel, samples: tuple[Sample, ...]) -> Any:
    return make_batch(samples, make_prompt("auto", loaded.processor, "tiny"), loaded.model)


def test_batches_are_padded_on_the_left(batch: Any) -> None:
    mask = batch.language["attention_mask"]
    assert mask.sum(1).min() < mask.shape[1]  # the questions have different lengths
    assert bool((mask.diff(dim=1) >= 0).all())


def test_a_batch_holds_what_its_samples_hold_alone(loaded: LoadedModel, samples: Any, batch: Any) -> None:
    prompt = make_prompt("auto", loaded.processor, "tiny")
    for row, sample in enumerate(samples):
        alone = make_batch([sample], prompt, loaded.model)
        kept = batch.input_ids[row][batch.language["attention_mask"][row].bool()]
        assert torch.equal(kept, alone.input_ids[0])
        assert torch.equal(batch.vision["pixel_values"][row], alone.vision["pixel_values"][0])


@pytest.mark.parametrize("reduction", [None, FULL, REDUCED])
@torch.inference_mode()
def test_stored_features_give_the_same_logits_bit_for_bit(loaded: LoadedModel, batch: Any, reduction: Any) -> None:
    model, part = loaded.model, Part(batch)
    handle = apply_reduction(model, reduction) if reduction else None
    direct = first_logits(model, direct_arguments(batch, CPU))
    stored = [first_logits(model, part.arguments(model, CPU)) for _ in range(2)]
    if handle:
        handle.remove()
    assert torch.equal(direct, stored[0])
    assert torch.equal(direct, stored[1])


@torch.inference_mode()
def test_stored_features_give_the_same_generation(loaded: LoadedModel, batch: Any) -> None:
    direct = loaded.model.generate(**direct_arguments(batch, CPU), max_new_tokens=4)
    stored = loaded.model.generate(**Part(batch).arguments(loaded.model, CPU), max_new_tokens=4)
    assert torch.equal(direct, stored)


def test_other_pixels_give_other_logits(loaded: LoadedModel, batch: Any) -> None:
    """The equality above would also hold for a model that does not look."""
    with torch.inference_mode():
        seen = first_logits(loaded.model, Part(batch).arguments(loaded.model, CPU))
        batch.vision["pixel_values"].neg_()
        assert not torch.equal(seen, first_logits(loaded.model, Part(batch).arguments(loaded.model, CPU)))
