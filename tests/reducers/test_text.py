import torch

from scheduler_search.reducers.text import question
from tests.reducers.layouts import tokens_like


def test_the_question_is_the_text_behind_the_last_image():
    tokens = tokens_like(("tt00t11ttt", "....t00ttt", "....tt0000", "..00000000"), (1, 1, 1, 1))
    text = question(tokens)
    assert text.real.sum(dim=1).tolist() == [3, 3, 2, 0]  # without any, all of the text
    for row, slots in enumerate(([7, 8, 9], [7, 8, 9], [4, 5], [])):
        torch.testing.assert_close(text.values[row, : len(slots)], tokens.hidden[row, slots], atol=0, rtol=0)
        assert not text.values[row, len(slots) :].any()


def test_a_batch_without_text():
    text = question(tokens_like(("0000",), (1,)))
    assert text.values.shape == (1, 0, 12)
