"""Coordinators as processes that start within milliseconds, with everything imported."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from tests.integration import chaos_driver

_PRELOADED = (chaos_driver.__name__, "alembic.command", "optuna.storages", "psycopg", "pytest", "scipy.stats")


def process_context() -> ForkServerContext:
    """Where ``start`` forks from: one server for the whole test session."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def start(url: str, folder: Path, *, pause: float, seed: int = 0, largest_file: int | None = None) -> ForkServerProcess:
    """Start ``chaos_driver.coordinate`` in a process of its own."""
    arguments = (url, folder, pause, seed, largest_file)
    process = process_context().Process(target=chaos_driver.coordinate, args=arguments, daemon=True)
    process.start()
    return process


def executed(folder: Path) -> list[str]:
    """The chunks that were begun, in order, by whichever process."""
    return _lines(folder / "executed.txt")


def errors(folder: Path) -> list[str]:
    """What processes ended with: ``lost`` (a lease) or ``error``, process id, and the line that users see."""
    return _lines(folder / "errors.txt")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
