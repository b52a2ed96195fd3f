"""The fidelity is exp(-KL) of next-token distributions, by hand; 1 for the unreduced model; the same however found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from scheduler_search.errors import ModelError
from scheduler_search.evaluation import scoring
from scheduler_search.evaluation.batches import Part, make_batch
from scheduler_search.evaluation.fidelity import Reference, ReferenceStore, divergence
from scheduler_search.evaluation.measures import Measure, Outcome
from scheduler_search.evaluation.metrics import metric_of
from scheduler_search.evaluation.models import LoadedModel, load_model
from scheduler_search.evaluation.prompts import make_prompt
from scheduler_search.evaluation.samples import Sample
from scheduler_search.evaluation.scoring import Decoding
from scheduler_search.evaluation.sources import read_splits
from scheduler_search.runtime import PrefixRun, apply_reduction
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition
from tests.evaluation.conftest import FULL, REDUCED, uniform_from_second

pytestmark = pytest.mark.slow

Make = Callable[..., StudyDefinition]
PREFILL, GENERATE = Decoding("prefill", 16), Decoding("generate", 6)


@pytest.fixture
def loaded(definition: Make) -> LoadedModel:
    return load_model(definition().model)


@pytest.fixture
def samples(definition: Make) -> tuple[Sample, ...]:
    return read_splits(definition())["search"][:4]


@pytest.fixture
def part(loaded: LoadedModel, samples: tuple[Sample, ...]) -> Part:
    return Part(make_batch(samples, make_prompt("auto", loaded.processor, "tiny"), loaded.model))


def fidelities(loaded: LoadedModel, part: Part, reduction: Reduction, decoding: Decoding, **more: Any) -> Any:
    reference = scoring.make_reference(loaded, part, decoding)
    return scoring.run(loaded, part, reduction, decoding, reference=reference, **more).fidelities


def kl_by_hand(first: list[float], second: list[float]) -> float:
    """In plain Python."""

    def shares(logits: list[float]) -> list[float]:
        powers = [math.exp(logit - max(logits)) for logit in logits]
        return [power / math.fsum(powers) for power in powers]

    pairs = zip(shares(first), shares(second), strict=True)
    return math.fsum(p * math.log(p / q) for p, q in pairs if p > 0)


# -- the divergence


def test_the_divergence_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert divergence(p + 3, q - 1).item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
    first, second = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    expected = [kl_by_hand(*map(list, pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    assert divergence(first, second).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_logits_diverge_by_exactly_nothing(dtype: torch.dtype) -> None:
    logits = (torch.randn(8, 5000, generator=torch.Generator().manual_seed(1)) * 9).to(dtype)
    logits[3, ::2] = -torch.inf
    assert divergence(logits, logits).tolist() == [0.0] * 8


def test_what_the_reference_excludes_counts_nothing_and_what_the_other_excludes_everything() -> None:
    p = torch.tensor([[0.0, -torch.inf, 0.0]])
    assert divergence(p, torch.zeros(1, 3)).item() == pytest.approx(math.log(1.5), abs=1e-12)
    reference = Reference.of(torch.tensor([[0]]), [torch.zeros(1, 3)], [])
    assert reference.fidelity([divergence(torch.zeros(1, 3), p)]) == (0.0,)


def test_logits_that_are_no_numbers_are_refused() -> None:
    reference = Reference.of(torch.tensor([[0]]), [torch.zeros(1, 3)], [])
    with pytest.raises(ModelError, match=r"logits must be numbers, but got NaN.*dtype"):
        reference.fidelity([divergence(torch.full((1, 3), torch.nan), torch.zeros(1, 3))])


def test_positions_count_up_to_and_with_the_first_end_token() -> None:
    tokens = torch.tensor([[5, 3, 0, 3], [5, 6, 7, 8], [9, 9, 9, 9]])
    reference = Reference.of(tokens, [torch.zeros(3, 10)] * 4, [3, 9])
    assert reference.lengths.tolist() == [2, 4, 1]
    steps = [torch.tensor([1.0, 1, 1]), torch.tensor([2.0, 2, 2]), torch.tensor([torch.inf, 3, torch.nan])]
    found = reference.fidelity([step.double() for step in (*steps, torch.tensor([4.0, 4, 4]))])
    assert found == pytest.approx((math.exp(-1.5), math.exp(-2.5), math.exp(-1)), abs=1e-15)
    assert Reference.of(tokens, [], []).lengths.tolist() == [4, 4, 4]


# -- prefill


def test_one_prefill_by_hand(loaded: LoadedModel, part: Part) -> None:
    with torch.inference_mode():
        arguments = part.arguments(loaded.model, loaded.device)
        full = scoring.first_logits(loaded.model, arguments)
        with apply_reduction(loaded.model, REDUCED):
            reduced = scoring.first_logits(loaded.model, arguments)
    expected = [math.exp(-kl_by_hand(p, q)) for p, q in zip(full.tolist(), reduced.tolist(), strict=True)]
    found = fidelities(loaded, part, REDUCED, PREFILL)
    assert found == pytest.approx(expected, abs=1e-9)
    assert all(0 < fidelity < 0.999 for fidelity in found)


def test_one_prefill_serves_answers_and_fidelities(
    loaded: LoadedModel, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = scoring.make_reference(loaded, part, PREFILL)
    calls: list[int] = []
    original = scoring.first_logits
    monkeypatch.setattr(scoring, "first_logits", lambda *both: calls.append(1) or original(*both))
    outcome = scoring.run(loaded, part, REDUCED, PREFILL, reference=reference)
    assert len(calls) == 1
    assert outcome.answers == scoring.run(loaded, part, REDUCED, PREFILL).answers
    assert outcome.fidelities is not None


# -- generation


@pytest.mark.parametrize("decoding", [PREFILL, GENERATE], ids=["prefill", "generate"])
def test_the_unreduced_model_has_exactly_1(loaded: LoadedModel, part: Part, decoding: Decoding) -> None:
    assert fidelities(loaded, part, FULL, decoding) == (1.0,) * 4
    nearly = uniform_from_second(0.999)  # reduces nothing: 64 tokens stay
    assert fidelities(loaded, part, nearly, decoding) == (1.0,) * 4


def test_the_reference_is_what_a_forward_over_prompt_and_answer_gives(loaded: LoadedModel, part: Part) -> None:
    reference = scoring.make_reference(loaded, part, GENERATE)
    tokens, compared = reference.tokens.clone(), reference.lengths.clone()
    for row in range(len(tokens)):  # a random model may answer with an image token, which a forward would take for one
        images = (tokens[row] == loaded.model.config.image_token_id).nonzero()
        if len(images):
            compared[row] = min(int(compared[row]), int(images[0]) + 1)
            tokens[row, int(images[0]) :] = 0
    with torch.inference_mode():
        arguments = part.arguments(loaded.model, loaded.device)
        prompt = arguments["input_ids"].shape[1]
        whole = {
            "input_ids": torch.cat([arguments["input_ids"], tokens], dim=1),
            "attention_mask": torch.cat([arguments["attention_mask"], torch.ones_like(tokens)], dim=1),
        }
        logits = loaded.model(**{**arguments, **whole}, use_cache=False).logits[:, prompt - 1 :]
    assert compared.sum() > 12
    for row, length in enumerate(compared.tolist()):
        found = torch.stack([step[row] for step in reference.logits[:length]])
        assert torch.equal(found.argmax(-1), reference.tokens[row, :length])
        torch.testing.assert_close(found, logits[row, :length], atol=2e-4, rtol=1e-4)


def manual_logits(loaded: LoadedModel, part: Part, reduction: Reduction, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of a decode loop along ``tokens`` [B, T] by ``forward`` alone."""
    model, found = loaded.model, []
    with torch.inference_mode(), apply_reduction(model, reduction):
        arguments = part.arguments(model, loaded.device)
        mask = arguments["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(**arguments, position_ids=positions, use_cache=True)
        for step in range(tokens.shape[1]):
            found.append(output.logits[:, -1])
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
            output = model(
                input_ids=tokens[:, step : step + 1],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("ends", [3, None, "early"])
def test_a_driven_generation_is_a_decode_loop_along_the_reference(loaded: LoadedModel, part: Part, ends: Any) -> None:
    if ends == "early":  # the second token of the first answer ends answers
        ends = [3, int(scoring.make_reference(loaded, part, GENERATE).tokens[0, 1])]
    loaded.model.generation_config.eos_token_id = ends
    reference = scoring.make_reference(loaded, part, GENERATE)
    reduced = manual_logits(loaded, part, REDUCED, reference.tokens)
    expected = []
    for row, length in enumerate(reference.lengths.tolist()):
        pairs = zip(reference.logits[:length], reduced[row, :length].tolist(), strict=True)
        divergences = [kl_by_hand(step[row].tolist(), other) for step, other in pairs]
        expected.append(math.exp(-math.fsum(divergences) / length))
    found = fidelities(loaded, part, REDUCED, GENERATE, answers=False)
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(0 < fidelity < 0.999 for fidelity in found)
    if isinstance(ends, list):
        assert reference.lengths[0] == 2
    if ends is None:
        assert reference.lengths.tolist() == [6] * 4


def test_answers_beside_fidelities_are_the_models_own(loaded: LoadedModel, part: Part) -> None:
    own = scoring.run(loaded, part, REDUCED, GENERATE)
    reference = scoring.make_reference(loaded, part, GENERATE)
    both = scoring.run(loaded, part, REDUCED, GENERATE, reference=reference)
    assert both.answers == own.answers
    assert own.answers != scoring.run(loaded, part, FULL, GENERATE).answers
    assert both.fidelities == fidelities(loaded, part, REDUCED, GENERATE, answers=False)
    assert scoring.run(loaded, part, REDUCED, GENERATE, reference=reference, answers=False).answers is None


@pytest.mark.parametrize("decoding", [PREFILL, GENERATE], ids=["prefill", "generate"])
def test_prefixes_change_no_bit(loaded: LoadedModel, part: Part, decoding: Decoding) -> None:
    reference = scoring.make_reference(loaded, part, decoding)
    first = PrefixRun(REDUCED, capture=2)
    deeper = Reduction((1.0, 0.25, 0.125, 0.125), REDUCED.rule)
    plain = [scoring.run(loaded, part, one, decoding, reference=reference) for one in (REDUCED, deeper)]
    assert scoring.run(loaded, part, REDUCED, decoding, prefix=first, reference=reference) == plain[0]
    assert first.captured is not None
    resumed = PrefixRun(deeper, start=first.captured)
    assert scoring.run(loaded, part, deeper, decoding, prefix=resumed, reference=reference) == plain[1]


# -- the store


def test_references_are_kept_while_they_fit(loaded: LoadedModel, part: Part) -> None:
    reference = scoring.make_reference(loaded, part, GENERATE)
    steps = reference.tokens.shape[1]
    assert reference.bytes == 4 * 8 * (steps + 1) + 4 * steps * 4 * reference.logits[0].shape[1]
    store = ReferenceStore(2 * reference.bytes + 1)
    for chunk in range(3):
        store.keep(("search", chunk, 0), reference)
    assert store.bytes == 2 * reference.bytes
    assert [store.get(("search", chunk, 0)) is not None for chunk in range(3)] == [True, True, False]
    assert store.get(("search", 0, 1)) is None


# -- the measure


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.5, 0.7, 1.0])
def test_a_measure_weighs(samples: tuple[Sample, ...], weight: float) -> None:
    measure = Measure.of(metric_of("exact-match"), weight)
    answers = (samples[0].answers[0], "nothing", samples[2].answers[0], "nothing")
    found = measure.values(Outcome(answers, (1.0, 0.5, 0.25, 0.0)), samples)
    assert found == pytest.approx((1.0, weight / 2, 1 - 0.75 * weight, 0.0), abs=1e-15)
    assert found[0] == 1.0


def test_a_measure_asks_for_what_it_needs(samples: tuple[Sample, ...]) -> None:
    exact, label_free = metric_of("exact-match"), metric_of("fidelity")
    needs = [(one.needs_answers, one.needs_fidelity) for one in map(Measure.of, (exact, label_free))]
    assert needs == [(True, False), (False, True)]
    assert Measure.of(label_free, 0.3) == Measure.of(label_free)
    assert Measure.of(label_free).values(Outcome(None, (0.5, 0.25)), samples[:2]) == (0.5, 0.25)
    assert Measure.of(exact).values(Outcome(("Red.", "red"), None), _answering(samples)) == (1.0, 0.0)


def _answering(samples: tuple[Sample, ...]) -> list[Sample]:
    first, second = samples[:2]
    return [
        Sample(one.id, one.question, answers, one.image_digest, one.load_image)
        for one, answers in ((first, ("red",)), (second, ("blue",)))
    ]
