"""Chunks on the workers of a Ray cluster: the only package that imports Ray.

Knows: how a cluster is reached, how workers are started, fed and replaced. Does not know: why a chunk is run, or the
study database. Needs the extra ``cluster``.
"""

from __future__ import annotations

from scheduler_search.cluster.connection import connect
from scheduler_search.cluster.events import Progress, WorkerEvent, WorkerJoined, WorkerLogged, WorkerLost
from scheduler_search.cluster.executor import RayExecutor

__all__ = ["Progress", "RayExecutor", "WorkerEvent", "WorkerJoined", "WorkerLogged", "WorkerLost", "connect"]
