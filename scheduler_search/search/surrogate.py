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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy

from scheduler_search.errors import SearchError
from scheduler_search.search.observation import Explored, Observation
from scheduler_search.search.stage import Stage

SAMPLERS = ("expected-improvement", "random", "tpe", "gp")


def next_batch(
    stage: Stage,
    observations: Sequence[Observation],
    seed: int,
    *,
    name: str = "expected-improvement",
    earlier: Sequence[Explored] = (),
) -> tuple[int, ...]:
    """Candidates of the trials that follow ``observations``, to be evaluated together; empty where the stage ends.

    Trial 0 is the anchor, alone. ``effort.initial`` trials follow that need no model, then at most
    ``effort.iterations`` that maximise expected improvement (seed 003, Algorithm 1) until it is below
    ``effort.tolerance`` everywhere. Observed candidates are not suggested again: evaluations are stored, so a
    repetition would bring nothing. With ``effort.faithful`` the initial points are uniform, batches hold one
    candidate, ``earlier`` is not read, and a stage ends after all its trials.

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
    size = min(1 if stage.effort.faithful else stage.effort.batch, stage.trials - number)
    if enumerates(stage, name):
        return stage.order[number : number + size]
    if number <= stage.effort.initial:
        size = min(size, 1 + stage.effort.initial - number)
        return _initial(stage, observations, seed, size, name)
    return _suggested(stage, observations, seed, size, name, earlier)


def enumerates(stage: Stage, name: str = "expected-improvement") -> bool:
    """Whether all candidates are tried in order of preference: where they fit into trials that cannot end early."""
    return stage.enumerated and (stage.effort.faithful or not stage.effort.tolerance or name != SAMPLERS[0])


def unseen(stage: Stage, observations: Sequence[Observation]) -> tuple[int, ...]:
    """The candidates without an observation, in order of preference."""
    seen = {observation.candidate for observation in observations}
    return tuple(index for index in range(len(stage.candidates)) if index not in seen)


def derived_seed(seed: int, stage: Stage, number: int) -> int:
    """Seed of trial ``number`` in [0, 2^31), from the study's seed, the stage's name and the number (blake2b)."""
    key = json.dumps([seed, stage.name, number]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % 2**31


def _initial(stage: Stage, observations: Sequence[Observation], seed: int, size: int, name: str) -> tuple[int, ...]:
    if stage.effort.faithful or name != SAMPLERS[0]:
        return uniform(stage, observations, seed, size)
    return spread(stage, observations, seed, size)


def uniform(stage: Stage, observations: Sequence[Observation], seed: int, size: int) -> tuple[int, ...]:
    """``size`` unseen candidates, uniformly; each trial has its own random stream."""
    free = list(unseen(stage, observations))
    chosen = []
    for number in range(len(observations), len(observations) + size):
        generator = numpy.random.Generator(numpy.random.PCG64(derived_seed(seed, stage, number)))
        chosen.append(free.pop(int(generator.integers(len(free)))))
    return tuple(chosen)


def spread(stage: Stage, observations: Sequence[Observation], seed: int, size: int) -> tuple[int, ...]:
    """``size`` unseen candidates, each far from all others (placeholder of the low-discrepancy points)."""
    return uniform(stage, observations, seed, size)


def _suggested(
    stage: Stage, observations: Sequence[Observation], seed: int, size: int, name: str, earlier: Sequence[Explored]
) -> tuple[int, ...]:
    number = len(observations)
    if name == "random":
        return uniform(stage, observations, seed, size)
    if name in ("tpe", "gp"):
        from scheduler_search.search.sampler import stand_in

        return stand_in(name, stage, observations, size, derived_seed(seed, stage, number))
    free = unseen(stage, observations)
    with _quiet_import():
        from scheduler_search.search.gaussian_process import most_improving
    return (most_improving(stage, observations, free, derived_seed(seed, stage, number)),)


@contextmanager
def _quiet_import() -> Iterator[None]:
    with warnings.catch_warnings():
        # linear_operator, below GPyTorch, still compiles with torch.jit.script when it is first imported.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
        yield
