"""What every rule must do at every place where it acts: a rule is covered by being declared.

Agreement of two computations is agreement *except at ties*: where they differ, a change of the inputs as small as the
rounding must make the rule choose otherwise as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from scheduler_search.reducers import Grid, Reduced, Reducer, Tokens, reduce_tokens
from scheduler_search.reducers.load import load_reducer
from scheduler_search.rule import Declaration, Parameter, ParameterValue, Place, Rule, declarations
from tests.reducers.synthetic import Sample, changed, tokens_of

PROMPTS = ((), (Grid(1, 1),), (Grid(2, 3),), (Grid(4, 4),), (Grid(5, 3),), (Grid(2, 3), Grid(3, 3)), (Grid(2, 2),) * 3)

IMAGES = tuple(grids for grids in PROMPTS if len(grids) == 1)

EVERY = [
    pytest.param(declaration, place, id=f"{declaration.name} at {place}")
    for declaration in declarations()
    for place in declaration.places
]


def every_rule(law: Callable[[Declaration, Place, int], None]) -> Callable[..., None]:
    """A law for all rules. Seeds are not shrunk: what they stand for is small, and is printed."""
    few = settings(max_examples=12, phases=(Phase.explicit, Phase.reuse, Phase.generate))
    return pytest.mark.parametrize(("declaration", "place"), EVERY)(few(given(seed=st.integers(0, 1 << 32))(law)))


# Rules whose paper makes a merged token an average of its parts, and under which parameters.
AVERAGES: dict[str, dict[str, ParameterValue]] = {
    "pooling": {},  # seed 001: the mean of a region
    "downsample": {},  # interpolation between patches
    "tome": {},  # section 3: weighted with the patches that each part stands for
    "mustdrop": {},  # the mean of a window
    "ficoco-v": {},  # seed 000, eq. 13: divided by the sum of what enters, the target's own one included
    "ficoco-l": {},
    "ficoco-vl": {},
    "visionzip": {"merge": "average"},  # the mean of a cluster
    "prumerge": {"merge": "average"},  # weighted with class attention
    "sparsevlm": {"reconstruction": "mean"},  # the paper's own is a sum
    "evit": {"normalise": True},  # the paper's own is weighted with attention as it is
}


def averages(rule: Rule) -> bool:
    """Whether what enters a token of this rule must sum to one."""
    under = AVERAGES.get(rule.name)
    return under is not None and all(rule.parameter(name) == value for name, value in under.items())


class Case:
    """A rule under some of its parameters, and a batch for it, both of one seed."""

    def __init__(self, declaration: Declaration, place: Place, seed: int) -> None:
        self.place, self.draw = place, random.Random(seed)
        torch.manual_seed(seed)  # what stands in padding, and the changes that look for ties
        parameters = {one.name: self.draw.choice(values(one)) for one in declaration.parameters}
        self.reducer = load_reducer(declaration.rule(parameters), place)
        sample = self._sample()
        self.samples = [self._like(sample) for _ in range(self.draw.choice((1, 2, 3)))]
        note(f"{self.reducer.rule} at {place}\n" + "\n".join(map(str, self.samples)))

    def tokens(self, samples: list[Sample] | None = None, pad: int = 0) -> Tokens:
        """The batch, or some of its samples."""
        chosen = self.samples if samples is None else samples
        return tokens_of(chosen, self.place, self.reducer.reads, pad, self.reducer.per_image)

    def _like(self, sample: Sample) -> Sample:
        """In the tower, images of a batch are of one size, and all keep equally many tokens."""
        return replace(sample, seed=self.draw.getrandbits(16)) if self.place == "vision" else self._sample()

    def _sample(self) -> Sample:
        draw = self.draw
        return Sample(
            grids=draw.choice(IMAGES if self.place == "vision" else PROMPTS),
            before=draw.randint(0, 2),
            after=draw.randint(0, 3),
            keep=draw.choice((0, 1, draw.randint(2, 20), draw.randint(2, 20))),
            reduced=draw.random() < 0.5,
            seed=draw.getrandbits(16),
        )


def values(parameter: Parameter) -> list[ParameterValue]:
    """The default and all choices, or the ends of the range."""
    if parameter.choices is not None:
        return list(parameter.choices)
    kind = type(parameter.default)
    return [parameter.default, *(kind(end) for end in (parameter.low, parameter.high) if end is not None)]


def reduced(reducer: Reducer, tokens: Tokens) -> Reduced:
    """As the runtime does it: stages are asked only where some sample loses a part of its tokens."""
    present = tokens.vision.sum(1)
    if not ((tokens.keep > 0) & (tokens.keep < present)).any():
        return Reduced(tokens.vision & (tokens.keep > 0)[:, None], tokens.hidden, tokens.sizes)
    with torch.inference_mode():
        return reduce_tokens(reducer, tokens)


def watched(reducer: Reducer, tokens: Tokens) -> tuple[Reduced, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The reduction and, of each of its rounds, the tokens kept in samples that lose some, and W."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    compress = reducer.compress
    if compress is None:
        return reduced(reducer, tokens), seen

    def watching(tokens: Tokens, kept: torch.Tensor, correlation: torch.Tensor, rule: Rule) -> torch.Tensor:
        weights = compress(tokens, kept, correlation, rule)
        seen.append((kept & (tokens.keep < tokens.vision.sum(1))[:, None], weights))
        return weights

    return reduced(replace(reducer, compress=watching), tokens), seen


def scaled(epsilon: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda values: values * (1 + epsilon * torch.randn_like(values))


def close(one: Reduced, other: Reduced, tolerance: float) -> bool:
    """Whether both chose the same tokens and made the same of them."""
    if not torch.equal(one.kept, other.kept):
        return False
    difference = (one.hidden - other.hidden).abs()[one.kept]
    return bool((difference <= tolerance).all())


def tied(reducer: Reducer, tokens: Tokens, epsilon: float) -> bool:
    """Whether changes of the relative size ``epsilon`` make the rule choose otherwise, or merge into others."""
    first = reduced(reducer, tokens)
    return any(not close(first, reduced(reducer, changed(tokens, scaled(epsilon))), 1e4 * epsilon) for _ in range(10))


@every_rule
def test_the_promised_tokens_stay_and_nothing_else_changes(declaration: Declaration, place: Place, seed: int) -> None:
    case = Case(declaration, place, seed)
    tokens = case.tokens()
    before = changed(tokens, torch.clone)
    result, merges = watched(case.reducer, tokens)
    check_promises(case.reducer, tokens, result)
    for kept, weights in merges:
        check_merge(tokens, kept, weights)
        if averages(case.reducer.rule):
            sums = weights.sum(1)[kept]
            assert torch.allclose(sums, torch.ones_like(sums)), "what enters a token is an average"
    for name in ("hidden", "attention", "keys", "sizes", "features"):
        one, other = getattr(tokens, name), getattr(before, name)
        assert one is None or torch.equal(one, other), f"stages change none of their inputs: {name}"


def check_promises(reducer: Reducer, tokens: Tokens, result: Reduced) -> None:
    """Counts, text, and tokens that are to stay as they are."""
    assert result.kept.sum(1).tolist() == list(tokens.counts), "the promised number survives"
    assert not (result.kept & ~tokens.vision).any(), "only vision tokens are chosen"
    assert torch.equal(result.hidden[~result.kept], tokens.hidden[~result.kept]), "only kept tokens change"
    assert result.hidden[result.kept].isfinite().all(), "kept tokens are finite"
    if reducer.compress is None:
        assert torch.equal(result.hidden, tokens.hidden), "pruning changes nothing of a token"
    all_kept = tokens.keep == tokens.vision.sum(1)
    assert torch.equal(result.hidden[all_kept], tokens.hidden[all_kept]), "a sample that loses nothing stays as it is"
    if result.sizes is not None:
        assert (result.sizes[result.kept] >= 1).all(), "a token stands for itself at least"


def check_merge(tokens: Tokens, kept: torch.Tensor, weights: torch.Tensor) -> None:
    """What enters the tokens ``kept`` [B, S] under W."""
    received = weights.transpose(1, 2)[kept]  # [targets, S]
    own = torch.eye(weights.shape[1], dtype=torch.bool).expand_as(weights)[kept]
    vision = tokens.vision[:, None, :].expand_as(weights)[kept]
    assert not received[~vision].any(), "text and padding enter nothing"
    nothing = (received.masked_fill(own, 0) == 0).all(1)
    assert (received[own][nothing] == 1).all(), "a target that receives nothing stays as it is"


@every_rule
def test_to_keep_all_changes_nothing(declaration: Declaration, place: Place, seed: int) -> None:
    case = Case(declaration, place, seed)
    tokens = case.tokens()
    keep = tokens.vision.sum(1)
    if not keep.any():
        return  # no reduction is asked for without an image
    result = reduce_tokens(case.reducer, replace(tokens, keep=keep, counts=tuple(keep.tolist())))
    assert torch.equal(result.kept, tokens.vision)
    assert torch.equal(result.hidden, tokens.hidden)


@every_rule
def test_a_batch_is_its_samples(declaration: Declaration, place: Place, seed: int) -> None:
    """Neither padding, nor order, nor companions matter."""
    case = Case(declaration, place, seed)
    row = case.draw.randrange(len(case.samples))
    tokens = case.tokens([case.samples[row]])
    alone, slots = reduced(case.reducer, tokens), tokens.hidden.shape[1]
    backwards = reduced(case.reducer, case.tokens(case.samples[::-1], case.draw.randint(0, 2) * (place != "vision")))
    row = len(case.samples) - 1 - row
    among = Reduced(backwards.kept[row : row + 1, -slots:], backwards.hidden[row : row + 1, -slots:])
    assert close(alone, among, 1e-9) or tied(case.reducer, tokens, 1e-12)


@every_rule
def test_single_precision_chooses_as_double_precision(declaration: Declaration, place: Place, seed: int) -> None:
    case = Case(declaration, place, seed)
    tokens = changed(case.tokens(), lambda values: values.float().double())
    double, single = reduced(case.reducer, tokens), reduced(case.reducer, changed(tokens, torch.Tensor.float))
    assert single.hidden.dtype == torch.float32
    assert close(double, single, 1e-4) or tied(case.reducer, tokens, 1e-6)
