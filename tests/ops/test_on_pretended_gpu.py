"""Every operator on a pretended GPU: nothing is left on the CPU, nothing waits, sums stay wide under autocast."""

from typing import Any

import pytest
import torch
from torch import Tensor

from longspan import ops
from tests.pretend_cuda import CUDA, pretend_cuda

ROWS = torch.randn(2, 3, 9, 4, generator=torch.Generator().manual_seed(0))
OPERATORS: dict[str, Any] = {
    "banded": lambda x, mask, **dropout: ops.banded_attention(
        x, x, x, window=[(2, 1), (0, 3), (4, None)], dilation=[1, 2, 1], key_mask=mask, **dropout
    ),
    "banded-scores": lambda x, mask, **_: ops.banded_scores(x, x, window=(2, 2), key_mask=mask),
    "block": lambda x, mask, **_: ops.block_attention(x, x, x, block_size=4, wrap=True, key_mask=mask),
    "dense": lambda x, mask, **dropout: ops.dense_attention(x, x, x, key_mask=mask, **dropout),
    "dense-shared": lambda x, mask, **_: ops.dense_attention(x, x[:, :1], x[:, :1], key_mask=mask),
    "span": lambda x, mask, **dropout: ops.span_attention(
        x, x, x, x[0, :1, :5], x[0, :, 0, 0].abs() * 3, max_span=5, ramp=2, key_mask=mask, **dropout
    ),
    "lsh": lambda x, mask, **dropout: ops.lsh_attention(
        x, x, _buckets(x, mask), chunk_size=4, wrap=True, deduplicate=True, key_mask=mask, **dropout
    ),
    "bucket": lambda x, mask, **_: ops.bucket_attention(x, x, _buckets(x, mask), window=3, key_mask=mask),
    "lsh-decode": lambda x, mask, **_: ops.lsh_decode(x, x, _buckets(x, mask), chunk_size=4, key_mask=mask),
    "bucket-decode": lambda x, mask, **_: ops.bucket_decode(x, x, _buckets(x, mask), window=3, key_mask=mask),
    "multidim": lambda x, mask, **_: ops.multidim_attention(
        x[:, 0], x[:, 1], x[:, 2], x[0, 0, 0], direction="forward", key_mask=mask
    ),
    "merge": lambda x, mask, **_: ops.merge([x, x * 2], [x.sum(-1), x.mean(-1)])[0],
    "dropout": lambda x, mask, **_: ops.seeded_dropout(x, 7, 0.5),
}


def _buckets(x: Tensor, mask: Tensor) -> Tensor:
    rotations = (torch.arange(3 * 4 * 2 * 2, device=x.device).view(3, 4, 2, 2) * 0.7).sin()
    return ops.lsh_buckets(x, rotations, 4, key_mask=mask)


@pytest.mark.parametrize("references", [False, True], ids=["kernels", "references"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name, references):
    """Seeds given as numbers, masks, windows that differ: nothing of it is left on the CPU, nothing makes it wait."""
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    dropout = dict(dropout_p=0.3, dropout_seed=5)
    x = ROWS.clone().requires_grad_()
    expected = OPERATORS[name](x, mask, **dropout)
    expected.masked_fill(expected == -torch.inf, 0.0).square().sum().backward()
    with pretend_cuda(references=references) as gpu:
        y = gpu.put(ROWS).requires_grad_()
        out = OPERATORS[name](y, gpu.put(mask), **dropout)
        out.masked_fill(out == -torch.inf, 0.0).square().sum().backward()
        assert out.device == y.grad.device == CUDA
        torch.testing.assert_close(out.detach().cpu(), expected.detach())
        torch.testing.assert_close(y.grad.cpu(), x.grad, rtol=1e-4, atol=1e-5)
    if name != "span":  # its reference looks how far heads reach
        assert not gpu.waits


@pytest.mark.parametrize("name", ["banded", "dense", "lsh", "lsh-decode", "bucket-decode", "span"])
@pytest.mark.parametrize("scale", [1, 300])
def test_references_keep_their_sums_wide_under_autocast(name, scale):
    """What is float16 already gives the same, even where scores are beyond the range of float16."""
    with pretend_cuda(references=True) as gpu:
        x, mask = gpu.put((ROWS * scale).half()), gpu.put(torch.ones(2, 9, dtype=torch.bool))
        expected = OPERATORS[name](x, mask)
        with torch.autocast("cuda", dtype=torch.float16):
            out = OPERATORS[name](x, mask)
        assert torch.equal(out, expected) and out.isfinite().all()
