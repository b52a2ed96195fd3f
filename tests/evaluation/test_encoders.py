"""Rules that compare patches with questions in CLIP's space, over stored features and in a study's evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from scheduler_search.errors import ModelError, UnsupportedError
from scheduler_search.evaluation import LocalExecutor, scoring
from scheduler_search.evaluation.batches import make_parts
from scheduler_search.evaluation.context import encoder_context
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.evaluation.prompts import make_prompt
from scheduler_search.evaluation.sources import read_splits
from scheduler_search.rule import make_rule
from scheduler_search.runtime import apply_reduction, views_wanted
from scheduler_search.schedule.values import Reduction, VisionReduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.values import ChunkTask
from tests.clip import save_clip
from tests.evaluation.conftest import LAYERS
from tests.evaluation.test_prefixes import assert_same, recorded, results  # noqa: F401  # a fixture

Make = Callable[..., StudyDefinition]
CPU = torch.device("cpu")
RULE = make_rule("cdpruner", {"text_features": "clip"})
ATTENTION = make_rule("attention-rank")


@pytest.fixture(scope="session")
def clip(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = LlavaForConditionalGeneration.from_pretrained(tiny_model)
    return save_clip(tmp_path_factory.mktemp("encoders") / "clip", model.base_model.vision_tower)


@pytest.fixture
def study(definition: Make, clip: Path) -> Make:
    def make(**changes: Any) -> StudyDefinition:
        model = {"text_encoder": str(clip), **changes.pop("model", {})}
        rule = {"name": "cdpruner", "text_features": "clip"}
        return definition(**{"model": model, "rule": rule, **changes})

    return make


def reduction(*rates: float, tower: float | None = None) -> Reduction:
    vision = None if tower is None else VisionReduction((1.0, tower), make_rule("evit"))
    return Reduction((*rates, *[rates[-1]] * (LAYERS - len(rates))), ATTENTION, RULE, vision)


PLAIN = Reduction((1.0,) * LAYERS, ATTENTION)
ENTRY = reduction(0.5, 0.25)


@pytest.fixture
def loaded(study: Make) -> LoadedModel:
    return load_model(study().model)


def part_of(loaded: LoadedModel, definition: StudyDefinition, store: Any = None) -> Any:
    samples, prompt = read_splits(definition)["search"][:3], make_prompt("auto", loaded.processor, "tiny")
    wanted = views_wanted(loaded.model, RULE)
    parts = make_parts(samples, prompt, loaded.model, store, wanted, loaded.question_encoder)
    assert len(parts) == 1
    assert parts[0].questions == tuple(samples[row].question for row in parts[0].rows)
    return parts[0]


@torch.inference_mode()
def test_stored_features_and_text_give_the_same_bits(
    loaded: LoadedModel, study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, encoder = part_of(loaded, study()), loaded.question_encoder
    assert encoder is not None
    calls: list[tuple[str, ...]] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: (calls.append(tuple(texts)), encode(texts))[1])
    for applied in (PLAIN, ENTRY, reduction(0.25)):
        arguments, views = part.inputs(loaded.model, CPU, applied)
    assert calls == [part.questions]  # once for all of them
    with apply_reduction(loaded.model, reduction(0.25), question_encoder=encoder) as handle:
        with handle.questions(part.questions):
            direct = scoring.first_logits(loaded.model, part.whole_arguments(CPU))
        with handle.tower_views(views):
            assert torch.equal(scoring.first_logits(loaded.model, arguments), direct)


def test_the_time_of_a_prefill_that_runs_the_tower_has_the_questions(
    loaded: LoadedModel, study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "REPEATS", 1)
    part = part_of(loaded, study())
    inside = Reduction((0.5,) * LAYERS, ATTENTION, None, VisionReduction((1.0, 0.5), make_rule("evit")))
    assert len(scoring.prefill_milliseconds(loaded, [part], [PLAIN, ENTRY])) == 2
    assert len(scoring.prefill_milliseconds(loaded, [part], [PLAIN, ENTRY, inside])) == 3


def test_the_encoder_is_part_of_the_context(loaded: LoadedModel, study: Make, definition: Make, tmp_path: Path) -> None:
    context = encoder_context(loaded)
    assert set(context) == {"text_encoder"}
    assert encoder_context(load_model(definition().model)) == {}
    other = save_clip(tmp_path / "clip", loaded.model.base_model.vision_tower, seed=1)
    assert encoder_context(load_model(study(model={"text_encoder": str(other)}).model)) != context


def test_another_tower_is_refused_before_anything_is_scored(study: Make, loaded: LoadedModel, tmp_path: Path) -> None:
    wide = save_clip(tmp_path / "wide", loaded.model.base_model.vision_tower, hidden_size=32)
    worker = LocalExecutor(study(model={"text_encoder": str(wide)}))
    with pytest.raises(UnsupportedError, match="hidden_size 16, not 32"):
        list(worker.run([ChunkTask("search", 0, PLAIN)]))


@pytest.mark.parametrize(
    ("name", "says"),
    [("testbed:tiny-llava", "must be a CLIP model, but got type 'llava'"), ("./gone", r"check \[model\] text_encoder")],
)
def test_what_cannot_be_loaded_is_refused(study: Make, name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(study(model={"text_encoder": name}).model)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1 << 30, 60_000, 1])
def test_no_score_depends_on_what_is_stored(study: Make, recorded: Any, memory: int) -> None:  # noqa: F811
    reductions = [PLAIN, *(reduction(entry, rate) for entry in (0.5, 0.25) for rate in (0.25, 0.125))]
    plain, stored = LocalExecutor(study(), prefix_memory=0), LocalExecutor(study(), prefix_memory=memory)
    tasks = [ChunkTask("search", chunk, one, 1) for one in reductions for chunk in range(2)]
    expected = results(plain, tasks, recorded)
    for _ in range(2):
        assert_same(results(stored, tasks, recorded), expected)
