"""Which addresses are taken, and that no cluster is used without a token."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from scheduler_search.cluster import connect, connection, health
from scheduler_search.errors import ClusterError


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("address", ["", "somewhere", "ray://host:10001", "host:", "host:port", "a b:1", None])
def test_an_address_that_is_none(address: str | None) -> None:
    with pytest.raises(ClusterError, match="must be local, auto or host:port"), connect(address):
        pass


@pytest.mark.parametrize("address", ["auto", "host-1.example:6379", "10.0.0.1:6379", "[::1]:6379"])
@pytest.mark.parametrize(
    "environment",
    [{}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN": "abc"}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "abc"}],
)
def test_a_cluster_without_a_token(monkeypatch: pytest.MonkeyPatch, address: str, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError, match=r"token authentication.*--ray local"), connect(address):
        pass


def test_the_token_of_a_private_cluster_is_private(tmp_path: Path) -> None:
    with connection._token_environment(tmp_path):
        path = Path(connection.os.environ["RAY_AUTH_TOKEN_PATH"])
        assert connection.os.environ["RAY_AUTH_MODE"] == "token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(path.read_text()) == 64
    assert "RAY_AUTH_MODE" not in connection.os.environ
    assert "RAY_AUTH_TOKEN_PATH" not in connection.os.environ


def test_a_token_that_is_there_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    with connection._token_environment(tmp_path):
        assert not list(tmp_path.iterdir())
        assert "RAY_AUTH_TOKEN_PATH" not in connection.os.environ


def test_a_private_cluster_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray raises then is no more than an Exception; the folder with the token is gone all the same."""
    folders: list[Path] = []

    def fail(address: str, **options: object) -> None:
        folders.append(Path(str(options["_temp_dir"])))
        raise Exception(f"{address} timed out")

    monkeypatch.setattr(connection, "_initialise", fail)
    with pytest.raises(ClusterError, match=r"a private Ray cluster must start.*local timed out"), connect("local"):
        pass
    assert not folders[0].exists()


def test_what_ray_prints_while_connecting_is_the_cause_and_not_on_the_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with health.overhearing() as last_line:
        os.write(2, b"client.cc: first\nclient.cc: Failed: RPC error: InvalidAuthToken: the token is missing\n")
        print("ours", file=sys.stdout)
        assert last_line() == "InvalidAuthToken: the token is missing"
    os.write(2, b"after\n")
    assert capfd.readouterr() == ("ours\n", "after\n")


def test_where_ray_prints_nothing_there_is_no_cause() -> None:
    with health.overhearing() as last_line:
        assert last_line() == ""
