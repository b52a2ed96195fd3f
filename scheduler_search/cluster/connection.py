"""The way to a Ray cluster: which one, with which token, and quietly.

Knows: addresses, Ray's token authentication, and that a private cluster belongs to the process that started it. Does
not know: workers, or what is run. Whoever can reach a Ray cluster without a token can run anything on it, so one that
asks for no token is never used.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient

from scheduler_search.cluster.health import keeping_signals, outlive_the_cluster, overhearing, refusal, silence
from scheduler_search.errors import ClusterError

LOCAL = "local"
_OBJECT_STORE_BYTES = 100 * 2**20
_LONGEST_FOLDER = 30
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Be connected to a cluster for the time of the context. Where this process is already, that connection serves.

    Args:
        address: ``local`` for a private cluster on this machine that ends with the context, ``auto`` for the one that
            runs on this machine, or ``host:port`` of a head node; None only where the process is connected already.

    Raises:
        ClusterError: there is no such cluster, it refuses us, or it is used without a token.
    """
    if ray.is_initialized():
        yield
    elif address == LOCAL:
        with _private_cluster():
            yield
    else:
        _join(_checked(address))
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _private_cluster() -> Iterator[None]:
    folder = _own_folder()
    try:
        with _token_environment(folder):
            _start(folder)
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> None:
    try:
        _initialise("local", _temp_dir=str(folder), object_store_memory=_OBJECT_STORE_BYTES)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ClusterError(
            "a private Ray cluster must start",
            actual=f"{type(error).__name__}: {first_line}",
            place="Ray on this machine",
            remedy="try again when the machine is less busy; it needs about 1 GB of memory",
        ) from error


def _own_folder() -> Path:
    """A folder that only this user can read, with a short path: that of a socket may have 107 characters."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="ray-", dir=parent if len(parent) <= _LONGEST_FOLDER else "/tmp"))


@contextmanager
def _token_environment(folder: Path) -> Iterator[None]:
    """A token for Ray's processes, of which the environment names the file; a token that is there already serves."""
    if _has_token():
        yield
        return
    path = folder / "token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    added = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    _read_environment_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_environment_again()


def _read_environment_again() -> None:
    """Ray reads mode and token once, when it is imported; there is no public way to have it read them again."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _has_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and any(map(os.environ.get, _TOKEN_VARIABLES))


def _checked(address: str | None) -> str:
    if address is None or (address != "auto" and not re.fullmatch(r"[\w.\-\[\]:]+:\d{1,5}", address)):
        raise ClusterError(
            "the address of a Ray cluster must be local, auto or host:port", actual=repr(address), place="--ray"
        )
    if not _has_token():
        raise ClusterError(
            "a Ray cluster must be used with token authentication: without, anybody who reaches it can run anything",
            actual="no RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN in the environment",
            place=f"Ray at {address}",
            remedy="start every node with them and set them here, or use a private cluster: --ray local",
        )
    return address


def _join(address: str) -> None:
    outlive_the_cluster()
    heard = ""
    try:
        if address != "auto" and (error := refusal(address)) is not None:
            raise error
        with overhearing() as last_line:
            try:
                if address != "auto":
                    # Tells of a wrong token at once; what comes next would try it again for twenty seconds.
                    GcsClient(address=address)
                _initialise(address)
            finally:
                heard = last_line()
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ClusterError(
            "a Ray cluster must answer at its address and take our token",
            actual=heard or f"{type(error).__name__}: {first_line}",
            place=f"Ray at {address}",
            remedy="check the address and the token, or use a private cluster: --ray local",
        ) from error


def _initialise(address: str, **options: object) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with keeping_signals(), warnings.catch_warnings():
        # Of Ray's own future defaults, which are none of the user's business.
        warnings.simplefilter("ignore", FutureWarning)
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **options,
        )
    silence()
