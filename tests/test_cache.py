import copy

import pytest
import torch

from longspan.cache import EMPTY, LongspanCache, RingLayer, RowsLayer

H, D = 2, 3


def numbered(rows, begin, end):
    """Keys that say which token they are: [B, H, T, D], token t of row b is 100 b + t."""
    tokens = torch.arange(begin, end)[None] + 100 * torch.arange(rows)[:, None]
    return tokens[:, None, :, None].expand(rows, H, end - begin, D).float()


def held(layer, row):
    """Position -> the token that a ring says stands there."""
    return {int(p): int(layer.keys[row, 0, s, 0]) for s, p in enumerate(layer.positions[row]) if p != EMPTY}


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [3, 9, 8], [19, 1]])
@pytest.mark.parametrize("window", [1, 5, 64])
def test_ring_keeps_the_newest(pieces, window):
    layer = RingLayer(window)
    begin = 0
    for size in pieces:
        keys = numbered(2, begin, begin + size)
        layer.append(keys, keys + 0.5)
        begin += size
    assert layer.get_seq_length() == 20
    for row in range(2):
        assert held(layer, row) == {p: 100 * row + p for p in range(max(0, 20 - window), 20)}
    real = layer.positions != EMPTY
    assert torch.equal(
        (layer.values - layer.keys)[real[:, None].expand(-1, H, -1)], torch.full((int(real.sum()) * H, D), 0.5)
    )
    assert layer.keys.shape[2] == window


def test_ring_counts_real_tokens_only():
    layer = RingLayer(4)
    mask = torch.tensor([[1] * 8, [0] * 5 + [1] * 3, [1, 0, 1, 0, 1, 0, 1, 0], [1] * 3 + [0] * 5]).bool()
    layer.append(numbered(4, 0, 8), numbered(4, 0, 8), mask)
    assert layer.lengths.tolist() == [8, 3, 4, 3]
    assert held(layer, 0) == {4: 4, 5: 5, 6: 6, 7: 7}
    assert held(layer, 1) == {0: 105, 1: 106, 2: 107}
    assert held(layer, 2) == {0: 200, 1: 202, 2: 204, 3: 206}
    assert held(layer, 3) == {0: 300, 1: 301, 2: 302}
    layer.append(numbered(4, 8, 10), numbered(4, 8, 10), torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]).bool())
    assert layer.lengths.tolist() == [10, 4, 5, 3]
    assert held(layer, 1) == {0: 105, 1: 106, 2: 107, 3: 108}
    assert held(layer, 2) == {1: 202, 2: 204, 3: 206, 4: 209}
    assert held(layer, 3) == {0: 300, 1: 301, 2: 302}


def hashed_rows(rows=3, tokens=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows, H, tokens, D, generator=generator)
    layer = RowsLayer()
    layer.append(keys, keys + 1)
    rotations = torch.randn(H, D, 2, 4, generator=generator)
    return layer, keys, rotations


def test_rows_keep_everything_and_hash_what_comes():
    layer, keys, rotations = hashed_rows()
    due = torch.tensor([True, False, True])
    layer.hash_rows(due, lambda length: (rotations, 8), layer.lengths)
    assert layer.hashed.tolist() == [True, False, True]
    more = torch.randn(3, H, 70, D)
    for token in range(70):
        layer.append(more[:, :, token : token + 1], more[:, :, token : token + 1])
    assert torch.equal(layer.keys, torch.cat([keys, more], 2))
    from longspan.ops import lsh_buckets

    expected = lsh_buckets(layer.keys, rotations, 8)
    assert torch.equal(layer.buckets[due], expected[due].int())
    assert not layer.buckets[1].any()


