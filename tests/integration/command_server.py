"""Commands of ours as processes that start within milliseconds: forked from one that has imported all they need.

Knows: how a child becomes what a fresh process of the console script would be: its folder, environment, arguments and
files, its signals, and an end by way of the interpreter's own. Does not know: what any command does, and nothing of
Ray, which must be imported by each process for itself. ``commands`` is the other side.

A child differs from a fresh process in its command line and first environment, as ``/proc`` shows them, and in the
seed of its hashes, which all children of one server share.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

# What `launch`, `export` and `evaluate` of the testbed's model end up with, but for a few small modules.
_PRELOADED = (
    "alembic.command",
    "numpy.random",
    "optuna.storages",
    "PIL.PngImagePlugin",
    "psycopg",
    "rich.live",
    "rich.progress",
    "scheduler_search.cli.campaign",
    "scheduler_search.cli.database",
    "scheduler_search.cli.evaluate",
    "scheduler_search.cli.export",
    "scheduler_search.cli.queue",
    "scheduler_search.cli.search",
    "scheduler_search.cli.show",
    "scheduler_search.cli.status",
    "scheduler_search.coordinator",
    "scheduler_search.evaluation.local",
    "scheduler_search.export",
    "scheduler_search.storage.migrations.versions.version_0001",
    "scheduler_search.testbed",
    "scipy.stats",
    "sqlalchemy.dialects.sqlite",
    "transformers.models.clip.image_processing_pil_clip",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
)
_MESSAGE = 1 << 20


@dataclass(frozen=True)
class Request:
    """One command, with its standard files and where its exit is told.

    Args:
        arguments: the first is the path of the console script.
        session: whether it begins a session, and so a process group, of its own.
    """

    arguments: tuple[str, ...]
    folder: str
    environment: dict[str, str]
    session: bool

    def to_json(self) -> bytes:
        return json.dumps([self.arguments, self.folder, self.environment, self.session]).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Request:
        arguments, folder, environment, session = json.loads(text)
        return cls(tuple(arguments), folder, environment, session)


class Server:
    """Forks a child per request and tells how each one ends: process id, then status as of ``os.waitpid``.

    Args:
        requests: a connection of sequenced packets, each a request with four files: three of the child, one to tell.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)
        self._children: dict[int, tuple[int, int]] = {}

    def serve(self) -> Request | None:
        """Returns in each child, with its request, and at the end here: when nobody can ask any more."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._requests:
                    self._tell(key.fd)
                    continue
                text, files, _, _ = socket.recv_fds(self._requests, _MESSAGE, 4)
                if not text:
                    self._end()
                    return None
                if self._fork(files):
                    return self._become(Request.from_json(text), files)

    def _fork(self, files: list[int]) -> bool:
        """Whether this is the child."""
        if (child := os.fork()) == 0:
            return True
        *standard, told = files
        for file in standard:
            os.close(file)
        ended = os.pidfd_open(child)
        self._children[ended] = child, told
        self._selector.register(ended, selectors.EVENT_READ)
        os.write(told, f"{child}\n".encode())
        return False

    def _tell(self, ended: int) -> None:
        child, told = self._children.pop(ended)
        self._selector.unregister(ended)
        os.close(ended)
        os.write(told, f"{os.waitpid(child, 0)[1]}\n".encode())
        os.close(told)

    def _end(self) -> None:
        """Whoever asked is gone: no child outlives it."""
        for child, _ in self._children.values():
            os.kill(child, signal.SIGKILL)

    def _become(self, request: Request, files: list[int]) -> Request:
        for number, file in enumerate(files[:3]):
            os.dup2(file, number)
        self._requests.close()
        self._selector.close()
        for file in (*files, *self._children, *(told for _, told in self._children.values())):
            os.close(file)
        if request.session:
            os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request.folder)
        os.environ.clear()
        os.environ.update(request.environment)
        sys.argv[:] = request.arguments
        # What was found out at import, or once for all.
        tempfile.tempdir = None
        sys.modules["numpy"].random.seed()
        return request


def load() -> None:
    """Import what commands need; nothing of it may have begun a thread, which no child would have."""
    for name in _PRELOADED:
        import_module(name)
    assert "ray" not in sys.modules
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == threading.active_count() == 1, f"{threads} threads"
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    # Ctrl-C in a terminal is for who asks; a child gets the default back.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    load()
    if Server(socket.socket(fileno=int(sys.argv[1]))).serve() is not None:
        from scheduler_search.cli import main

        # The last line of the console script.
        sys.exit(main())
