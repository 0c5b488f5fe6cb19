"""Rows of several texts, taken apart and put together again."""

import torch

from longspan.layers.segments import Segments


def test_apart_and_together():
    owner = torch.tensor([[0, 0, -1, 1, 1, 1, -1], [-1, 1, 1, 0, -1, -1, -1], [0, 0, 0, 0, -1, -1, -1]])
    segments = Segments([owner == 0, owner == 1])
    x = torch.arange(21.0).view(3, 7, 1) + 1
    parts = segments.inward(x)
    assert segments.width == 4 and parts.shape == (6, 4, 1)
    assert segments.mask.sum(1).tolist() == [2, 1, 4, 3, 2, 0]
    assert parts[0, :2, 0].tolist() == [1, 2] and parts[4, :2, 0].tolist() == [9, 10]
    torch.testing.assert_close(segments.outward(parts, 1), x * (owner >= 0)[..., None])


def test_along_two_dimensions():
    owner = torch.tensor([[1, 0, 0, 1, -1]])
    segments = Segments([owner == 0, owner == 1])
    both = segments.outward(torch.arange(1.0, 9.0).view(2, 1, 2, 2), 2, 3)
    assert both[0, 0].tolist() == [
        [5, 0, 0, 6, 0],
        [0, 1, 2, 0, 0],
        [0, 3, 4, 0, 0],
        [7, 0, 0, 8, 0],
        [0, 0, 0, 0, 0],
    ]


def test_a_shared_token_is_the_last_texts():
    everything = torch.ones(1, 3, dtype=torch.bool)
    segments = Segments([everything, everything])
    assert segments.outward(torch.tensor([[[1.0]] * 3, [[2.0]] * 3]), 1).flatten().tolist() == [2, 2, 2]


def test_nothing():
    segments = Segments([torch.zeros(2, 0, dtype=torch.bool)])
    assert segments.outward(segments.inward(torch.zeros(2, 0, 3)), 1).shape == (2, 0, 3)
