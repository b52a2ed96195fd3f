"""SIGKILL at random moments: the resumed study ends with the digest and the trials of the undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from tests.integration.commands import Command
from tests.integration.conftest import SMALL, Cli, read

pytestmark = pytest.mark.slow

KILLS = 3
# Long enough that it cannot end before it was killed often enough: a kill comes about five chunks after the start.
LONGER = SMALL.replace("samples = 48", "samples = 96").replace("iterations = 4", "iterations = 6")


def trials(database: Path) -> list[tuple[object, ...]]:
    """Our trials with their figures, and Optuna's with their values: all that a study decides by."""
    ours = """
        SELECT stage.name, trial.number, trial.candidate, trial.evaluation_key, trial.state, trial.score,
               trial.difference, trial.variance, trial.objective, trial.samples
        FROM search_trials AS trial JOIN search_stages AS stage ON stage.id = trial.stage_id
        ORDER BY stage.stage, trial.number"""
    theirs = """
        SELECT study.study_name, trial.number, trial.state, parameter.param_value, value.value
        FROM trials AS trial JOIN studies AS study USING (study_id)
        JOIN trial_params AS parameter USING (trial_id) LEFT JOIN trial_values AS value USING (trial_id)
        ORDER BY study.study_name, trial.number"""
    connection = sqlite3.connect(database)
    try:
        return [*connection.execute(ours).fetchall(), *connection.execute(theirs).fetchall()]
    finally:
        connection.close()


def chunk_count(database: Path) -> int:
    if not database.exists():
        return 0
    connection = sqlite3.connect(database, timeout=30)
    try:
        return int(connection.execute("SELECT count(*) FROM chunk_scores").fetchone()[0])
    except sqlite3.OperationalError:  # killed before the tables were made
        return 0
    finally:
        connection.close()


def run_and_kill(folder: Path, study: Path, delay: float) -> bool:
    """Start the study or go on with it, kill it ``delay`` seconds after it has added a chunk; False if it was done."""
    database = folder / "killed.db"
    before = chunk_count(database)
    # The lease of who was killed would be silent 15 seconds later.
    command = ["resume", "small", "--take-over"] if before else ["launch", study.name]
    with Path(os.devnull).open("wb") as nothing:
        process = Command("--database", "sqlite:///killed.db", *command, folder=folder, output=nothing)
    deadline = time.monotonic() + 120
    while process.poll() is None and chunk_count(database) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_killed_at_random_moments(cli: Cli, tmp_path: Path, small: Path) -> None:
    """The moments are drawn afresh in every run, any of them must do; the printed seed repeats them."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"random moments from seed {seed}")
    moments = random.Random(seed)
    small.write_text(LONGER)
    # With another order of sets and hashes than those that are killed, which share one.
    cli("--database", "sqlite:///undisturbed.db", "launch", small.name, fresh=True)
    cli("--database", "sqlite:///undisturbed.db", "export", "small", "--out", "undisturbed")
    for _ in range(KILLS):
        assert run_and_kill(tmp_path, small, moments.uniform(0.0, 0.5)), "the study ended before it was killed"
    cli("--database", "sqlite:///killed.db", "resume", "small", "--take-over")
    cli("--database", "sqlite:///killed.db", "export", "small", "--out", "killed")
    assert trials(tmp_path / "killed.db") == trials(tmp_path / "undisturbed.db")
    first, second = (read(tmp_path / out / "tiny-llava" / "small.v1.json") for out in ("undisturbed", "killed"))
    assert first["digest"] == second["digest"]


def test_control_c_leaves_a_resumable_study(cli: Cli, tmp_path: Path, small: Path) -> None:
    process = Command("--database", "sqlite:///killed.db", "launch", small.name, folder=tmp_path)
    deadline = time.monotonic() + 120
    while chunk_count(tmp_path / "killed.db") == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "scheduler-search resume small" in out
    assert "Traceback" not in error
    assert '"interrupted"' in cli("--database", "sqlite:///killed.db", "status", "small", "--json").stdout
    cli("--database", "sqlite:///killed.db", "resume", "small")
