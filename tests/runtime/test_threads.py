"""Threads: one model or several, one schedule or several, passes that fail; everybody gets what they get alone."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from scheduler_search.runtime import apply_reduction
from tests.runtime.tiny import batch, build, generate, reduction

ROUNDS = 4
NAMES = ("padded", "varying", "mixed", "single")


class BoomError(Exception):
    pass


def together(*jobs: Callable[[], None]) -> list[BaseException]:
    """Run the jobs at once, ROUNDS times each, all starting at the same moment; what they raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def work(job: Callable[[], None]) -> None:
        try:
            start.wait()
            with torch.no_grad():
                for _ in range(ROUNDS):
                    job()
        except BaseException as error:  # noqa: BLE001  # an assertion must not die with its thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def answers(model: Any, inputs: dict[str, torch.Tensor], expected: Any, way: str) -> Callable[[], None]:
    def job() -> None:
        found = model(**inputs).logits if way == "forward" else generate(model, inputs, 3)[1]
        assert torch.equal(found, expected)

    return job


def answer(model: Any, inputs: dict[str, torch.Tensor], way: str) -> torch.Tensor:
    found: torch.Tensor = model(**inputs).logits if way == "forward" else generate(model, inputs, 3)[1]
    return found


def interleaving(model: Any) -> None:
    """Let another thread run between any two layers."""

    def pause(*_: Any) -> None:
        time.sleep(0.0005)

    for layer in model.get_decoder().layers:
        layer.register_forward_hook(pause)


@pytest.mark.parametrize("way", ["forward", pytest.param("generate", marks=pytest.mark.slow)])
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_one_model(attention, way):
    model = build(attention=attention)
    interleaving(model)
    with apply_reduction(model, reduction((1.0, 0.8, 0.7, 0.5, 0.3, 0.2))):
        jobs = [answers(model, batch(name), answer(model, batch(name), way), way) for name in NAMES]
        assert not together(*jobs)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["forward", "generate"])
def test_two_models_with_schedules_of_their_own_and_one_without(way):
    """They share the attention function of the process, in which the tap of both stands."""
    first, second, plain = build("llama"), build("qwen2", seed=1), build("llama", seed=2)
    schedules = {first: reduction(), second: reduction((1.0, 1.0, 0.3), rule="fastv", quota="per-image")}
    jobs = []
    for model, applied in schedules.items():
        interleaving(model)
        with apply_reduction(model, applied):
            jobs += [
                answers(model, batch(name), answer(model, batch(name), way), way) for name in ("padded", "varying")
            ]
    jobs.append(answers(plain, batch("varying"), answer(plain, batch("varying"), way), way))
    with apply_reduction(first, schedules[first]), apply_reduction(second, schedules[second]):
        assert not together(*jobs)


@pytest.mark.parametrize("layer", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_an_exception_in_one_thread(layer):
    """It is raised there, leaves nothing behind there, and the others do not see it."""
    model, bad = build(), batch("single")
    marks = threading.local()

    def boom(*_: Any) -> None:
        if getattr(marks, "bad", False):
            raise BoomError

    model.get_decoder().layers[layer].register_forward_hook(boom)
    with apply_reduction(model, reduction()) as handle:
        expected = answer(model, bad, "forward")
        raised = []

        def fails_and_recovers() -> None:
            marks.bad = True
            with pytest.raises(BoomError):
                model(**bad)
            raised.append(1)
            assert handle._pass.state is None
            marks.bad = False
            assert torch.equal(answer(model, bad, "forward"), expected)

        jobs = [answers(model, batch(name), answer(model, batch(name), "forward"), "forward") for name in NAMES[:2]]
        assert not together(fails_and_recovers, *jobs)
    assert len(raised) == ROUNDS


@pytest.mark.slow
def test_applying_and_removing_beside_a_running_model():
    """A schedule that comes and goes on one model does not touch the passes of another."""
    running, other = build(), build("qwen2", seed=1)
    interleaving(running)

    def come_and_go() -> None:
        with apply_reduction(other, reduction()):
            other(**batch("single"))

    with apply_reduction(running, reduction()):
        jobs = [answers(running, batch(name), answer(running, batch(name), "forward"), "forward") for name in NAMES[:2]]
        assert not together(come_and_go, *jobs)


def test_state_that_is_shared_would_be_noticed(monkeypatch):
    """The same with one slot for all threads fails: 16 passes sleep between their layers, so that they must overlap."""
    from scheduler_search.runtime import handle

    shared = _shared_pass()
    monkeypatch.setattr(handle, "_Pass", lambda: shared)
    model = build()
    interleaving(model)
    with apply_reduction(model, reduction((1.0, 0.8, 0.7, 0.5, 0.3, 0.2))):
        jobs = [answers(model, batch(name), answer(model, batch(name), "forward"), "forward") for name in NAMES]
        assert together(*jobs)


def _shared_pass() -> Any:
    from scheduler_search.runtime.prompts import Asked

    class Shared:
        state = plan = injection = None
        slots = 0
        asked = Asked()

    return Shared()
