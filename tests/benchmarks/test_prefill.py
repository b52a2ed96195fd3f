"""The prefill benchmark runs at a toy width and predicts what the cost arithmetic says. No test looks at a time."""

import json

import pytest
import torch

from benchmarks import prefill
from benchmarks.workload import LAYERS, VISION_TOKENS, sigmoid_of_mean, variants
from scheduler_search.schedule.cost import DecoderShape, ModelShape, VisionShape, kv_cache_bytes, prefill_flops
from scheduler_search.schedule.counts import keep_counts

WIDTH, HEADS, INTERMEDIATE, VOCABULARY, TEXT = 32, 2, 48, 100, 3 + 5
SETTINGS = {
    "width": "32",
    "heads": "2",
    "intermediate": "48",
    "vocabulary": "100",
    "rounds": "1",
    "generating": "1",
    "decode-tokens": "1",
    "text-before": "3",
    "text-after": "5",
}
TOY = [part for name, value in SETTINGS.items() for part in (f"--{name}", value)] + ["--batches", "1", "2"]
TOWER = VisionShape(24, 8, 1, 32, VISION_TOKENS, 3 * 14 * 14, VISION_TOKENS)
SHAPE = ModelShape(DecoderShape(LAYERS, WIDTH, HEADS, HEADS, 16, INTERMEDIATE), TOWER, (8, WIDTH, WIDTH), VOCABULARY)


@pytest.mark.parametrize("mean", prefill.MEAN_KEEP)
@pytest.mark.parametrize("k", [0.0, 0.25, 2.0])
def test_a_sigmoid_has_the_published_mean_over_all_layers(mean, k):
    rates = sigmoid_of_mean(mean, k)
    assert rates[:2] == (1.0, 1.0)
    assert sum(rates) / LAYERS == pytest.approx(mean)
    # Each count is off by half a token at most.
    assert sum(keep_counts(rates, VISION_TOKENS)) / LAYERS / VISION_TOKENS == pytest.approx(mean, abs=0.5 / 576)


def test_hooks_that_drop_nothing_are_in_place_all_the_same():
    idle = [variant for variant in variants([], 0.25) if variant.idle]
    assert [variant.name for variant in idle] == ["hooks, rates 1.0", "hooks, nothing to drop"]
    assert min(idle[1].rates) < 1.0
    assert set(keep_counts(idle[1].rates, VISION_TOKENS)) == {VISION_TOKENS}


@pytest.mark.parametrize(
    "wrong", [["--rounds", "0"], ["--width", "33"], ["--mean-keep", "0.01"], ["--device", "nowhere"]]
)
def test_wrong_settings_end_in_one_line(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        prefill.main([*TOY, *wrong])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_table_at_toy_width(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        assert prefill.main([*TOY, "--json", str(tmp_path / "result.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[0] == "| " + " | ".join(prefill.COLUMNS) + " |"
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert table[2:] == ["| " + " | ".join(row["cells"].values()) + " |" for row in rows]
    assert [row["batch"] for row in rows] == [1] * 7 + [2] * 5
    for row in rows:
        _check_row(row)


def _check_row(row):
    whole, rates = (1.0,) * LAYERS, row["keep_rates"]
    expected = _flops(SHAPE, whole) / _flops(SHAPE, rates)
    layers = ModelShape(SHAPE.decoder, None, (), 0)
    assert row["predicted"]["prefill"] == pytest.approx(expected)
    assert row["predicted"]["decoder"] == pytest.approx(_flops(layers, whole) / _flops(layers, rates))
    assert 1.0 <= row["predicted"]["causal"] <= row["predicted"]["decoder"]
    kv_bytes = row["batch"] * kv_cache_bytes(SHAPE, rates, VISION_TOKENS, TEXT, bytes_per_value=4)
    assert row["record"]["kv_bytes"] == kv_bytes
    assert row["record"]["peak_bytes"] is None
    assert {name: len(row["record"][name]) for name in ("prefill", "first_token", "decode")} == {
        "prefill": 1,
        "first_token": 1,
        "decode": 1,
    }


def _flops(shape, rates):
    return prefill_flops(shape, rates, VISION_TOKENS, TEXT)
