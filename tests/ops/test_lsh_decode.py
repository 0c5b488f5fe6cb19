import math

import pytest
import torch

from longspan.ops.lsh_decode import bucket_decode, lsh_decode


def brute_force(query_key, value, buckets, size, before, after, wrap, key_mask):
    """Slot by slot, in float64: sort, find the new token, collect the window, one softmax over all rounds."""
    B, H, T, D = query_key.shape
    x, v = query_key.double(), value.double()
    out = torch.empty(B, H, 1, D, dtype=torch.float64)
    for b in range(B):
        real = [t for t in range(T) if t == T - 1 or key_mask is None or key_mask[b, t]]
        for h in range(H):
            terms = []
            for r in range(buckets.shape[2]):
                slots = sorted(real, key=lambda t: (int(buckets[b, h, r, t]), t))
                begin = (slots.index(T - 1) // size - before) * size
                for slot in range(begin, begin + size * (1 + before + after)):
                    if wrap:
                        terms.append(slots[slot % len(slots)])
                    elif 0 <= slot < len(slots):
                        terms.append(slots[slot])
            out[b, h, 0] = softmax_over(x[b, h], v[b, h], [t for t in terms if t != T - 1])
    return out


def softmax_over(x, v, terms):
    if not terms:
        return v[-1]
    scores = [float(x[-1] @ x[t]) / math.sqrt(float(x[t] @ x[t]) + x.shape[1] * 1e-6) for t in terms]
    weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
    return sum(w * v[t] for w, t in zip(weights, terms, strict=True))


def make(B, H, R, T, D, num_buckets, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x, v = (torch.randn(B, H, T, D, generator=generator, dtype=dtype) for _ in range(2))
    return x, v, torch.randint(num_buckets, (B, H, R, T), generator=generator)


WINDOWS = [(4, 1, 0), (4, 0, 0), (1, 1, 0), (3, 2, 1), (5, 0, 2), (1, 0, 0), (16, 1, 1)]


@pytest.mark.parametrize("wrap", [False, True], ids=["clipped", "wrapped"])
@pytest.mark.parametrize(("size", "before", "after"), WINDOWS)
@pytest.mark.parametrize("T", [1, 2, 5, 13, 40])
def test_equals_brute_force(T, size, before, after, wrap):
    """Windows larger than the round included: with wrap their keys count twice and more."""
    x, v, buckets = make(2, 2, 3, T, 6, num_buckets=5, seed=T)
    out = lsh_decode(x, v, buckets, chunk_size=size, chunks_before=before, chunks_after=after, wrap=wrap)
    expected = brute_force(x, v, buckets, size, before, after, wrap, None)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("wrap", [False, True], ids=["clipped", "wrapped"])
@pytest.mark.parametrize("kind", ["equal", "own lowest", "own highest", "all different", "round offsets", "large"])
def test_special_buckets(kind, wrap):
    x, v, buckets = make(1, 2, 2, 21, 4, num_buckets=7)
    if kind == "equal":
        buckets.zero_()
    elif kind == "own lowest":
        buckets[..., :-1] += 1
        buckets[..., -1] = 0
    elif kind == "own highest":
        buckets[..., -1] = 9
    elif kind == "all different":
        buckets = torch.stack([torch.randperm(21) for _ in range(4)]).view(1, 2, 2, 21)
    elif kind == "round offsets":
        buckets += torch.tensor([0, 8])[:, None]
    else:
        buckets += 1 << 40
    out = lsh_decode(x, v, buckets, chunk_size=4, wrap=wrap)
    torch.testing.assert_close(out.double(), brute_force(x, v, buckets, 4, 1, 0, wrap, None), atol=2e-6, rtol=0)


@pytest.mark.parametrize("wrap", [False, True], ids=["clipped", "wrapped"])
def test_masked_rows_are_as_if_absent(wrap):
    """Left padding, holes, and rows of a batch with lengths of their own: each row alone, without them, is the same."""
    x, v, buckets = make(4, 2, 2, 24, 5, num_buckets=4)
    mask = torch.ones(4, 24, dtype=torch.bool)
    mask[1, :9] = False
    mask[2, [0, 3, 4, 11, 22]] = False
    mask[3, :-1] = False
    out = lsh_decode(x, v, buckets, chunk_size=4, wrap=wrap, key_mask=mask)
    for b in range(4):
        alone = [tensor[b : b + 1, ..., mask[b], :] for tensor in (x, v)]
        expected = lsh_decode(*alone, buckets[b : b + 1, ..., mask[b]], chunk_size=4, wrap=wrap)
        torch.testing.assert_close(out[b : b + 1], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.double(), brute_force(x, v, buckets, 4, 1, 0, wrap, mask), atol=2e-6, rtol=0)


def test_row_without_keys_takes_its_value():
    x, v, buckets = make(1, 2, 2, 9, 4, num_buckets=3)
    mask = torch.zeros(1, 9, dtype=torch.bool)
    for decode in (
        lsh_decode(x, v, buckets, chunk_size=4, wrap=True, key_mask=mask),
        bucket_decode(x, v, buckets, window=3, key_mask=mask),
    ):
        assert torch.equal(decode, v[:, :, -1:])
    assert torch.equal(lsh_decode(x, v, buckets, chunk_size=1, chunks_before=0), v[:, :, -1:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    x, v, buckets = make(1, 2, 2, 30, 8, num_buckets=4, dtype=torch.float64)
    x, v = x.to(dtype), v.to(dtype)
    out = lsh_decode(x, v, buckets.to(torch.int32), chunk_size=4)
    assert out.dtype == dtype
    expected = brute_force(x, v, buckets, 4, 1, 0, False, None)
    torch.testing.assert_close(out.double(), expected, atol={torch.float64: 1e-12}.get(dtype, 1e-2), rtol=0)


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_bucket_decode_equals_brute_force(window, masked):
    x, v, buckets = make(2, 2, 3, 33, 6, num_buckets=5)
    mask = torch.rand(2, 33, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    out = bucket_decode(x, v, buckets, window=window, key_mask=mask)
    for b in range(2):
        for h in range(2):
            terms = []
            for r in range(3):
                mates = [t for t in range(32) if buckets[b, h, r, t] == buckets[b, h, r, -1]]
                terms += [t for t in mates if mask is None or mask[b, t]][-window:]
            expected = softmax_over(x[b, h].double(), v[b, h].double(), terms)
            torch.testing.assert_close(out[b, h, 0].double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("T", [2, 7, 40])
def test_bucket_decode_is_the_last_row_of_bucket_attention(T):
    ops = pytest.importorskip("longspan.ops")
    x, v, buckets = make(2, 2, 2, T, 8, num_buckets=4)
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[1, : T // 3] = False
    for key_mask in (None, mask):
        whole = ops.bucket_attention(x, v, buckets, window=6, key_mask=key_mask)
        last = bucket_decode(x, v, buckets, window=6, key_mask=key_mask)
        torch.testing.assert_close(last, whole[:, :, -1:], atol=2e-6, rtol=0)


def test_errors_name_the_argument():
    x, v, buckets = make(1, 2, 2, 9, 4, num_buckets=3)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        lsh_decode(x, v, buckets, chunk_size=0)
    with pytest.raises(ValueError, match="chunks_after must be at least 0"):
        lsh_decode(x, v, buckets, chunk_size=4, chunks_after=-1)
    with pytest.raises(ValueError, match=r"buckets must be \[1, 2, rounds, 9\]"):
        lsh_decode(x, v, buckets[..., 1:], chunk_size=4)
    with pytest.raises(ValueError, match="buckets must be integers"):
        bucket_decode(x, v, buckets.float(), window=4)
    with pytest.raises(ValueError, match="window must be at least 1"):
        bucket_decode(x, v, buckets, window=0)
    with pytest.raises(ValueError, match="key_mask must be bool"):
        lsh_decode(x, v, buckets, chunk_size=4, key_mask=torch.ones(1, 9))
    with pytest.raises(ValueError, match="no token"):
        lsh_decode(x[:, :, :0], v[:, :, :0], buckets[..., :0], chunk_size=4)
