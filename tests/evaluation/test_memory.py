"""Two levels of memory: limits hold, what is not needed goes first, nothing is lost that there is room for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.evaluation import memory
from scheduler_search.evaluation.memory import Entry, Kind, Memory, default_device_memory, default_host_memory, nobody

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Thing:
    """So many bytes, and the devices they have been to."""

    bytes: int
    name: str = ""
    devices: tuple[str, ...] = field(default=(), compare=False)

    def to(self, device: torch.device) -> Thing:
        return Thing(self.bytes, self.name, (*self.devices, str(device)))


def thing(size: int, name: str = "", *, kind: Kind = "prefix", share: int = 1) -> Entry:
    return Entry(("search", 0, 0), kind, Thing(size, name), name, share)


def oldest_first(entry: Entry) -> tuple[int, int]:
    return 0, entry.used


def names(held: Memory, kind: Kind = "prefix") -> dict[str, int | None]:
    return {str(entry.group): entry.level for entry in held.at(("search", 0, 0), kind)}


def test_the_device_is_filled_first_then_the_host() -> None:
    held = Memory(host=10, device=10)
    kept = [held.keep(thing(6, name), nobody) for name in "abc"]
    assert kept == [True, True, False]
    assert names(held) == {"a": 0, "b": 1}
    assert (held.device_bytes, held.host_bytes, held.bytes_of("prefix"), held.limit) == (6, 6, 12, 20)


def test_what_makes_room_goes_down_and_then_out() -> None:
    held = Memory(host=10, device=10)
    for name in "abc":
        assert held.keep(thing(6, name), oldest_first)
    assert names(held) == {"b": 1, "c": 0}
    assert held.keep(thing(4, "d"), oldest_first)
    assert names(held) == {"b": 1, "c": 0, "d": 0}
    assert held.keep(thing(10, "e"), oldest_first)
    assert names(held) == {"c": 1, "d": 1, "e": 0}


def test_an_entry_that_makes_room_pushes_out_only_what_should_go_before_it() -> None:
    held = Memory(host=6, device=6)
    held.keep(thing(6, "old"), nobody)
    held.keep(thing(6, "new"), nobody)  # finds room on the host alone
    assert held.keep(thing(6, "last"), oldest_first)
    assert names(held) == {"new": 1, "last": 0}


def test_nothing_goes_for_what_finds_no_room_in_the_end() -> None:
    held = Memory(host=5, device=5)
    held.keep(thing(5, "a"), nobody)
    held.keep(thing(5, "b"), nobody)
    assert not held.keep(thing(6, "c"), oldest_first)
    assert names(held) == {"a": 0, "b": 1}


def test_a_kind_with_a_share_leaves_the_rest() -> None:
    held = Memory(host=8, device=8)
    kept = [held.keep(thing(2, name, kind="features", share=4), nobody) for name in "abc"]
    assert kept == [True, True, False]
    assert names(held, "features") == {"a": 0, "b": 1}


def test_what_is_used_comes_back_to_the_device() -> None:
    held = Memory(host=10, device=5)
    for name in "ab":
        held.keep(thing(5, name), oldest_first)
    assert names(held) == {"a": 1, "b": 0}
    entry = held.at(("search", 0, 0), "prefix")[0]
    held.raise_up(entry, nobody)
    assert names(held) == {"a": 1, "b": 0}
    held.raise_up(entry, oldest_first)
    assert names(held) == {"a": 0, "b": 1}
    held.raise_up(entry, oldest_first)
    assert (held.device_bytes, held.host_bytes) == (5, 5)


def test_giving_the_device_up_moves_the_latest_to_the_host() -> None:
    held = Memory(host=5, device=100)
    for name in "abc":
        held.keep(thing(5, name), nobody)
    assert held.give_device_up() == 15
    assert names(held) == {"c": 1}
    assert (held.device_bytes, held.host_bytes, held.limit) == (0, 5, 12)
    assert [held.give_device_up() for _ in range(3)] == [0, 0, 0]
    assert held.limit == 5


def test_each_level_has_its_device() -> None:
    held = Memory(host=10)
    held.use_device(torch.device("cuda:0"), 5)  # only a name here: nothing of torch's is moved
    for name in "ab":
        held.keep(thing(5, name), oldest_first)
    first, second = (entry.item for entry in held.at(("search", 0, 0), "prefix"))
    assert isinstance(first, Thing)
    assert isinstance(second, Thing)
    assert (first.devices, second.devices) == (("cuda:0", "cpu"), ("cuda:0",))


class Stuck(Thing):
    """Bytes for which a device has no room."""

    def to(self, device: torch.device) -> Thing:
        raise torch.OutOfMemoryError(f"no room on {device}")


def test_what_cannot_be_moved_changes_nothing() -> None:
    held = Memory(host=10, device=10)
    held.keep(thing(6, "a"), nobody)
    with pytest.raises(torch.OutOfMemoryError):
        held.keep(Entry(("search", 0, 0), "prefix", Stuck(6), "b"), oldest_first)
    assert names(held) == {"a": 0}
    held.keep(thing(6, "c"), nobody)
    entry = held.at(("search", 0, 0), "prefix")[1]
    entry.item = Stuck(6)
    with pytest.raises(torch.OutOfMemoryError):
        held.raise_up(entry, oldest_first)
    assert names(held) == {"a": 0, "c": 1}
    assert (held.device_bytes, held.host_bytes) == (6, 6)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.integers(0, 12), st.booleans()),
        st.tuples(st.just("raise"), st.integers(0, 40), st.booleans()),
        st.tuples(st.just("give up"), st.just(0), st.just(True)),
    ),
    max_size=40,
)


@given(st.integers(0, 30), st.integers(0, 30), STEPS)
def test_limits_hold_and_bytes_add_up(device: int, host: int, steps: list[tuple[str, int, bool]]) -> None:
    held = Memory(host=host, device=device)
    for number, (step, size, displaces) in enumerate(steps):
        order = oldest_first if displaces else nobody
        entries = held.at(("search", 0, 0), "prefix")
        if step == "keep":
            held.keep(thing(size, str(number)), order)
        elif step == "raise" and entries:
            held.raise_up(entries[size % len(entries)], order)
        elif step == "give up":
            held.give_device_up()
            assert held.device_bytes == 0
        entries = held.at(("search", 0, 0), "prefix")
        sizes = [sum(entry.item.bytes for entry in entries if entry.level == level) for level in (0, 1)]
        assert sizes == [held.device_bytes, held.host_bytes]
        assert sizes[0] <= device
        assert sizes[1] <= host


def test_the_default_is_a_share_of_this_machine() -> None:
    assert 1 << 26 < default_host_memory() < 1 << 45
    assert default_host_memory(4) == default_host_memory() // 4
    assert default_device_memory(CPU) == 0
    assert memory.peak_memory(CPU) == 0


@pytest.mark.parametrize(("text", "expected"), [("1073741824\n", 1 << 28), ("max\n", None), (None, None)])
def test_a_container_has_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: int | None
) -> None:
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", tmp_path / "none")
    whole = default_host_memory()
    path = tmp_path / "memory.max"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", path)
    assert default_host_memory() == (whole if expected is None else expected)
