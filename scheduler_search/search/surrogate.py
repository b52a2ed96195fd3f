"""Which candidates a stage tries next, and when it has tried enough: the schedule of its trials and their seeds.

Knows: the anchor, initial points, batches, and which model of the scores is asked. Does not know: Optuna's samplers
(``sampler``), databases, who evaluates, or Gaussian processes (``gaussian_process`` and ``curve``, imported with torch
when the first one is needed). What is suggested is a function of its arguments alone, which is what makes a study
resumable.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence

import numpy

from scheduler_search.errors import SearchError
from scheduler_search.search.curve import Array, Points, believe
from scheduler_search.search.improvement import Contest
from scheduler_search.search.observation import Explored, Observation, incumbent, unseen
from scheduler_search.search.stage import Stage

SAMPLERS = ("expected-improvement", "random", "tpe", "gp")

_GOLDEN_RATIO = 0.6180339887498949


def next_batch(
    stage: Stage,
    observations: Sequence[Observation],
    seed: int,
    *,
    name: str = "expected-improvement",
    earlier: Sequence[Explored] = (),
) -> tuple[int, ...]:
    """Candidates of the trials that follow ``observations``, to be evaluated together; empty where the stage ends.

    Trial 0 is the anchor, alone. ``effort.initial`` trials follow that need no model (none after an earlier stage,
    whose curve says where to look), then at most ``effort.iterations`` that maximise expected improvement (seed 003,
    Algorithm 1) until it is below ``effort.tolerance`` everywhere. Observed candidates are not suggested again:
    evaluations are stored, so a repetition would bring nothing. With ``effort.faithful`` the initial points are
    uniform, batches hold one candidate, ``earlier`` is not read, and a stage ends after all its trials.

    Args:
        observations: of all trials before the batch, in the order of their numbers.
        seed: of the study.
        name: one of ``SAMPLERS``; those other than ``expected-improvement`` neither read ``earlier`` nor end early,
            and ``tpe`` and ``gp`` can repeat a candidate (it costs a trial, but no evaluation).
        earlier: the stages of the study that are decided, in order.

    Raises:
        SearchError: no sampler of that name, or more observations than trials.
    """
    if name not in SAMPLERS:
        allowed = ", ".join(SAMPLERS)
        raise SearchError(f"a sampler must be one of {allowed}", actual=repr(name), place="[search] sampler")
    number = len(observations)
    if number > stage.trials:
        raise SearchError(f"a stage has at most {stage.trials} trials", actual=number, place=stage.name)
    if number in (0, stage.trials):
        return stage.order[: stage.trials - number][:1]
    if stage.parameter == "budget" and name == SAMPLERS[0]:
        return _next_points(stage, observations, seed)
    size = min(1 if stage.effort.faithful else stage.effort.batch, stage.trials - number)
    if enumerates(stage, name):
        return stage.order[number : number + size]
    if number <= stage.effort.initial and not (earlier and models_curves(stage, name)):
        size = min(size, 1 + stage.effort.initial - number)
        return _initial(stage, observations, seed, size, name)
    return _suggested(stage, observations, seed, size, name, earlier)


def _next_points(stage: Stage, observations: Sequence[Observation], seed: int) -> tuple[int, ...]:
    from scheduler_search.search.front_search import next_points

    return next_points(stage, observations, seed)


def models_curves(stage: Stage, name: str) -> bool:
    """Whether candidates are chosen by what is believed of whole score curves, the stage before included."""
    return name == SAMPLERS[0] and not stage.effort.faithful


def enumerates(stage: Stage, name: str = "expected-improvement") -> bool:
    """Whether all candidates are tried in order of preference: where they fit into trials that cannot end early."""
    return stage.enumerated and not (models_curves(stage, name) and stage.effort.tolerance)


def derived_seed(seed: int, stage: Stage, number: int) -> int:
    """Seed of trial ``number`` in [0, 2^31), from the study's seed, the stage's name and the number (blake2b)."""
    key = json.dumps([seed, stage.name, number]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % 2**31


def _initial(stage: Stage, observations: Sequence[Observation], seed: int, size: int, name: str) -> tuple[int, ...]:
    pick = spread if models_curves(stage, name) else uniform
    return pick(stage, observations, seed, size)


def uniform(stage: Stage, observations: Sequence[Observation], seed: int, size: int) -> tuple[int, ...]:
    """``size`` unseen candidates, uniformly; each trial has its own random stream."""
    free = list(unseen(stage, observations))
    chosen = []
    for number in range(len(observations), len(observations) + size):
        generator = numpy.random.Generator(numpy.random.PCG64(derived_seed(seed, stage, number)))
        chosen.append(free.pop(int(generator.integers(len(free)))))
    return tuple(chosen)


def spread(stage: Stage, observations: Sequence[Observation], seed: int, size: int) -> tuple[int, ...]:
    """``size`` unseen candidates that lie where an additive recurrence with the golden ratio says.

    Any first few of its points are spread evenly (seed 003 draws them uniformly, and often twice in one place); the
    study's seed shifts all of them together.
    """
    places = coordinates(stage)[:, 0]
    shift = derived_seed(seed, stage, 0) / 2**31
    free = list(unseen(stage, observations))
    chosen = []
    for number in range(len(observations), len(observations) + size):
        place = places.min() + (places.max() - places.min()) * ((shift + number * _GOLDEN_RATIO) % 1.0)
        nearest = min(free, key=lambda candidate: abs(float(places[candidate]) - place))
        free.remove(nearest)
        chosen.append(nearest)
    return tuple(chosen)


def coordinates(stage: Stage, candidates: Sequence[int] | None = None) -> Array:
    """Where candidates lie for the models of score curves, shape [n, 1]; by default all candidates.

    Keep rates as square roots: scores change fastest where few tokens are left.
    """
    chosen = range(len(stage.candidates)) if candidates is None else candidates
    places = numpy.array([stage.candidates[index].features[:1] for index in chosen])
    return numpy.sqrt(places) if stage.parameter == "keep_rate" else places


def contest(stage: Stage, observations: Sequence[Observation], earlier: Sequence[Explored]) -> Contest:
    """What the unseen candidates of a stage can win, from its observations and those of the stage before."""
    free = unseen(stage, observations)
    anchor = next(one for one in observations if one.candidate == stage.anchor)
    penalties = numpy.array([stage.candidates[index].penalty for index in free])
    return Contest(
        belief=believe(_points(stage, observations, earlier, anchor), coordinates(stage, free), anchor.total),
        penalties=penalties,
        ceiling=1.0 - anchor.score,
        best=incumbent(stage, observations).objective - anchor.score,
    )


def _points(
    stage: Stage, observations: Sequence[Observation], earlier: Sequence[Explored], anchor: Observation
) -> Points:
    """The observations of the stage, and those of the stage before that are not its anchor under another name."""
    parts = [(stage, observations, 0.0)]
    if earlier:
        rates = stage.candidates[stage.anchor].keep_rates
        before = earlier[-1]
        others = [one for one in before.observations if before.stage.candidates[one.candidate].keep_rates != rates]
        parts.append((before.stage, others, 1.0))
    rows = [(explored, one, age) for explored, ones, age in parts for one in ones]
    return Points(
        coordinates=numpy.concatenate(
            [coordinates(of, [one.candidate for one in ones]) for of, ones, _ in parts if ones]
        ),
        before=numpy.array([age for _, _, age in rows]),
        values=numpy.array([one.score - anchor.score for _, one, _ in rows]),
        variances=numpy.array([_noise(one) for _, one, _ in rows]),
    )


def _noise(observation: Observation) -> float:
    """Of an observation as an estimate of the candidate's score over the split.

    Where the samples that were read show no variance, another one can still differ: one in all that were read.
    """
    left = 1.0 - observation.samples / observation.total
    return max(observation.sampling_variance, left / observation.samples**2)


def _suggested(
    stage: Stage, observations: Sequence[Observation], seed: int, size: int, name: str, earlier: Sequence[Explored]
) -> tuple[int, ...]:
    number = len(observations)
    stream = derived_seed(seed, stage, number)
    if name == "random":
        return uniform(stage, observations, seed, size)
    if name in ("tpe", "gp"):
        from scheduler_search.search.sampler import stand_in

        return stand_in(name, stage, observations, size, stream)
    if stage.effort.faithful:
        return (_most_improving(stage, observations, stream),)
    race = contest(stage, observations, earlier)
    if race.gains().max() < stage.effort.tolerance:
        return ()
    free = unseen(stage, observations)
    return tuple(free[position] for position in race.choose(size, stream))


def _most_improving(stage: Stage, observations: Sequence[Observation], seed: int) -> int:
    with warnings.catch_warnings():
        # linear_operator, below GPyTorch, still compiles with torch.jit.script when it is first imported.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
        from scheduler_search.search.gaussian_process import most_improving
    return most_improving(stage, observations, unseen(stage, observations), seed)
