"""Positions count tokens, not padding."""

import torch

from longspan.layers import TextEmbeddings, positions_from_ids, positions_from_mask


def test_positions_of_ids():
    ids = torch.tensor([[5, 6, 7, 1, 1], [1, 1, 5, 6, 7], [5, 1, 6, 1, 7], [1, 1, 1, 1, 1]])
    assert positions_from_ids(ids, 1).tolist() == [
        [2, 3, 4, 1, 1],
        [1, 1, 2, 3, 4],
        [2, 1, 3, 1, 4],
        [1, 1, 1, 1, 1],
    ]


def test_positions_without_ids_begin_at_the_first_token():
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool()
    assert positions_from_mask(2, 5, None, 1, mask.device).tolist() == [[2, 3, 4, 5, 6]] * 2
    assert positions_from_mask(2, 5, mask, 1, mask.device).tolist() == [[2, 3, 4, 5, 6], [1, 1, 2, 3, 4]]


def test_token_types_default_to_the_first():
    torch.manual_seed(0)
    layer = TextEmbeddings(9, 4, max_positions=8, num_token_types=2, padding_idx=1, layer_norm_eps=1e-5, dropout=0.0)
    ids = torch.tensor([[3, 4, 5]])
    position = positions_from_ids(ids, 1)
    torch.testing.assert_close(layer(ids, position), layer(ids, position, torch.zeros_like(ids)))
    torch.testing.assert_close(layer(None, position, None, layer.word_embeddings(ids)), layer(ids, position))
    assert not torch.allclose(layer(ids, position), layer(ids, position, torch.ones_like(ids)))
