"""One stage of training the whole model on packed questions.

Knows: the optimiser, the learning-rate plan, the curriculum, the loss. Does not know: where models come from or go to.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from scheduler_search.testbed.attention import use_float32_attention
from scheduler_search.testbed.batches import NO_TARGET, PREFIX, BatchPlan, PackedBatch, packed_batch
from scheduler_search.testbed.model import vision_features
from scheduler_search.testbed.penalty import attention_on_empty_patches
from scheduler_search.testbed.questions import CATEGORIES, MIXTURE
from scheduler_search.testbed.scenes import OBJECTS, random_stream

END_OF_ANSWER_WEIGHT = 0.1
"""Weight of predicting ``</s>`` behind the answer, relative to predicting the answer."""
REPORT_EVERY = 50


@dataclass(frozen=True)
class Lesson:
    """What is asked before step ``until``: number of objects and mixture of categories."""

    until: int
    objects: tuple[int, int]
    mixture: Mapping[str, float] = field(default_factory=lambda: MIXTURE)


@dataclass(frozen=True)
class Stage:
    """The plan of one stage. ``cooldown`` is the share of the steps over which the learning rate falls to zero."""

    steps: int
    images: int
    questions: int
    learning_rate: float
    warmup: int
    cooldown: float
    lessons: tuple[Lesson, ...] = ()
    end_of_answer: bool = False
    attention_penalty: float = 0.0

    def plan(self, step: int) -> BatchPlan:
        """What the batch of ``step`` is drawn from; after the last lesson, the questions of the splits."""
        final = Lesson(self.steps, OBJECTS)
        lesson = next((lesson for lesson in self.lessons if step < lesson.until), final)
        return BatchPlan(self.images, self.questions, lesson.mixture, lesson.objects, self.end_of_answer)

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` (0-based)."""
        left = (self.steps - step) / (self.steps * self.cooldown)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * max(0.02, min(1.0, left))


@dataclass(frozen=True)
class StepResult:
    """Loss without penalty, the penalty, and for every question whether it was right, with its category."""

    loss: Tensor
    penalty: Tensor
    correct: Tensor
    categories: Tensor


class _Tally:
    """Means since the last report."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.penalties: list[float] = []
        self.right = torch.zeros(len(CATEGORIES))
        self.asked = torch.zeros(len(CATEGORIES))

    def add(self, result: StepResult) -> None:
        self.losses.append(result.loss.item())
        self.penalties.append(result.penalty.item())
        answers = result.categories >= 0
        self.right.index_add_(0, result.categories[answers], result.correct[answers].float())
        self.asked.index_add_(0, result.categories[answers], torch.ones(int(answers.sum())))

    def __str__(self) -> str:
        shares = zip(CATEGORIES, (self.right / self.asked.clamp(min=1)).tolist(), strict=True)
        return (
            f"loss {sum(self.losses) / len(self.losses):.3f} penalty {sum(self.penalties) / len(self.penalties):.3f} "
            f"accuracy {float(self.right.sum() / self.asked.sum()):.3f} | "
            + " ".join(f"{name} {share:.2f}" for name, share in shares)
        )


def train_stage(
    model: LlavaForConditionalGeneration, stage: Stage, seed: int, say: Callable[[str], None]
) -> LlavaForConditionalGeneration:
    """Train ``model`` in place by ``stage`` and return it. The data depend on ``seed`` alone, not on the penalty."""
    use_float32_attention(model)
    optimizer = _optimizer(model, stage)
    penalised = random_stream("penalty", seed)
    tally, start = _Tally(), time.monotonic()
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        batch = packed_batch(seed, step, stage.plan(step))
        layers = _penalised_layers(model, penalised) if stage.attention_penalty else ()
        result = run_step(model, batch, layers)
        optimizer.zero_grad()
        (result.loss + stage.attention_penalty * result.penalty).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tally.add(result)
        if step % REPORT_EVERY == REPORT_EVERY - 1 or step == stage.steps - 1:
            say(f"step {step + 1} seconds {time.monotonic() - start:.0f} {tally}")
            tally = _Tally()
    return model


def run_step(model: LlavaForConditionalGeneration, batch: PackedBatch, penalised: tuple[int, ...]) -> StepResult:
    """Forward pass and losses, with bfloat16 matrix products. ``penalised``: 0-based layers of the penalty."""
    with torch.autocast("cpu", torch.bfloat16):
        features = vision_features(model, batch.pixels)
        embedded = model.get_input_embeddings()(batch.ids)
        embedded = torch.cat([embedded[:, :1], features.to(embedded.dtype), embedded[:, PREFIX:]], 1)
        output = model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=bool(penalised),
        )
        penalty = torch.zeros(())
        if penalised:
            penalty = attention_on_empty_patches(model.model.language_model, output.hidden_states, batch, penalised)
        asked = batch.targets != NO_TARGET
        logits = model.lm_head(output.last_hidden_state[asked]).float()
    targets, categories = batch.targets[asked], batch.categories[asked]
    weights = torch.where(categories >= 0, 1.0, END_OF_ANSWER_WEIGHT)
    loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
    return StepResult(loss, penalty.float(), logits.argmax(1) == targets, categories)


def _penalised_layers(model: LlavaForConditionalGeneration, stream: random.Random) -> tuple[int, ...]:
    """The second layer, always, and two of the later ones (0-based)."""
    return (1, *stream.sample(range(2, len(model.model.language_model.layers)), 2))


def _optimizer(model: LlavaForConditionalGeneration, stage: Stage) -> torch.optim.AdamW:
    tower: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        chosen = tower if "vision_tower" in name else matrices if parameter.ndim > 1 else vectors
        chosen.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
        {"params": tower, "weight_decay": 0.01},
    ]
    return torch.optim.AdamW(groups, stage.learning_rate, betas=(0.9, 0.98), fused=True)
