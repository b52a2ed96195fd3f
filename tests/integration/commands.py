"""``scheduler-search`` as a process: forked from one that has imported everything, or in a fresh interpreter.

Knows: what tests want of a process: its id, signals, output, exit code. Does not know: how a child comes to be one of
the command line (``command_server``). The server is started by the first command and ends with this process.
"""

from __future__ import annotations

import atexit
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO

from tests.integration.command_server import Request

PROGRAM = "scheduler-search"
_STARTING = threading.Lock()
_SERVER = Path(__file__).with_name("command_server.py")


def environment() -> dict[str, str]:
    """Of a process: one thread, our console script first on the path, and no database or cluster of the user's."""
    theirs = ("SCHEDULER_SEARCH_", "RAY_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    scripts = str(Path(sys.executable).parent)
    return inherited | {"OMP_NUM_THREADS": "1", "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}


class Command:
    """A running command of ours, with the methods of ``subprocess.Popen`` that tests use.

    Args:
        arguments: without the name of the program.
        output: where stdout and stderr go, a file that is open; without it both are kept for ``communicate``.
        session: whether it begins a session of its own.
    """

    def __init__(
        self,
        *arguments: str,
        folder: Path,
        variables: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
        session: bool = False,
    ) -> None:
        variables = environment() if variables is None else dict(variables)
        assert variables["OMP_NUM_THREADS"] == "1", "torch of the server has read it"
        script = shutil.which(PROGRAM, path=variables["PATH"])
        assert script is not None
        request = Request((script, *arguments), str(folder), variables, session)
        self.returncode: int | None = None
        self._arguments = arguments
        self._readers: list[IO[str]] = []
        writers = [output.fileno()] * 2 if output is not None else [self._pipe(), self._pipe()]
        told, tell = os.pipe()
        self._told = os.fdopen(told)
        with Path(os.devnull).open() as nothing:
            with _STARTING:
                server = _server()
            socket.send_fds(server, [request.to_json()], [nothing.fileno(), *writers, tell])
        for file in {tell, *(writers if output is None else [])}:
            os.close(file)
        began = self._told.readline()
        assert began, "the server of commands has ended"
        self.pid = int(began)

    def _pipe(self) -> int:
        reader, writer = os.pipe()
        self._readers.append(os.fdopen(reader, encoding="utf-8"))
        return writer

    def poll(self) -> int | None:
        """The exit code, as ``subprocess`` has it; None while it runs."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self._arguments, timeout or 0.0)
            status = self._told.readline()
            assert status, "the server of commands has ended"
            self.returncode = os.waitstatus_to_exitcode(int(status))
            self._told.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed to stdout and stderr, once every process that could write there has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        texts: dict[IO[str], str] = {}
        threads = [
            threading.Thread(target=lambda reader=reader: texts.update({reader: reader.read()}), daemon=True)
            for reader in self._readers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_left(deadline))
        if len(texts) < len(self._readers):
            raise subprocess.TimeoutExpired(self._arguments, timeout or 0.0)
        self.wait(_left(deadline))
        self.close()
        out, error = (texts[reader] for reader in self._readers)
        return out, error

    def close(self) -> None:
        """Read and ask nothing more."""
        for file in (*self._readers, self._told):
            file.close()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    *arguments: str, folder: Path, variables: Mapping[str, str] | None = None, fresh: bool = False, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end.

    Args:
        fresh: in an interpreter of its own, started by the console script, as users do. It takes some five seconds
            longer.
    """
    variables = environment() if variables is None else variables
    if fresh:
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    process = Command(*arguments, folder=folder, variables=variables)
    try:
        out, error = process.communicate(timeout)
    finally:
        process.kill()
        process.close()
    assert process.returncode is not None
    return subprocess.CompletedProcess([PROGRAM, *arguments], process.returncode, out, error)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


@cache
def _server() -> socket.socket:
    """A connection to the server of this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", str(_SERVER), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(_stop, process, ours)
    return ours


def _stop(server: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    server.wait()
