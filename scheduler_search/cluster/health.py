"""A process and the cluster that it is connected to: what Ray prints in it, and whether Ray answers.

Knows: that Ray's client ends a process whose head node went away, and prints what its daemons report. Does not know:
workers, or what is run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

import ray
from ray._private import worker as ray_worker
from ray._raylet import Config

from scheduler_search.errors import ClusterError

Answer = TypeVar("Answer")

ANSWER_SECONDS = 15.0
_OUTLIVE_SECONDS = 24 * 3600


def outlive_the_cluster() -> None:
    """Before connecting: keep this process from being ended a minute after the head node went away."""
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(_OUTLIVE_SECONDS))
    Config.initialize("")


def silence() -> None:
    """Print nothing of what Ray's daemons report: the workers' ends are events of ours.

    Ray prints it to stdout, also where it was asked not to; this is the switch that its debugger uses.
    """
    ray_worker._worker_logs_enabled = False


def within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What the cluster answers within so many seconds.

    Raises:
        ClusterError: it does not, or with an error: its head node is gone.
    """
    found: list[Answer] = []
    errors: list[ray.exceptions.RayError] = []
    answered = threading.Event()

    def call() -> None:
        try:
            found.append(ask())
        except ray.exceptions.RayError as error:
            errors.append(error)
        answered.set()

    # Where nobody answers, the call does not return, and cannot be given up.
    threading.Thread(target=call, name="is the cluster there", daemon=True).start()
    answered.wait(seconds)
    if found:
        return found[0]
    raise ClusterError(
        "the head node of the cluster must answer while a study runs",
        actual=f"{type(errors[0]).__name__}: {errors[0]}" if errors else f"nothing for {seconds:g} s",
        remedy="resume the study when the cluster is back, or on another",
    )


def answers(seconds: float = ANSWER_SECONDS) -> bool:
    """Whether the cluster that this process is connected to answers within so many seconds."""
    if not ray.is_initialized():
        return False
    try:
        within(seconds, ray.cluster_resources)
    except ClusterError:
        return False
    return True
