import pytest
import torch
from torch.testing import assert_close

from longspan.cache import RingLayer, RowsLayer
from longspan.layers.decoding import local_step, lsh_step
from longspan.ops import block_attention, bucket_attention, lsh_attention, lsh_buckets
from longspan.ops.lsh_decode import lsh_decode

B, H, D = 2, 2, 6
SPLITS = [[17] + [1] * 13, [1] * 30, [3, 4, 23], [8, 8, 14], [16, 1, 13]]


def tensors(count, length=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, H, length, D, generator=generator) for _ in range(count)]


def pieces(split):
    begin = 0
    for size in split:
        yield slice(begin, begin + size)
        begin += size


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_local_steps_equal_the_full_pass(split, before):
    query, key, value = tensors(3)
    whole = block_attention(query, key, value, block_size=4, before=before, causal=True)
    first, *rest = pieces(split)
    state = RingLayer(4 * (1 + before))
    state.append(key[:, :, first], value[:, :, first])
    steps = [
        local_step(state, *(x[:, :, piece] for x in (query, key, value)), chunk_length=4, chunks_before=before)
        for piece in rest
    ]
    assert_close(torch.cat(steps, 2), whole[:, :, split[0] :])


def test_local_padding_is_as_if_absent():
    """Rows that begin late, pause, or end early continue as they do alone."""
    query, key, value = tensors(3)
    mask = torch.ones(B, 30, dtype=torch.bool)
    mask[0, :7], mask[1, [3, 18, 19, 25]] = False, False
    state = RingLayer(8)
    state.append(key[:, :, :13], value[:, :, :13], mask[:, :13])
    steps = [
        local_step(state, *(x[:, :, p] for x in (query, key, value)), mask[:, p], chunk_length=4, chunks_before=1)
        for p in (slice(13, 14), slice(14, 23), slice(23, 30))
    ]
    out = torch.cat(steps, 2)
    for row in range(B):
        alone = [x[row : row + 1, :, mask[row]] for x in (query, key, value)]
        whole = block_attention(*alone, block_size=4, before=1, causal=True)
        later = mask[row, 13:]
        assert_close(out[row : row + 1, :, later], whole[:, :, -int(later.sum()) :])
        assert not out[row, :, ~later].any()


def hashing_with(num_buckets=4, rounds=2, calls=None):
    rotations = torch.randn(H, D, rounds, num_buckets // 2, generator=torch.Generator().manual_seed(9))

    def hashing(length):
        if calls is not None:
            calls.append(length)
        return rotations, num_buckets

    return hashing


def lsh_run(x, v, split, semantics, mask=None, hashing=None, prefill=True):
    state = RowsLayer()
    hashing = hashing or hashing_with()
    out = []
    for number, piece in enumerate(pieces(split)):
        some = None if mask is None else mask[:, piece]
        if number == 0 and prefill:
            state.append(x[:, :, piece], v[:, :, piece], some)
            continue
        out.append(lsh_step(state, x[:, :, piece], v[:, :, piece], some, hashing, chunk_length=4, semantics=semantics))
    return torch.cat(out, 2)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_strict_steps_equal_the_full_pass(split):
    x, v = tensors(2)
    buckets = lsh_buckets(x, *hashing_with()(0))
    whole = bucket_attention(x, v, buckets, window=8)
    assert_close(lsh_run(x, v, split, "strict"), whole[:, :, split[0] :])


@pytest.mark.parametrize("semantics", ["original", "chunked", "strict"])
def test_many_tokens_at_once_equal_one_by_one(semantics):
    x, v = tensors(2)
    one_by_one = lsh_run(x, v, [11] + [1] * 19, semantics)
    assert torch.equal(lsh_run(x, v, [11, 5, 14], semantics), one_by_one)


@pytest.mark.parametrize("semantics", ["original", "chunked"])
def test_long_prompts_continue_with_lsh_decode(semantics):
    x, v = tensors(2)
    buckets = lsh_buckets(x, *hashing_with()(0))
    for split in ([11] + [1] * 19, [5] + [1] * 25):
        out = lsh_run(x, v, split, semantics)
        for step, now in enumerate(range(split[0], 30)):
            expected = lsh_decode(
                x[:, :, : now + 1],
                v[:, :, : now + 1],
                buckets[..., : now + 1],
                chunk_size=4,
                wrap=semantics == "original",
            )
            assert_close(out[:, :, step : step + 1], expected)


@pytest.mark.parametrize("semantics", ["original", "chunked"])
def test_short_rows_see_everything(semantics):
    x, v = tensors(2)
    calls = []
    everyone = torch.zeros(B, H, 1, 4, dtype=torch.int64)
    plain = lsh_attention(x[:, :, :4], v[:, :, :4], everyone, chunk_size=4, chunks_before=0, causal=True)
    out = lsh_run(x, v, [1, 1, 1, 1], semantics, hashing=hashing_with(calls=calls))
    assert_close(out, plain[:, :, 1:4])
    assert calls == ([4] if semantics == "original" else [])
    lsh_run(x, v, [3, 1, 1, 1, 1], semantics, hashing=hashing_with(calls=calls))
    assert set(calls) == {4}, "buckets are chosen once, when a row outgrows a chunk"


def test_a_prompt_of_one_chunk():
    """The released code hashes after its next token, which sees all; ours with it."""
    x, v = tensors(2, length=5)
    everyone = torch.zeros(B, H, 1, 5, dtype=torch.int64)
    plain = lsh_decode(x, v, everyone, chunk_size=5)
    assert_close(lsh_run(x, v, [4, 1], "original"), plain)
    hashed = lsh_decode(x, v, lsh_buckets(x, *hashing_with()(0)), chunk_size=4)
    assert_close(lsh_run(x, v, [4, 1], "chunked"), hashed)


@pytest.mark.parametrize("semantics", ["original", "chunked", "strict"])
def test_rows_are_independent_and_padding_absent(semantics):
    """One row hashes already, the other is shorter than a chunk; one pauses in the middle."""
    x, v = tensors(2)
    mask = torch.ones(B, 30, dtype=torch.bool)
    mask[0, :10], mask[1, [4, 14, 20]] = False, False
    out = lsh_run(x, v, [12, 1, 1, 6, 10], semantics, mask)
    for row in range(B):
        mine = mask[row]
        first = int(mine[:12].sum())
        alone = [tensor[row : row + 1, :, mine].expand(B, -1, -1, -1) for tensor in (x, v)]
        expected = lsh_run(*alone, [first, int(mine.sum()) - first], semantics)
        assert_close(out[row, :, mine[12:]], expected[0])


def test_original_buckets_follow_the_padded_prompt():
    """The original counts buckets from the length that the model padded the prompt to."""
    x, v = tensors(2, length=13)
    for semantics, expected in (("original", 12), ("chunked", 10)):
        state, calls = RowsLayer(), []
        state.append(x[:, :, :12], v[:, :, :12], (torch.arange(12) < 10).expand(B, 12), length=10)
        lsh_step(
            state, x[:, :, 12:], v[:, :, 12:], None, hashing_with(calls=calls), chunk_length=4, semantics=semantics
        )
        assert calls == [expected]
