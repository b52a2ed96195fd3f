"""What workers run in tests: scores that follow from keep counts, and faults that a test asks for with files.

A file ``FAULT-CHUNK`` in the folder is one fault: whichever worker finds it first takes it away and suffers it. Files
``FAULT`` alone are for the start of a worker.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from scheduler_search.errors import DataError, ModelError
from scheduler_search.study import StudyDefinition
from scheduler_search.study.values import ChunkResult, ChunkTask, ModelDescription, SplitDescription, SplitName
from tests.coordinator.simulated import SimulatedExecutor


@dataclass(frozen=True)
class Faulty:
    """Makes executors with the faults of a folder.

    Args:
        seconds: that every chunk takes.
    """

    folder: Path
    seconds: float = 0.0

    def __call__(self, definition: StudyDefinition, share: int) -> FaultyExecutor:
        (self.folder / "threads.txt").write_text(os.environ["OMP_NUM_THREADS"])
        return FaultyExecutor(self.folder, self.seconds, definition.data.search.samples, share)


class FaultyExecutor(SimulatedExecutor):
    """Notes in ``ran.txt`` which process ran which chunk."""

    def __init__(self, folder: Path, seconds: float, samples: int, share: int) -> None:
        super().__init__(samples=samples, chunk_size=4)
        self._folder = folder
        self._seconds = seconds
        self._share = share

    def model(self) -> ModelDescription:
        if self._takes("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._takes("raise"):
            raise OSError("the disk is on fire")
        if self._takes("refuse"):
            raise ModelError("a model must be there", place="a node without it")
        if self._takes("differ"):
            return replace(super().model(), environment=(("device", "another"),))
        return super().model()

    def split(self, name: SplitName) -> SplitDescription:
        if self._takes("no-data"):
            raise DataError("the data must be there", place="a node without them")
        return super().split(name)

    def context(self, name: SplitName) -> dict[str, object]:
        return {"split": name}

    def run(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        for task in tasks:
            with (self._folder / "ran.txt").open("a") as ran:
                ran.write(f"{os.getpid()} {task.split} {task.chunk} {task.shared_layers} {task.branch_layers}\n")
            time.sleep(self._seconds)
            self._suffer(task.chunk)
            yield from super().run([task])

    def peak_memory(self) -> int:
        return 1000 + self._share

    def _suffer(self, chunk: int) -> None:
        if self._takes(f"die-{chunk}"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._takes(f"hang-{chunk}"):
            time.sleep(1000)
        if self._takes(f"raise-{chunk}"):
            raise ValueError(f"chunk {chunk} is cursed")
        if self._takes(f"exhaust-{chunk}"):
            raise MemoryError
        if self._takes(f"refuse-{chunk}"):
            raise ModelError("a chunk must fit", place=f"chunk {chunk}")
        if self._takes(f"warn-{chunk}"):
            warnings.warn(f"chunk {chunk} is odd", UserWarning, stacklevel=1)

    def _takes(self, fault: str) -> bool:
        for number in range(20):
            try:
                (self._folder / f"{fault}.{number}").unlink()
            except FileNotFoundError:
                continue
            return True
        return False


def plant(folder: Path, fault: str, times: int = 1) -> None:
    """Have a fault come up so often."""
    for number in range(times):
        (folder / f"{fault}.{number}").touch()


def left(folder: Path, fault: str) -> int:
    """How often a fault has not come up."""
    return len(list(folder.glob(f"{fault}.*")))


def ran(folder: Path) -> list[tuple[int, int]]:
    """(process, chunk) of every chunk that was begun."""
    lines = (folder / "ran.txt").read_text().splitlines()
    return [(int(line.split()[0]), int(line.split()[2])) for line in lines]
