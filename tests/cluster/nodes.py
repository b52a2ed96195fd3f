"""A real Ray cluster of several nodes on this machine, with a token, and a driver connected to it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

# Ray notices the end of a node within seconds, not a quarter of a minute.
_WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
_MEMORY = 80 * 2**20


class Nodes:
    """The nodes, the head among them."""

    def __init__(self, folder: Path, cpus: float) -> None:
        from ray.cluster_utils import Cluster

        self._folder = folder
        self._cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,
            head_node_args={"num_cpus": cpus, "include_dashboard": False, "temp_dir": str(folder), **self._common()},
        )

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    def add(self, cpus: float = 1) -> Any:
        """Another node."""
        return self._cluster.add_node(num_cpus=cpus, **self._common())

    def remove(self, node: Any, *, graceful: bool = False) -> None:
        """End a node with SIGKILL, or by the book."""
        self._cluster.remove_node(node, allow_graceful=graceful)

    def kill_head(self) -> None:
        """End the head with SIGKILL; nothing works any more."""
        self._cluster.head_node.kill_gcs_server(check_alive=False)

    def shut_down(self) -> None:
        """End all; only the head is asked, for whom each node waits a second."""
        for node in list(self._cluster.worker_nodes):
            self.remove(node)
        self._cluster.shutdown()

    def _common(self) -> dict[str, Any]:
        return {"object_store_memory": _MEMORY}


@contextmanager
def nodes(cpus: float) -> Iterator[Nodes]:
    """A head with so many CPUs; this process can connect to it with its token."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    token = folder / "token"
    token.touch(0o600)
    token.write_text("0123456789abcdef" * 4)
    (folder / "ray").mkdir()
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **_WATCHFUL,
    }
    with mock.patch.dict(os.environ, environment):
        from scheduler_search.cluster.connection import _read_environment_again

        _read_environment_again()
        cluster = Nodes(folder, cpus)
        try:
            yield cluster
        finally:
            cluster.shut_down()
            shutil.rmtree(folder, ignore_errors=True)
    _read_environment_again()
