"""Where a command loads its studies, one after the other, and shows how they run.

Knows: what must be checked before a study may begin, and where the events of its run go. Does not know: which studies
come, or what becomes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Self

from rich.console import Console

from scheduler_search.cli.executors import Executors
from scheduler_search.cli.workers import WorkerNews
from scheduler_search.errors import ClusterError

if TYPE_CHECKING:
    from types import TracebackType

    from scheduler_search.coordinator import Listener
    from scheduler_search.search import Algorithm
    from scheduler_search.storage import StudyDatabase
    from scheduler_search.study import StudyDefinition
    from scheduler_search.study.states import StudyRecord
    from scheduler_search.study.values import Executor


class Workplace:
    """Loads and watches studies; a context manager that leaves the clusters it used.

    Args:
        ray: address of the cluster that runs every study; None to leave it to the study.
    """

    def __init__(self, console: Console, ray: str | None = None) -> None:
        self._console = console
        self._executors = Executors(ray)
        self._news = WorkerNews()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executors.disconnect()

    def check_cluster(self) -> None:
        """Reach the cluster that runs every study, where one is named.

        Raises:
            ClusterError: it cannot be reached.
        """
        self._executors.connect()

    def load(self, definition: StudyDefinition) -> tuple[Executor, Algorithm]:
        """An executor whose model is loaded and whose splits are read and checked, and a search that can begin."""
        from scheduler_search.coordinator import make_algorithm

        self._news = WorkerNews()
        with self._doubting(), ExitStack() as undo, Console(stderr=True).status("loading model and data"):
            executor = self._executors.make(definition, self._news.receive)
            undo.callback(executor.close)
            executor.model()
            for name in definition.data.splits:
                executor.split(name)
            algorithm = make_algorithm(definition, executor)
            algorithm.next_stage([])
            undo.pop_all()
        return executor, algorithm

    @contextmanager
    def watch(self, database: StudyDatabase, study: StudyRecord, algorithm: Algorithm) -> Iterator[Listener]:
        """A listener for the run of the study that was loaded last: to the terminal, and of its workers to the log."""
        # It knows the events of the search, and with them torch: commands of the queue have no need of it.
        from scheduler_search.cli.progress import watch

        with (
            self._doubting(),
            watch(self._console, study.name, algorithm.stages) as display,
            self._news.told(partial(database.add_log, study), display.show_workers) as begin,
        ):
            yield begin(display.receive)

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        try:
            yield
        except ClusterError:
            self._executors.doubt()
            raise
