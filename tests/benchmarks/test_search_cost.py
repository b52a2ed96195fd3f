"""The search benchmark runs, and the prefix store spares layers. No test looks at a time."""

import pytest

from benchmarks import search_cost


@pytest.mark.slow
def test_a_small_search_costs_less_with_prefixes(capsys):
    assert search_cost.main(["--algorithms", "g-search", "--samples", "16"]) == 0
    off, on = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:4])
    cells = dict(zip(search_cost.COLUMNS, off, strict=True)), dict(zip(search_cost.COLUMNS, on, strict=True))
    assert cells[0]["chunk runs"] == cells[1]["chunk runs"]
    assert int(cells[1]["layer calls"]) < int(cells[0]["layer calls"])
    assert int(cells[1]["layer-tokens"]) < int(cells[0]["layer-tokens"])
