"""A process and the cluster that it is connected to: what Ray prints in it, and whether Ray answers.

Knows: that Ray's client ends a process whose head node went away, and prints what its daemons report. Does not know:
workers, or what is run.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import ray
from ray._private import worker as ray_worker
from ray._raylet import Config

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


def answers(seconds: float = ANSWER_SECONDS) -> bool:
    """Whether the cluster that this process is connected to answers within so many seconds."""
    if not ray.is_initialized():
        return False
    answered = threading.Event()

    def ask() -> None:
        with suppress(ray.exceptions.RayError):
            ray.cluster_resources()
            answered.set()

    # Where nobody answers, the call does not return, and cannot be given up.
    threading.Thread(target=ask, name="is the cluster there", daemon=True).start()
    return answered.wait(seconds)
