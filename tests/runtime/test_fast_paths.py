"""The fast ways are taken where they may be, and give what the general ones give."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scheduler_search.reducers import Prompt
from scheduler_search.runtime import apply_reduction
from scheduler_search.runtime.layout import Kept, gather_tokens
from scheduler_search.runtime.rows import RowReader, _TextRows
from tests.runtime import tiny


def prompt_of(*samples: str) -> Prompt:
    """``.`` is padding, ``v`` a vision token, ``t`` text."""
    marks = np.array([list(sample) for sample in samples])
    return Prompt(np.ones(marks.shape, np.int64), marks != ".", marks == "v")


@pytest.mark.parametrize(
    ("samples", "rows", "fast"),
    [
        (["ttvvttt", "..tvvtt"], "instruction", True),
        (["ttvvttt", "..tvvtt"], "last", True),
        (["ttvvttt", "..tvvtt"], "all", False),  # text in front of the image moves
        (["ttvvttt", "tvvtt.."], "instruction", False),  # right padding is squeezed out
        (["ttvvttt", "...ttvv"], "instruction", False),  # an image at the end: its last token may go
        (["ttvvttt", "....ttt"], "instruction", True),
    ],
)
def test_rows_are_counted_from_the_end_where_nothing_behind_them_can_go(samples, rows, fast):
    assert (_TextRows.of(prompt_of(*samples), rows).from_end is not None) == fast


@pytest.mark.parametrize("rows", ["instruction", "last"])
def test_rows_from_the_end_equal_rows_that_are_looked_up(rows):
    prompt = prompt_of("ttvvvttt", "..tvvvtt", ".....ttt")
    reader, device = RowReader(prompt), torch.device("cpu")
    cuts = (None, Kept(torch.tensor([[0, 1, 4, 5, 6, 7], [1, 2, 3, 4, 6, 7], [0, 1, 2, 5, 6, 7]]), _valid(), 8))
    for kept in cuts:
        reader._text = _TextRows.of(prompt, rows)
        found, weights = reader.at(rows, kept, None, (), device)
        reader._text = replace(reader._text, from_end=None)
        expected, expected_weights = reader.at(rows, kept, None, (), device)
        assert torch.equal(found, expected)
        assert torch.equal(weights, expected_weights)


def _valid() -> torch.Tensor:
    return torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize("samples", [1, 3])
def test_gathering_rows_equals_element_wise_gathering(samples):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(samples, 7, 2, 5, generator=generator).transpose(2, 3)
    index = torch.randint(7, (3, 4), generator=generator)
    expected = torch.stack([values[row % samples, index[row]] for row in range(3)])
    assert torch.equal(gather_tokens(values, index[:3], 1), expected)


@pytest.mark.parametrize("name", ["single", "equal"])
def test_without_padding_the_reduced_layers_keep_the_causal_kernel(model_of, name):
    """A mask of any kind would take scaled_dot_product_attention off its fast path."""
    model, seen = model_of("llama", "sdpa"), []
    last = model.get_decoder().layers[-1]
    with apply_reduction(model, tiny.reduction()) as handle:
        hook = last.register_forward_pre_hook(lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True)
        model(**tiny.batch(name))
        hook.remove()
        assert handle.report().layers[-1].tokens < handle.report().layers[0].tokens
    assert [arguments["attention_mask"] for arguments in seen] == [None]
