"""Tokens before padding, and back."""

import torch

from longspan.layers.arrangement import Arrangement
from longspan.layers.dense_weights import dense_weights
from longspan.layers.stream_layer_norm import StreamLayerNorm


def test_there_and_back():
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()
    x = torch.arange(40).view(4, 5, 2)
    arrangement = Arrangement(mask)
    inside = arrangement.inward(x)
    assert arrangement.inward(mask).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0] * 5, [1, 0, 0, 0, 0]]
    assert torch.equal(inside[0, :3], x[0, [1, 3, 4]])
    assert torch.equal(arrangement.outward(inside), x)
    pairs = torch.randn(4, 3, 5, 5)
    moved = arrangement.outward(arrangement.outward(pairs, 2), 3)
    assert torch.equal(moved[0, :, 3, 1], pairs[0, :, 1, 0])


def test_needed_only_where_padding_stands_before_a_token():
    assert not Arrangement.needed(None)
    assert not Arrangement.needed(torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool())
    assert Arrangement.needed(torch.tensor([[1, 1, 0], [0, 1, 1]]).bool())
    assert Arrangement.needed(torch.tensor([[1, 0, 1]]).bool())


def test_weights_read_off_an_attention():
    probabilities = torch.rand(2, 3, 7, 7)
    like = torch.empty(2, 3, 7, 4)
    torch.testing.assert_close(dense_weights(lambda value: probabilities @ value, like), probabilities)
    assert dense_weights(lambda value: value, like[:, :, :0]).shape == (2, 3, 0, 0)


def test_a_stream_is_normalised_in_its_own_dtype():
    norm, x = StreamLayerNorm(8), torch.randn(2, 3, 8) * 1e3 + 1e4
    expected = torch.nn.functional.layer_norm(x, (8,))
    assert torch.equal(norm(x), expected)
    half = norm.to(torch.bfloat16)(x)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, expected.to(torch.bfloat16))
    norm.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(x), expected.to(torch.bfloat16))
