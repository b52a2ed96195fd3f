"""A process and the cluster that it is connected to: what Ray prints in it, and whether the head node is there.

Knows: that Ray's client ends a process whose head node went away, takes a minute to find that nobody is at an address,
takes SIGTERM for itself, and prints what its daemons report. Does not know: workers, or what is run.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import ray
from ray._private import worker as ray_worker
from ray._raylet import Config

ANSWER_SECONDS = 5.0
_STDERR = 2
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


@contextmanager
def overhearing() -> Iterator[Callable[[], str]]:
    """Keep off the terminal what Ray's client prints to stderr; what is yielded gives the last line of it, or nothing.

    It prints a line per attempt to connect, below Python and whatever its log level is.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file, ExitStack() as stack:
        kept = os.dup(_STDERR)
        stack.callback(os.close, kept)
        os.dup2(file.fileno(), _STDERR)
        stack.callback(os.dup2, kept, _STDERR)
        yield lambda: _last_line(file)


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").splitlines()
    return lines[-1].rpartition("RPC error: ")[2][:200] if lines else ""


@contextmanager
def keeping_signals() -> Iterator[None]:
    """While connecting: Ray takes SIGTERM, and would end the process with it; whoever had it gets it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def answers() -> bool:
    """Whether the head node that this process is connected to is there.

    Ray itself is not asked: a call that nobody answers cannot be given up, and ends the process when another head node
    answers it.
    """
    return ray.is_initialized() and refusal(ray.get_runtime_context().gcs_address) is None


def refusal(address: str, seconds: float = ANSWER_SECONDS) -> OSError | None:
    """Why nobody can be reached at ``host:port``; None where somebody can."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError as error:
        return error
    return None
