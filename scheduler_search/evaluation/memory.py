"""Memory of an executor for what it need not compute again: on the device of the model, beyond that on the host.

Knows: how much each of both may hold, what goes from the device to the host and from there out when a newcomer needs
room, and how the device's is given up. Does not know: models, or what is held. Nothing here can change a score: what is
moved keeps its bits, and what is not here is computed again. On a CPU both levels are the same memory, which is how
they are tested; what is for CUDA alone has not run on a GPU yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import torch

from scheduler_search.evaluation.layout import Place

Kind = Literal["features", "prefix"]
HOST = torch.device("cpu")
_DEVICE_LEVEL, _HOST_LEVEL = 0, 1
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Item(Protocol):
    """Tensors that can be moved as one."""

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""

    def to(self, device: torch.device) -> Self:
        """The same on a device; tensors that are there already are shared."""


@dataclass(eq=False)
class Entry:
    """Something held.

    Args:
        group: those of one group do not push each other out.
        share: at most one in so many bytes of a level is for entries of this kind.
        used: when it was used last; the higher the later.
        level: on the device or on the host; None while it is nowhere.
    """

    place: Place
    kind: Kind
    item: Item
    group: object = None
    share: int = 1
    used: int = 0
    level: int | None = None


# In what order entries may go for a newcomer, the smallest first; None for those that stay.
Rank = tuple[int, int]
Order = Callable[[Entry], Rank | None]


def nobody(entry: Entry) -> None:
    """Nothing goes for the newcomer."""


class Memory:
    """Two levels, the device and the host, each with a limit in bytes.

    Args:
        host: bytes.
        device: bytes; that of a device which is not known yet is 0, until ``use_device``.
    """

    def __init__(self, host: int, device: int = 0) -> None:
        self._limits = [device, host]
        self._devices = [HOST, HOST]
        self._bytes: list[dict[Kind, int]] = [{"features": 0, "prefix": 0} for _ in self._limits]
        self._entries: dict[Place, list[Entry]] = {}
        self._uses = 0

    def use_device(self, device: torch.device, limit: int) -> None:
        """From now on, hold so many bytes on a device."""
        self._devices[_DEVICE_LEVEL], self._limits[_DEVICE_LEVEL] = device, limit

    @property
    def limit(self) -> int:
        """Bytes that can be held at most, on device and host."""
        return sum(self._limits)

    @property
    def device_bytes(self) -> int:
        """Bytes on the device."""
        return sum(self._bytes[_DEVICE_LEVEL].values())

    @property
    def host_bytes(self) -> int:
        """Bytes on the host."""
        return sum(self._bytes[_HOST_LEVEL].values())

    def bytes_of(self, kind: Kind) -> int:
        """Bytes of one kind, on device and host."""
        return sum(one[kind] for one in self._bytes)

    def at(self, place: Place, kind: Kind) -> list[Entry]:
        """What is held of a place, in the order in which it came."""
        return [entry for entry in self._entries.get(place, ()) if entry.kind == kind]

    def places(self) -> tuple[Place, ...]:
        """The places that anything is or was held of."""
        return tuple(self._entries)

    def touch(self, entry: Entry) -> None:
        """Note that an entry was used."""
        self._uses += 1
        entry.used = self._uses

    def keep(self, entry: Entry, order: Order) -> bool:
        """Hold a newcomer on the device, else on the host, else not at all; whether it is held.

        Args:
            order: what may go down a level, or out, to make room for it.
        """
        self.touch(entry)
        self._settle(entry, _DEVICE_LEVEL, order, None)
        return entry.level is not None

    def drop(self, entry: Entry) -> None:
        """Let go of an entry that nobody will ask for again."""
        self._leave(entry)
        entries = self._entries.get(entry.place, [])
        entries[:] = [one for one in entries if one is not entry]

    def raise_up(self, entry: Entry, order: Order) -> None:
        """Bring an entry that is used from the host to the device, if there is room, or room can be made."""
        if entry.level != _HOST_LEVEL or entry.item.bytes > self._limits[_DEVICE_LEVEL]:
            return
        going = self._going(entry, _DEVICE_LEVEL, order, None)
        if going is not None:
            self._enter(entry, _DEVICE_LEVEL, order, going)

    def give_device_up(self) -> int:
        """Clear the device for want of memory, and hold half as much from now on; how many bytes were given up.

        What finds no room on the host is let go.
        """
        held = self.device_bytes
        self._limits[_DEVICE_LEVEL] = min(self._limits[_DEVICE_LEVEL], held) // 2
        latest_first = sorted(self._on(_DEVICE_LEVEL), key=lambda entry: -entry.used)
        for entry in latest_first:
            self._leave(entry)
            self._settle(entry, _HOST_LEVEL, nobody, None)
        return held

    def _settle(self, entry: Entry, level: int, order: Order, key: Rank | None) -> None:
        """Hold an entry on this level or one below, or let it go. ``key``: only what goes before that may go for it."""
        for lower in range(level, len(self._limits)):
            going = self._going(entry, lower, order, key)
            if going is not None:
                self._enter(entry, lower, order, going)
                return
        self.drop(entry)

    def _going(self, entry: Entry, level: int, order: Order, key: Rank | None) -> list[Entry] | None:
        """What must leave a level for an entry; None where all that may go is not enough."""
        needed = sum(self._bytes[level].values()) + entry.item.bytes - self._limits[level]
        own = self._bytes[level][entry.kind] + entry.item.bytes
        if entry.share > 1 and own > self._limits[level] // entry.share:
            return None
        if needed <= 0:
            return []
        ranked = [(rank, one) for one in self._on(level) if (rank := order(one)) is not None]
        going = []
        for _, one in sorted((pair for pair in ranked if key is None or pair[0] < key), key=lambda pair: pair[0]):
            if needed <= 0:
                break
            going.append(one)
            needed -= one.item.bytes
        return going if needed <= 0 else None

    def _enter(self, entry: Entry, level: int, order: Order, going: list[Entry]) -> None:
        moved = entry.item.to(self._devices[level])  # may run out of memory, so nothing has changed yet
        for one in (*going, entry):
            self._leave(one)
        entry.item, entry.level = moved, level
        self._bytes[level][entry.kind] += moved.bytes
        entries = self._entries.setdefault(entry.place, [])
        if entry not in entries:
            entries.append(entry)
        for one in reversed(going):  # what is to go last has the first choice of the room below
            self._settle(one, level + 1, order, order(one))

    def _leave(self, entry: Entry) -> None:
        if entry.level is not None:
            self._bytes[entry.level][entry.kind] -= entry.item.bytes
        entry.level = None

    def _on(self, level: int) -> Iterator[Entry]:
        return (entry for entries in self._entries.values() for entry in entries if entry.level == level)


def default_host_memory(share: int = 1) -> int:
    """A quarter of the memory of this machine, or of this container, in bytes, by the workers that share it."""
    physical = int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    return min(physical, _container_limit() or physical) // 4 // share


def _container_limit() -> int | None:
    """Bytes that the group of this process may have; None where nobody set a limit."""
    try:
        text = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except (FileNotFoundError, PermissionError):
        return None
    return int(text) if text.isdigit() else None


def default_device_memory(device: torch.device) -> int:
    """A quarter of what is free on a GPU, in bytes; 0 for a CPU, whose memory is the host's."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) // 4


def peak_memory(device: torch.device) -> int:
    """Bytes that tensors of this process took on a GPU at most; 0 for a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0
