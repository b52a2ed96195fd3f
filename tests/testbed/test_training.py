from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor

from scheduler_search.testbed.batches import NO_TARGET, PREFIX, BatchPlan, packed_batch
from scheduler_search.testbed.loop import Lesson, Stage, run_step
from scheduler_search.testbed.model import build_model, grow, vision_features
from scheduler_search.testbed.penalty import attention_on_empty_patches, text_attention
from scheduler_search.testbed.questions import CATEGORIES, MIXTURE
from scheduler_search.testbed.train import FULL, QUICK
from scheduler_search.testbed.vocabulary import EOS, PAD, WORD_IDS

PLAN = BatchPlan(images=3, questions=5, mixture=MIXTURE, objects=(5, 9), end_of_answer=True)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), step=st.integers(0, 1000), ends=st.booleans())
def test_every_question_has_one_answer_and_sees_the_image_and_itself_only(seed: int, step: int, ends: bool) -> None:
    plan = BatchPlan(images=2, questions=4, mixture=MIXTURE, objects=(5, 9), end_of_answer=ends)
    batch = packed_batch(seed, step, plan)
    answers = batch.categories >= 0
    assert answers.sum(1).tolist() == [4, 4]
    assert (batch.targets[answers] != NO_TARGET).all()
    assert int((batch.targets == WORD_IDS[EOS]).sum()) == (8 if ends else 0)
    seen = batch.mask[:, 0].sum(-1)
    text = batch.ids[:, PREFIX:] != WORD_IDS[PAD]
    # A token sees everything before its own position, and itself: no more, no less.
    assert torch.equal(seen[:, PREFIX:][text], batch.positions[:, PREFIX:][text] + 1)


def test_packed_questions_are_answered_as_if_asked_alone() -> None:
    model = build_model(layers=3, seed=0).eval()
    batch = packed_batch(0, 0, BatchPlan(1, 5, MIXTURE, (5, 9), False))
    with torch.no_grad():
        embedded = model.get_input_embeddings()(batch.ids)
        embedded[:, 1:PREFIX] = vision_features(model, batch.pixels)
        decoder = model.model.language_model
        packed = decoder(inputs_embeds=embedded, attention_mask=batch.mask, position_ids=batch.positions)
        (ends,) = torch.where(batch.categories[0] >= 0)
        begin = PREFIX
        for end in ends.tolist():
            single = torch.cat([embedded[:, :PREFIX], embedded[:, begin : end + 1]], 1)
            alone = decoder(inputs_embeds=single).last_hidden_state[0, -1]
            assert torch.allclose(packed.last_hidden_state[0, end], alone, atol=1e-4)
            begin = end + 1


def test_the_penalty_is_the_attention_that_the_model_pays() -> None:
    model = build_model(layers=3, seed=1).eval()
    decoder = model.model.language_model
    batch = packed_batch(0, 1, PLAN)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        mask = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, float("-inf"))
        output = decoder(
            inputs_embeds=model.get_input_embeddings()(batch.ids),
            attention_mask=mask,
            position_ids=batch.positions,
            output_attentions=True,
            output_hidden_states=True,
        )
        weights = text_attention(decoder, 1, output.hidden_states[1], batch)
        penalty = attention_on_empty_patches(decoder, output.hidden_states, batch, (1,))
    expected = output.attentions[1][:, :, PREFIX:]
    assert torch.allclose(weights, expected, atol=1e-5)
    words = batch.ids[:, PREFIX:] != WORD_IDS[PAD]
    on_empty = (expected[..., 1:PREFIX] * batch.empty[:, None, None]).sum(-1).mean(1)[words].mean()
    assert float(penalty) == pytest.approx(float(on_empty), abs=1e-5)


def test_a_grown_layer_with_scale_zero_changes_nothing() -> None:
    small = build_model(layers=2, seed=2).eval()
    large = grow(small, ((0, 1.0), (1, 1.0), (1, 0.0))).eval()
    ids = torch.tensor([[2, 6, 8, 30]])
    with torch.no_grad():
        assert torch.allclose(small(input_ids=ids).logits, large(input_ids=ids).logits, atol=1e-5)


def test_growth_to_twelve_layers_is_the_plan() -> None:
    assert len(grow(build_model(layers=4, seed=0)).model.language_model.layers) == 12


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, again, other = packed_batch(3, 4, PLAN), packed_batch(3, 4, PLAN), packed_batch(3, 5, PLAN)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.pixels, other.pixels)


def test_the_curriculum_ends_with_the_questions_of_the_splits() -> None:
    stage = Stage(10, 1, 1, 1e-3, 1, 0.5, lessons=(Lesson(3, (2, 4), {"at": 1.0}), Lesson(5, (3, 6))))
    assert [stage.plan(step).objects for step in (0, 2, 3, 4, 5, 9)] == [(2, 4)] * 2 + [(3, 6)] * 2 + [(5, 9)] * 2
    assert FULL.small.plan(FULL.small.steps - 1).mixture == MIXTURE
    assert stage.rate(9) < stage.rate(4)


def test_a_step_reports_every_question() -> None:
    batch = packed_batch(0, 0, PLAN)
    result = run_step(build_model(layers=4, seed=0), batch, (1, 2))
    assert int((result.categories >= 0).sum()) == 15
    assert result.categories.max() < len(CATEGORIES)
    assert 0 < result.penalty.item() < 1
    assert result.loss.isfinite()


def test_quick_exercises_every_part_of_the_recipe() -> None:
    assert QUICK.large.attention_penalty == FULL.large.attention_penalty
    assert QUICK.large.end_of_answer


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("--no-attention-penalty",)])
def test_the_command_writes_a_checkpoint_that_loads(tmp_path: Path, extra: tuple[str, ...]) -> None:
    out, small = tmp_path / "tiny", tmp_path / "small"
    command = [sys.executable, "-m", "scheduler_search.testbed.train", "--quick", "--out", str(out), "--small"]
    written = []
    for _ in range(2):  # the second run reads the four-layer model, and ends with the same weights
        subprocess.run([*command, str(small), *extra], check=True, capture_output=True)
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1]
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert len(model.model.language_model.layers) == 12
    assert AutoProcessor.from_pretrained(out).chat_template
    assert str(tmp_path) not in "".join(path.read_text() for path in out.glob("*.json"))
