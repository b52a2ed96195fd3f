"""Who runs the chunks of a study: this process, or the workers of a Ray cluster. The one place that decides it.

Knows: the option ``--ray``, the key ``[workers] executor``, and where a cluster is looked for without an address. Does
not know: how a cluster is reached (``cluster``), or what an executor is asked for.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import ModuleType
from typing import TYPE_CHECKING, Self

from scheduler_search.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from scheduler_search.cluster.events import WorkerEvent
    from scheduler_search.study.definition import StudyDefinition
    from scheduler_search.study.values import Executor

    Report = Callable[[WorkerEvent], None]


class Executors:
    """Makes executors, one after the other, over one connection to each cluster they need; closes the connections.

    Args:
        ray: address of the cluster that runs every study; None to leave it to the study.
    """

    def __init__(self, ray: str | None = None) -> None:
        self._ray = ray or None
        self._connections: dict[str, ExitStack] = {}
        self._doubted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    def make(self, definition: StudyDefinition, report: Report | None = None) -> Executor:
        """The executor of a study; its model and data are not loaded yet.

        Args:
            report: gets what the workers of a cluster do.

        Raises:
            ClusterError: the study is to run on a cluster, and none can be used.
        """
        address = self._ray or address_of(definition)
        if address is None:
            from scheduler_search.evaluation import LocalExecutor

            return LocalExecutor(definition)
        self.connect(address)
        executor: Executor = _cluster().RayExecutor(definition, address=address, report=report)
        return executor

    def connect(self, address: str | None = None) -> None:
        """Reach the cluster at ``address``, or else the one of ``--ray``; nothing where that one is still reached.

        Raises:
            ClusterError: it cannot be reached, or must not be.
        """
        address = address or self._ray
        if self._doubted or self._is_lost():
            self.disconnect()
        if address is None or address in self._connections:
            return
        stack = ExitStack()
        stack.enter_context(_cluster().connect(address))
        self._connections[address] = stack

    def _is_lost(self) -> bool:
        if not self._connections:
            return False
        from scheduler_search.cluster import health

        return not health.answers()

    def doubt(self) -> None:
        """A cluster failed: what is asked for next is asked over a new connection."""
        self._doubted = True

    def disconnect(self) -> None:
        """Leave every cluster; a private one ends."""
        self._doubted = False
        while self._connections:
            _, stack = self._connections.popitem()
            stack.close()


def address_of(definition: StudyDefinition) -> str | None:
    """Where a study asks to be run that nobody names a cluster for; None for this process."""
    if definition.workers.executor != "ray":
        return None
    return default_address()


def default_address() -> str:
    """Where a cluster is looked for that nobody gave an address of."""
    return os.environ.get("RAY_ADDRESS") or "auto"


def _cluster() -> ModuleType:
    """The package that talks to Ray, which not everybody installs."""
    try:
        from scheduler_search import cluster
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "ray":
            raise
        raise ClusterError(
            "a study on a cluster needs Ray",
            actual="an installation without it",
            remedy="install it with: pip install -c constraints.txt '.[search,cluster]'; or leave out --ray",
        ) from error
    return cluster
