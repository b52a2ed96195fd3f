"""Prefill of many questions with given keep counts: a compact functional pass for the tables of the testbed.

Knows: the llama decoder of the tiny LLaVA, sorting by attention, dropping. Does not know: the runtime (which serves any
model through hooks); it is written independently of it, so the two can be held against each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from scheduler_search.testbed.generator import Question
from scheduler_search.testbed.model import VISION_TOKENS, pixel_values, vision_features
from scheduler_search.testbed.vocabulary import BOS, WORD_IDS

BATCH = 250
Ranking = Literal["attention", "random"]


@dataclass(frozen=True)
class State:
    """What enters a decoder layer.

    Attributes:
        hidden: [B, T, hidden]: ``<s>``, the vision tokens that are left, the words of the question.
        positions: int64 [B, T], the positions that the tokens had in the unreduced sequence.
        vision: number of vision tokens that are left, the same in every row.
        scores: [B, vision], the attention each of them received in the layer before; None before the first layer.
    """

    hidden: Tensor
    positions: Tensor
    vision: int
    scores: Tensor | None


@dataclass(frozen=True)
class Group:
    """Questions of equal length, so that nothing is padded: their places in the list, answers, and first state."""

    places: tuple[int, ...]
    answers: Tensor
    start: State


class Prefill:
    """A list of questions, ready to be answered under any keep counts by one prefill each.

    The states of the unreduced pass are kept (0.4 MB per question), so that a run begins at its first reduction.
    """

    def __init__(self, model: LlavaForConditionalGeneration, questions: Sequence[Question]) -> None:
        self.model = model
        self.layers = len(model.model.language_model.layers)
        self.categories = np.array([question.category for question in questions])
        with torch.no_grad():
            self.groups = _groups(model, questions)
            self._unreduced = [self._unreduced_states(group.start) for group in self.groups]

    def run(self, counts: Sequence[int], ranking: Ranking = "attention", seed: int = 0) -> npt.NDArray[np.float64]:
        """1.0 for every question answered rightly, 0.0 for the others, in the order of the list.

        Args:
            counts: vision tokens at the input of every layer, non-increasing; by attention, layer 1 keeps all or none.
            ranking: which tokens stay: those with most attention in the layer before, or random ones.
            seed: of the random ranking.
        """
        generator = torch.Generator().manual_seed(seed)
        correct = np.zeros(len(self.categories))
        with torch.no_grad():
            for group, unreduced in zip(self.groups, self._unreduced, strict=True):
                final = self._from_first_reduction(unreduced, counts, generator if ranking == "random" else None)
                correct[list(group.places)] = (self._answers(final) == group.answers).double().numpy()
        return correct

    def scores(self) -> Tensor:
        """[L, n, 64]: attention received by every vision token in every layer of the unreduced pass."""
        layers = range(1, self.layers + 1)
        return torch.stack([torch.cat([cast(Tensor, states[i].scores) for states in self._unreduced]) for i in layers])

    def _unreduced_states(self, start: State) -> list[State]:
        states = [start]
        for layer in range(self.layers):
            states.append(self._layer(layer, states[-1]))
        return states

    def _from_first_reduction(
        self, unreduced: Sequence[State], counts: Sequence[int], generator: torch.Generator | None
    ) -> State:
        first = next((layer for layer, count in enumerate(counts) if count < VISION_TOKENS), self.layers)
        state = unreduced[first]
        for layer in range(first, self.layers):
            state = self._layer(layer, _reduced(state, counts[layer], generator))
        return state

    def _answers(self, final: State) -> Tensor:
        normed = self.model.model.language_model.norm(final.hidden[:, -1])
        return cast(Tensor, self.model.lm_head(normed).argmax(1))

    def _layer(self, layer: int, state: State) -> State:
        decoder = self.model.model.language_model
        block = decoder.layers[layer]
        attention = block.self_attn
        normed = block.input_layernorm(state.hidden)
        shape = (*normed.shape[:2], -1, attention.head_dim)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (projection(normed).view(shape).transpose(1, 2) for projection in projections)
        query, key = apply_rotary_pos_emb(query, key, *decoder.rotary_emb(normed, position_ids=state.positions))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = state.hidden + attention.o_proj(attended.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
        return State(hidden, state.positions, state.vision, _received(query, key, state.vision))


def _received(query: Tensor, key: Tensor, vision: int) -> Tensor:
    """[B, vision]: mean over heads and words of the question of the attention on every vision token."""
    first_word = 1 + vision
    logits = query[:, :, first_word:] @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(first_word + 1)
    weights = logits.masked_fill(future, float("-inf")).softmax(-1)
    return cast(Tensor, weights[..., 1:first_word].mean((1, 2)))


def _reduced(state: State, count: int, generator: torch.Generator | None) -> State:
    """``state`` with ``count`` vision tokens: by its scores, or by ``generator`` where there is one."""
    if count >= state.vision:
        return state
    rows, length = state.positions.shape
    if count == 0:
        kept = torch.empty(rows, 0, dtype=torch.int64)
    else:
        scores = state.scores if generator is None else torch.rand(rows, state.vision, generator=generator)
        kept = cast(Tensor, scores).topk(count, 1).indices.sort(1).values + 1
    words = torch.arange(1 + state.vision, length).expand(rows, -1)
    index = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), kept, words], 1)
    hidden = state.hidden.gather(1, index[:, :, None].expand(-1, -1, state.hidden.shape[2]))
    return State(hidden, state.positions.gather(1, index), count, None)


def _groups(model: LlavaForConditionalGeneration, questions: Sequence[Question]) -> list[Group]:
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        by_length[len(question.question.split())].append(place)
    batches = [
        places[start : start + BATCH]
        for _, places in sorted(by_length.items())
        for start in range(0, len(places), BATCH)
    ]
    return [_group(model, tuple(places), [questions[place] for place in places]) for places in batches]


def _group(model: LlavaForConditionalGeneration, places: tuple[int, ...], questions: Sequence[Question]) -> Group:
    embed = model.get_input_embeddings()
    words = torch.tensor([[WORD_IDS[word] for word in question.question.split()] for question in questions])
    start = torch.full((len(questions), 1), WORD_IDS[BOS])
    features = vision_features(model, pixel_values([np.asarray(question.image) for question in questions]))
    hidden = torch.cat([embed(start), features, embed(words)], 1)
    positions = torch.arange(hidden.shape[1]).expand(len(questions), -1)
    answers = torch.tensor([WORD_IDS[question.answer] for question in questions])
    return Group(places, answers, State(hidden, positions, VISION_TOKENS, None))
