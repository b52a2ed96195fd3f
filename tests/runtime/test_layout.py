import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scheduler_search.runtime import apply_reduction
from scheduler_search.runtime.layout import Kept, compact, continue_mask, gather_mask, gather_tokens
from tests.runtime.tiny import TOKENS, batch, build, reduction


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4))
def test_compaction_keeps_order_and_aligns_right(rows):
    stay = torch.tensor(rows)
    lengths = stay.sum(1).tolist()
    slots = max(lengths)
    index, valid = compact(stay, slots, fillers=min(lengths) < slots)
    for row, length in enumerate(lengths):
        assert index[row, slots - length :].tolist() == stay[row].nonzero()[:, 0].tolist()
        if valid is not None:
            assert valid[row].tolist() == [False] * (slots - length) + [True] * length
    assert (valid is None) == (min(lengths) == slots)


def test_gathering_expands_a_shared_batch():
    values = torch.arange(10.0).view(1, 5, 2)
    index = torch.tensor([[0, 4], [1, 2]])
    assert torch.equal(gather_tokens(values, index, 1), values[0][index])


KEPT = Kept(torch.tensor([[0, 2, 5], [1, 3, 4]]), torch.tensor([[True] * 3, [False, True, True]]), prompt=6)


@pytest.mark.parametrize("form", ["none", "bool", "additive"])
def test_a_filler_sees_itself_and_is_seen_by_nobody(form):
    causal = torch.ones(1, 1, 6, 6).tril().bool()
    additive = torch.float32 if form == "additive" else None
    mask = {
        "none": None,
        "bool": causal,
        "additive": torch.zeros(1, 1, 6, 6).masked_fill(~causal, torch.finfo(torch.float32).min),
    }[form]
    found = gather_mask(mask, KEPT, additive=additive)
    visible = found if found.dtype == torch.bool else found == 0
    lower = [[True, False, False], [True, True, False], [True, True, True]]
    assert visible[0, 0].tolist() == lower
    assert visible[1, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]


@pytest.mark.parametrize("additive", [None, torch.float32])
def test_new_tokens_see_what_is_held(additive):
    """Two new tokens after six of the prompt and one that was generated since."""
    found = continue_mask(None, KEPT, 2, 7, 4, additive=additive)
    visible = found if additive is None else found == 0
    assert visible[0, 0].tolist() == [[True] * 5 + [False], [True] * 6]
    assert visible[1, 0].tolist() == [[False] + [True] * 4 + [False], [False] + [True] * 5]
    assert continue_mask(None, Kept(KEPT.position, None, 6), 1, 7, 4, additive=additive) is None
    narrow = continue_mask(None, KEPT, 2, 7, 3, additive=additive)  # a window has let go of the first of the four
    assert torch.equal(narrow, found[..., 1:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_dropped_cannot_poison_what_is_kept(attention):
    """A NaN feature that is dropped at the entry must be gone: 0 x NaN in a filler would come back through PV."""
    model, inputs = build(attention=attention), batch("varying")
    features = model.model.get_image_features(pixel_values=inputs.pop("pixel_values"), return_dict=True)
    with apply_reduction(model, reduction((0.0,) * 6, entry="pooling")):
        expected = model(**inputs, mm_encoder_outputs={"image": features}).logits
        features.pooler_output = [torch.full_like(part, float("nan")) for part in features.pooler_output]
        found = model(**inputs, mm_encoder_outputs={"image": features}).logits
    text = inputs["attention_mask"].sum(1) - torch.tensor([1, 2, 1]) * TOKENS
    for row, length in enumerate(text.tolist()):
        assert torch.equal(found[row, -length:], expected[row, -length:])
    assert torch.isfinite(found).all()
