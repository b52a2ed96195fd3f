"""The command line in the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder; returns exit code, and what it printed to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCHEDULER_SEARCH_DATABASE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    from scheduler_search.cli import main  # not by tests that run no command

    def invoke(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scheduler-search", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return invoke
