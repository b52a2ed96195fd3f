"""Which candidate a stage tries next: the anchor, then uniform points, then expected improvement.

Knows: the schedule of a stage's trials and their seeds. Does not know: Optuna, databases, who evaluates, or the
Gaussian process (``gaussian_process``, imported with torch when the first one is needed). A suggestion is a function
of its arguments alone, which is what makes a study resumable.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence

import numpy

from scheduler_search.errors import SearchError
from scheduler_search.search.observation import Observation
from scheduler_search.search.stage import Stage


def suggest(stage: Stage, observations: Sequence[Observation], seed: int, number: int) -> int:
    """Candidate of trial ``number``, given the observations of the trials before it.

    Trial 0 is the anchor. ``stage.initial`` trials follow that are uniform over the candidates not observed yet, then
    ``stage.iterations`` that maximise expected improvement over them (seed 003, Algorithm 1). Observed candidates are
    never suggested again: evaluations are stored, so a repetition would bring nothing. A domain that fits into the
    trials is enumerated in order of preference.

    Args:
        seed: of the study.

    Raises:
        SearchError: ``number`` is not a trial of the stage, or every candidate is observed already.
    """
    if is_initial(stage, number) or not observations:
        return suggest_uniform(stage, observations, seed, number)
    free = unseen(stage, observations)
    with warnings.catch_warnings():
        # linear_operator, below GPyTorch, still compiles with torch.jit.script when it is first imported.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
        from scheduler_search.search.gaussian_process import most_improving
    return most_improving(stage, observations, free, derived_seed(seed, stage, number))


def suggest_uniform(stage: Stage, observations: Sequence[Observation], seed: int, number: int) -> int:
    """The anchor, the next candidate of an enumerated domain, or one of the unseen candidates, uniformly."""
    check_number(stage, number)
    if number == 0 or stage.enumerated:
        return stage.order[number]
    free = unseen(stage, observations)
    generator = numpy.random.Generator(numpy.random.PCG64(derived_seed(seed, stage, number)))
    return free[int(generator.integers(len(free)))]


def is_initial(stage: Stage, number: int) -> bool:
    """Whether trial ``number`` needs no model: the anchor, the uniform points, every trial of a small domain."""
    check_number(stage, number)
    return stage.enumerated or number <= stage.initial


def unseen(stage: Stage, observations: Sequence[Observation]) -> tuple[int, ...]:
    """The candidates without an observation, in order of preference; SearchError if there are none."""
    seen = {observation.candidate for observation in observations}
    free = tuple(index for index in range(len(stage.candidates)) if index not in seen)
    if not free:
        raise SearchError("a suggestion needs a candidate that is not evaluated yet", place=stage.name)
    return free


def derived_seed(seed: int, stage: Stage, number: int) -> int:
    """Seed of trial ``number`` in [0, 2^31), from the study's seed, the stage's name and the number (blake2b)."""
    key = json.dumps([seed, stage.name, number]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % 2**31


def check_number(stage: Stage, number: int) -> None:
    """SearchError unless the stage has a trial ``number``."""
    if not 0 <= number < stage.trials:
        raise SearchError(f"a trial number must be in [0, {stage.trials - 1}]", actual=number, place=stage.name)
