"""Rings of several widths: they hold the newest tokens of each row side by side, and memory follows the widths."""

import copy

import pytest
import torch

from longspan.adaptive_span.cache_adaptive_span import SpanRings, group_heads
from longspan.cache import LongspanCache

D = 3
WIDTHS = [5, 200, 7, 90, 1000, 205]
H = len(WIDTHS)


def numbered(rows, begin, end):
    """Keys that say which token they are: [B, H, T, D], token t of row b is 10000 b + t + 1."""
    tokens = torch.arange(begin, end)[None] + 10000 * torch.arange(rows)[:, None] + 1
    return tokens[:, None, :, None].expand(rows, H, end - begin, D).double()


def append(layer, begin, end, mask=None, rows=2):
    keys = numbered(rows, begin, end)
    layer.append(keys, keys + 0.5, mask)


def held(layer, row):
    """Head -> what its rows hold, the newest last."""
    return {
        head: group.rows[0][row, i, :, 0].long().tolist()
        for group in layer.groups
        for i, head in enumerate(group.heads)
    }


def test_groups_of_similar_width():
    assert group_heads(WIDTHS) == [[0, 2], [1, 3, 5], [4]]
    assert group_heads([32] * 8) == [list(range(8))]
    assert group_heads([3032, 1432, 632, 282, 146, 82, 32, 32]) == [[4, 5, 6, 7], [2, 3], [1], [0]]
    for widths in ([1], list(range(1, 500, 7)), [8192, 32, 8000, 6600, 6500], [1, 100, 1000, 10000]):
        groups = group_heads(widths)
        assert sorted(head for group in groups for head in group) == list(range(len(widths)))
        held = sum(len(group) * max(widths[head] for head in group) for group in groups)
        assert held - sum(widths) <= max(sum(widths) // 4, 64 * len(widths))


@pytest.mark.parametrize(
    "pieces", [[1500], [1] * 300, [3, 400, 1, 1, 700], [250] * 5], ids=lambda p: f"{len(p)}x{p[0]}"
)
def test_keeps_the_newest_of_each_head(pieces):
    layer = SpanRings(WIDTHS)
    begin = 0
    for size in pieces:
        append(layer, begin, begin + size)
        begin += size
        for row, rows in ((row, held(layer, row)) for row in range(2)):
            for head, width in enumerate(WIDTHS):
                newest = [10000 * row + token + 1 for token in range(max(0, begin - width), begin)]
                assert rows[head][-width:] == newest
    assert layer.get_seq_length() == begin
    assert layer.lengths.tolist() == [begin, begin]
    for group in layer.groups:
        keys, values = group.rows
        assert torch.equal(values, keys + 0.5)


def test_memory_follows_the_widths_and_the_text():
    layer = SpanRings(WIDTHS)
    per_token = 2 * 2 * D * 8  # two rows, keys and values, float64
    append(layer, 0, 10)
    assert layer.num_bytes <= H * (10 + 16) * per_token
    for begin in range(10, 4000, 5):
        append(layer, begin, begin + 5)
    assert layer.num_bytes <= 1.25 * (sum(WIDTHS) * 1.25 + 16 * H) * per_token


def test_tokens_stand_together_whatever_the_padding():
    layer = SpanRings([4] * H)
    mask = torch.tensor([[1] * 8, [0] * 5 + [1] * 3, [1, 0, 1, 0, 1, 0, 1, 0], [1] * 3 + [0] * 5, [0] * 8]).bool()
    append(layer, 0, 8, mask, rows=5)
    assert layer.lengths.tolist() == [8, 3, 4, 3, 0]
    assert [held(layer, row)[0] for row in range(5)] == [
        [5, 6, 7, 8],
        [0, 10006, 10007, 10008],
        [20001, 20003, 20005, 20007],
        [0, 30001, 30002, 30003],
        [0, 0, 0, 0],
    ]
    (group,) = layer.groups
    assert layer.filled(group).sum(1).tolist() == [4, 3, 4, 3, 0]
    append(layer, 8, 10, torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [0, 1]]).bool(), rows=5)
    assert [held(layer, row)[0] for row in range(5)] == [
        [7, 8, 9, 10],
        [10006, 10007, 10008, 10009],
        [20003, 20005, 20007, 20010],
        [0, 30001, 30002, 30003],
        [0, 0, 0, 40010],
    ]
    append(layer, 10, 11, rows=5)
    assert [held(layer, row)[3] for row in range(5)] == [
        [8, 9, 10, 11],
        [10007, 10008, 10009, 10011],
        [20005, 20007, 20010, 20011],
        [30001, 30002, 30003, 30011],
        [0, 0, 40010, 40011],
    ]


def test_rows_of_the_batch_move():
    cache = LongspanCache([SpanRings(WIDTHS), SpanRings([3] * H)])
    for layer in cache.layers:
        append(layer, 0, 30, rows=3)
    before = [copy.deepcopy(held(layer, 2)) for layer in cache.layers]
    cache.reorder_cache(torch.tensor([2, 0, 2]))
    for layer, rows in zip(cache.layers, before, strict=True):
        assert held(layer, 0) == held(layer, 2) == rows
        append(layer, 30, 31, rows=3)
        assert held(layer, 0)[0][:-1] == rows[0][-2:] if layer.widths[0] == 3 else rows[0][-4:]
    cache.batch_repeat_interleave(2)
    assert cache.lengths.tolist() == [31] * 6
    assert held(cache.layers[0], 4)[4][-1] == 20031
    cache.reset()
    assert cache.is_empty
    append(cache.layers[0], 0, 2)
    assert held(cache.layers[0], 1)[0] == [10001, 10002]


def test_what_it_cannot_do():
    layer = SpanRings(WIDTHS)
    append(layer, 0, 3)
    with pytest.raises(ValueError, match=r"here 1000 tokens, cannot go back by 2"):
        layer.crop(-2)
    with pytest.raises(NotImplementedError, match="append"):
        layer.update(*[numbered(2, 0, 1)] * 2)
    with pytest.raises(ValueError, match="holds 2 rows, got 3"):
        append(layer, 3, 4, rows=3)
    with pytest.raises(ValueError, match=r"widths must be at least 1 for every head, got \[3, 0\]"):
        SpanRings([3, 0])
