"""The benchmark of scaling runs. No test looks at a time."""

from __future__ import annotations

import pytest

from benchmarks import scaling

pytestmark = pytest.mark.slow


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--workers", "1", "2", "--seconds", "0.01", "--chunks", "4", "--total", "0.1"])
    lines = capsys.readouterr().out.splitlines()
    cells = [dict(zip(scaling.COLUMNS, line.strip("| ").split(" | "), strict=True)) for line in lines[2:4]]
    assert [(row["workers"], row["chunks"]) for row in cells] == [("1", "8"), ("2", "20")]
