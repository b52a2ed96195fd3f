"""The package as a serving process sees it: light, and without the search's dependencies."""

import subprocess
import sys

import pytest
import torch

from scheduler_search import Schedule, apply_schedule
from scheduler_search.runtime import apply_reduction, identify
from scheduler_search.schedule.document import ScheduleDocument, write_document
from scheduler_search.schedule.record import Provenance
from tests.runtime.tiny import batch, build, reduction

SERVING = """
import sys
for name in ("ray", "optuna", "sqlalchemy", "botorch", "gpytorch", "typer", "rich", "PIL"):
    sys.modules[name] = None  # as if it were not installed
import scheduler_search
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert {"Schedule", "apply_schedule"} <= set(dir(scheduler_search))
from scheduler_search import Schedule, apply_schedule
assert callable(apply_schedule)
"""


@pytest.mark.slow
def test_serving_needs_no_search_dependencies():
    subprocess.run([sys.executable, "-c", SERVING], check=True)


def test_unknown_names_are_unknown():
    import scheduler_search

    with pytest.raises(AttributeError, match="no attribute 'apply'"):
        _ = scheduler_search.apply


def test_a_document_and_its_file_apply_alike(tmp_path):
    model, inputs = build(), batch()
    schedule = Schedule(identify(model), reduction())
    provenance = Provenance(
        study="tiny",
        algorithm="by-hand",
        algorithm_parameters={},
        search_data_digest="sha256:none",
        validation_data_digest=None,
        search_samples=1,
        validation_samples=0,
        seed=0,
        software={},
    )
    document = ScheduleDocument(schedule, provenance, None, "2026-01-01T00:00:00Z")
    write_document(tmp_path / "tiny.v1.json", document)
    results = []
    for given in (schedule, document, tmp_path / "tiny.v1.json", str(tmp_path / "tiny.v1.json")):
        with apply_schedule(model, given):
            results.append(model(**inputs).logits)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16(attention):
    """A rule that does not read attention chooses the same tokens, so that logits differ by rounding only."""
    model, inputs = build(attention=attention), batch("varying")
    with apply_reduction(model, reduction((1.0, 1.0, 0.5), rule="random")):
        exact = model(**inputs).logits[:, -4:]
    model = model.to(torch.bfloat16)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with apply_reduction(model, reduction((1.0, 1.0, 0.5), rule="random")):
        rough = model(**inputs).logits[:, -4:]
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.1 * exact.std()
    with apply_reduction(model, reduction((0.5, 0.5, 0.2), entry="pooling")):
        assert torch.isfinite(model.generate(**inputs, max_new_tokens=3, do_sample=False)).all()


def test_without_an_attention_mask():
    model, inputs = build(), batch("equal")
    with apply_reduction(model, reduction()):
        expected = model(**inputs).logits
        del inputs["attention_mask"]
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model(inputs["input_ids"], inputs["pixel_values"]).logits, expected)


def test_gradients_flow_through_what_is_kept():
    model, inputs = build(), batch("single")
    embeddings = model.get_input_embeddings().weight.requires_grad_(True)
    with torch.enable_grad(), apply_reduction(model, reduction()):
        model(**inputs).logits.sum().backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()
