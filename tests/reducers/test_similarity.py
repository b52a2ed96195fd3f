import torch
from torch.nn import functional as F

from scheduler_search.reducers.similarity import cosine_to, min_max, squared_distances


def test_cosine_to_one_vector_of_each_sample():
    generator = torch.Generator().manual_seed(0)
    values, reference = (torch.randn(shape, generator=generator).bfloat16() for shape in ((2, 5, 3), (2, 3)))
    found = cosine_to(values, reference)
    assert found.dtype == torch.float32
    expected = F.cosine_similarity(values.float(), reference.float()[:, None], dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_min_max_among_some_slots():
    values = torch.tensor([[1.0, 9.0, 3.0, 2.0], [5.0, 5.0, 5.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    among = torch.tensor([[True, False, True, True], [True, True, True, False], [False, False, False, False]])
    assert min_max(values, among).tolist() == [[0.0, 0.0, 1.0, 0.5], [0.0] * 4, [0.0] * 4]


def test_distances_are_symmetric_and_exactly_zero_from_itself():
    values = torch.randn(2, 7, 33).bfloat16()
    found = squared_distances(values)
    torch.testing.assert_close(found, torch.cdist(values.double(), values.double()).square().float())
    assert torch.equal(found, found.transpose(1, 2))
    assert not found.diagonal(dim1=1, dim2=2).any()
