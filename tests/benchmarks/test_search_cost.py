"""The search benchmark runs, and the prefix store spares layers. No test looks at a time."""

import pytest

from benchmarks import search_cost


@pytest.mark.slow
def test_a_small_search_costs_less_with_prefixes(capsys):
    small = ["--samples", "16", "--validation", "16", "--variants", "2"]
    assert search_cost.main(["--algorithms", "g-search", *small]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    off, on = (dict(zip(rows[0], row, strict=True)) for row in rows[2:])
    assert off["chunk runs"] == on["chunk runs"]
    assert off["validation score"] == on["validation score"]
    assert int(on["layer-tokens"]) < int(off["layer-tokens"])
    assert float(on["GFLOPs"]) < float(off["GFLOPs"])
