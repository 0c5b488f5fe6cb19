"""Reformer's two attentions as layers: hashing, what is drawn and when, and what a token sees."""

from typing import Any

import pytest
import torch

from longspan.layers.decisions import Decisions
from longspan.layers.local_self_attention import LocalSelfAttention
from longspan.layers.lsh_self_attention import LSHSelfAttention, automatic_buckets


def make(layer_class: Any = LSHSelfAttention, **options) -> Any:
    torch.manual_seed(0)
    options = {"chunk_length": 8, **options}
    layer = layer_class(12, 2, 5, **options).double()
    for parameter in layer.parameters():
        parameter.data.normal_()
    return layer.eval()


@pytest.fixture
def hidden():
    return torch.randn(3, 37, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


TABLE = {
    (128, 64): 4,
    (4096, 64): 128,
    (8192, 64): [16, 16],
    (16384, 64): [16, 32],
    (65536, 64): [32, 64],
    (65536, 256): 512,
    (524288, 64): [128, 128],
    (2**20, 64): [128, 256],
    (10, 64): 2,
    (0, 64): 2,
}


@pytest.mark.parametrize(("length", "chunk"), TABLE, ids=str)
def test_automatic_buckets(length, chunk):
    """transformers' numbers, and as few as there can be for texts below a chunk."""
    assert automatic_buckets(length, chunk, length) == TABLE[length, chunk]


def test_rotations():
    like = torch.zeros(1)
    given = make(num_hashes=3, hash_seed=11)
    expected = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(11))
    for mode in (True, False):
        assert torch.equal(given.train(mode).rotations(like, 8), expected)
    fewer = torch.randn(2, 5, 1, 4, generator=torch.Generator().manual_seed(11))
    assert torch.equal(given.rotations(like, [2, 6], 1), fewer)
    drawn, other = make(), make(layer_index=1)
    assert torch.equal(drawn.rotations(like, 8), drawn.rotations(like, 8))
    assert not torch.equal(drawn.rotations(like, 8), other.rotations(like, 8))
    drawn.train()
    assert not torch.equal(drawn.rotations(like, 8), drawn.rotations(like, 8))
    torch.manual_seed(5)
    first = drawn.rotations(like, 8)
    torch.manual_seed(5)
    assert torch.equal(drawn.rotations(like, 8), first)


def test_every_row_hashes_by_its_own_tokens(hidden):
    layer = make(num_hashes=2)
    mask = torch.ones(3, 37, dtype=torch.bool)
    mask[1, 20:] = False
    mask[2, 3:] = False
    query_key, _ = layer.project(hidden)
    together = layer.hash(query_key, mask)
    for row, length, buckets in ((0, 37, 8), (1, 20, 4), (2, 3, 2)):
        assert layer.buckets_for(length) == buckets
        own = together[row, :, :, :length]
        assert own.max() < buckets
        if length > 8:
            assert torch.equal(own, layer.hash(query_key[row : row + 1, :, :length], None)[0])
        assert (together[row, :, :, length:] >= buckets).all()


def test_one_chunk_is_not_hashed(hidden):
    layer, strict = make(num_hashes=2), make(num_hashes=2, semantics="strict", causal=True)
    query_key, value = layer.project(hidden[:, :8])
    assert layer.hash(query_key, None).shape == (3, 2, 1, 8)
    assert not layer.hash(query_key, None).any()
    assert strict.hash(query_key, None).shape == (3, 2, 2, 8)
    keys = query_key / query_key.norm(dim=-1, keepdim=True)
    scores = (query_key @ keys.mT).masked_fill(torch.eye(8, dtype=torch.bool), -torch.inf)
    actual = layer.attend(query_key, value, layer.hash(query_key, None), None)
    torch.testing.assert_close(actual, scores.softmax(-1) @ value, atol=1e-5, rtol=0)


def test_strict_counts_buckets_by_the_longest_text():
    layer = make(semantics="strict", causal=True, max_positions=128)
    assert layer.buckets_for(3) == layer.buckets_for(128) == [4, 8]
    assert layer.window == 16


@pytest.mark.parametrize("semantics", ["original", "chunked", "strict"])
def test_decisions_fix_what_is_drawn(semantics, hidden):
    layer = make(num_hashes=2, dropout=0.3, semantics=semantics, causal=True).train()
    decisions = Decisions()
    first = layer(hidden, None, decisions)
    state = torch.get_rng_state()
    assert torch.equal(layer(hidden, None, decisions), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(layer(hidden, None, Decisions()), first)
    assert not torch.equal(layer.eval()(hidden, None, decisions), first)


def test_dropout_keeps_the_mean(hidden):
    layer = make(num_hashes=2, dropout=0.3).train()
    query_key, value = layer.project(hidden)
    buckets = layer.hash(query_key, None)
    expected = layer.attend(query_key, value, buckets, None)
    total = sum(layer.attend(query_key, value, buckets, None, Decisions()) for _ in range(400)) / 400
    assert (total - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert (layer.attend(query_key, value, buckets, None, Decisions()) - expected).abs().mean() > 0.1


@pytest.mark.parametrize("length", [1, 5, 8, 9, 23, 37])
@pytest.mark.parametrize(("before", "after", "causal"), [(1, 0, True), (2, 1, False), (0, 0, False), (1, 2, True)])
def test_local_attention_against_an_explicit_mask(before, after, causal, length, hidden):
    layer = make(LocalSelfAttention, chunks_before=before, chunks_after=after, causal=causal)
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[1, length // 2 :] = False
    query, key, value = layer.project(hidden[:, :length])
    at = torch.arange(length)
    chunk = at // 8
    visible = (chunk[None] >= chunk[:, None] - before) & (chunk[None] <= chunk[:, None] + after)
    if length <= 8:
        visible = torch.ones_like(visible)
    if causal:
        visible &= at[None] <= at[:, None]
    visible = visible & mask[:, None, None]
    scores = (query @ key.mT / 5**0.5).masked_fill(~visible, -torch.inf)
    expected = scores.softmax(-1).nan_to_num() @ value
    actual = layer(hidden[:, :length], mask, Decisions())
    torch.testing.assert_close(actual, layer.join(expected), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        layer.weights(hidden[:, :length], mask, Decisions()), scores.softmax(-1).nan_to_num(), atol=1e-12, rtol=0
    )
