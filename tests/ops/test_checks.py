"""Every public operator names the tensor that lies on another device: a kernel would read what is not there."""

import pytest
import torch

from longspan import ops

X = torch.zeros(1, 2, 5, 4)
LSE = torch.zeros(1, 2, 5)
MASK = torch.ones(1, 5, dtype=torch.bool)
BUCKETS = torch.zeros(1, 2, 3, 5, dtype=torch.int64)
ROWS = torch.zeros(1, 5, 4)
POSITION = torch.arange(5)
SPAN = dict(max_span=3, ramp=2)
CALLS = {
    "banded_attention": (lambda q, k, v, m: ops.banded_attention(q, k, v, window=(1, 1), key_mask=m), (X, X, X, MASK)),
    "dense_attention": (
        lambda q, k, v, m, a, b: ops.dense_attention(q, k, v, key_mask=m, query_position=a, key_position=b),
        (X, X, X, MASK, POSITION, POSITION),
    ),
    "block_attention": (
        lambda q, k, v, m: ops.block_attention(q, k, v, block_size=2, key_mask=m),
        (X, X, X, MASK),
    ),
    "lsh_attention": (
        lambda q, v, b, m: ops.lsh_attention(q, v, b, chunk_size=2, key_mask=m),
        (X, X, BUCKETS, MASK),
    ),
    "bucket_attention": (
        lambda q, v, b, m: ops.bucket_attention(q, v, b, window=2, key_mask=m),
        (X, X, BUCKETS, MASK),
    ),
    "lsh_decode": (lambda q, v, b: ops.lsh_decode(q, v, b, chunk_size=2), (X, X, BUCKETS)),
    "bucket_decode": (lambda q, v, b: ops.bucket_decode(q, v, b, window=2), (X, X, BUCKETS)),
    "lsh_buckets": (lambda q, r, m: ops.lsh_buckets(q, r, 4, key_mask=m), (X, torch.zeros(2, 4, 3, 2), MASK)),
    "merge": (lambda a, x, b, y: ops.merge([a, b], [x, y]), (X, LSE, X, LSE)),
    "multidim_attention": (
        lambda a, b, c, d, m: ops.multidim_attention(a, b, c, d, direction="full", key_mask=m),
        (ROWS, ROWS, ROWS, torch.zeros(4), MASK),
    ),
    "span_attention": (
        lambda q, k, v, p, s, m: ops.span_attention(q, k, v, p, s, key_mask=m, **SPAN),
        (X, X, X, torch.zeros(1, 3, 4), torch.zeros(2), MASK),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_device(name):
    call, tensors = CALLS[name]
    call(*tensors)
    for i, tensor in enumerate(tensors):
        with pytest.raises(ValueError, match=rf"{name}: all tensors on one device wanted, got .* on meta"):
            call(*tensors[:i], tensor.to("meta"), *tensors[i + 1 :])