def test_rows_hash_by_their_own_length():
    layer = RowsLayer()
    mask = torch.tensor([[1] * 8, [0] * 4 + [1] * 4, [1] * 8]).bool()
    keys = torch.randn(3, H, 8, D)
    layer.append(keys, keys, mask)
    asked = []

    def choose(length):
        asked.append(length)
        return torch.ones(H, D, 1, length // 2), length

    layer.hash_rows(torch.ones(3, dtype=torch.bool), choose, layer.lengths)
    assert asked == [4, 8] and layer.hashing_of.tolist() == [1, 0, 1]
    assert [buckets for _, buckets in layer.hashings] == [4, 8]
    layer.hash_rows(torch.zeros(3, dtype=torch.bool), choose, layer.lengths)
    assert asked == [4, 8]
    with pytest.raises(ValueError, match="num_hashes must stay what it was when decoding began, 1, got 2"):
        layer.hash_rows(torch.ones(3, dtype=torch.bool), lambda length: (torch.ones(H, D, 2, 1), 2), layer.lengths)


def test_reorder_repeat_and_select_move_whole_rows():
    ring = RingLayer(4)
    ring.append(numbered(3, 0, 6), numbered(3, 0, 6), torch.tensor([[1] * 6, [0] + [1] * 5, [1] * 6]).bool())
    rows, keys, rotations = hashed_rows()
    rows.hash_rows(torch.tensor([True, False, True]), lambda length: (rotations, 8), rows.lengths)
    cache = LongspanCache([ring, rows])
    buckets = rows.buckets.clone()
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert held(ring, 0) == {p: 200 + p for p in range(2, 6)} and held(ring, 2) == {p: p for p in range(2, 6)}
    assert torch.equal(rows.keys, keys[[2, 0, 0]]) and torch.equal(rows.buckets, buckets[[2, 0, 0]])
    assert rows.hashed.all()
    cache.batch_repeat_interleave(2)
    assert rows.keys.shape[0] == ring.keys.shape[0] == 6 and held(ring, 1) == held(ring, 0)
    cache.batch_select_indices(torch.tensor([4]))
    assert torch.equal(rows.values, keys[:1] + 1) and cache.lengths.tolist() == [6]
    rows.append(keys[:1, :, :1], keys[:1, :, :1])  # rows are their own: appending to one changes no copy
    assert rows.get_seq_length() == 10


def test_positions_of_the_next_tokens():
    cache = LongspanCache([RingLayer(3)])
    assert cache.is_empty and cache.get_seq_length() == 0
    keys = numbered(2, 0, 5)
    cache.layers[0].append(keys, keys, torch.tensor([[1] * 5, [0] * 3 + [1] * 2]).bool())
    assert cache.next_positions(None, 2).tolist() == [[5, 6], [2, 3]]
    assert cache.next_positions(torch.tensor([[1, 1], [0, 1]]).bool(), 2).tolist() == [[5, 6], [1, 2]]
    assert not cache.is_empty and not cache.is_compileable
    with pytest.raises(ValueError, match="holds 2 rows, got 3"):
        cache.layers[0].append(numbered(3, 5, 6), numbered(3, 5, 6))


def test_what_the_model_pads_is_not_kept():
    ring, rows = RingLayer(8), RowsLayer()
    keys = numbered(2, 0, 8)
    for layer in (ring, rows):
        layer.append(keys, keys, torch.arange(8).expand(2, 8) < 5, length=5)
        assert layer.get_seq_length() == 5 and layer.lengths.tolist() == [5, 5]
    assert rows.keys.shape[2] == 5 and rows.prompt.tolist() == [8, 8]


def test_crop_goes_back_where_nothing_was_overwritten():
    rows, keys, rotations = hashed_rows(tokens=9)
    rows.hash_rows(torch.ones(3, dtype=torch.bool), lambda length: (rotations, 8), rows.lengths)
    buckets = rows.buckets.clone()
    rows.append(keys[:, :, :4], keys[:, :, :4])
    rows.crop(-4)
    assert rows.lengths.tolist() == [9] * 3 and torch.equal(rows.keys, keys) and torch.equal(rows.buckets, buckets)
    ring = RingLayer(4)
    ring.append(keys, keys)
    ring.crop(0)
    with pytest.raises(ValueError, match="cannot go back by 2"):
        ring.crop(-2)
    assert rows.is_croppable and not ring.is_croppable
    assert not LongspanCache([rows, ring]).is_croppable


def test_join_puts_rows_together_and_pads_left():
    parts = []
    for rows, tokens in (([2, 0], 3), ([1], 7)):
        ring, all_rows = RingLayer(4), RowsLayer()
        keys = numbered(3, 0, tokens)[rows]
        ring.append(keys, keys)
        all_rows.append(keys, keys + 1)
        parts.append((torch.tensor(rows), LongspanCache([ring, all_rows])))
    cache = LongspanCache([RingLayer(4), RowsLayer()])
    cache.join(parts, 3)
    ring, all_rows = cache.layers
    assert cache.lengths.tolist() == all_rows.lengths.tolist() == [3, 7, 3]
    assert cache.get_seq_length() == 7 and all_rows.get_seq_length() == 7
    assert held(ring, 2) == {0: 200, 1: 201, 2: 202} and held(ring, 1) == {p: 100 + p for p in range(3, 7)}
    assert all_rows.mask.sum(1).tolist() == [3, 7, 3] and all_rows.prompt.tolist() == [3, 7, 3]
    assert all_rows.keys[0, 0, all_rows.mask[0], 0].tolist() == [0, 1, 2]
    assert all_rows.values[1, 0, all_rows.mask[1], 0].tolist() == [101 + t for t in range(7)]


def test_reset_copy_and_no_gradient():
    rows, keys, _ = hashed_rows()
    twin = copy.deepcopy(rows)
    leaf = torch.randn(3, H, 1, D, requires_grad=True)
    rows.append(leaf * 2, leaf)
    assert not rows.keys.requires_grad and torch.equal(twin.keys, keys) and twin.get_seq_length() == 9
    rows.reset()
    assert rows.is_empty and rows.get_seq_length() == 0 and rows.keys is None
    rows.append(keys, keys)
    assert torch.equal(rows.keys, keys)
