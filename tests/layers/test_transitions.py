"""Transitions: tokens alone, and convolutions that see neither padding nor, where causal, what comes later."""

import pytest
import torch
from torch.nn import functional as F

from longspan.layers.step_tokens import StepTokens
from longspan.layers.transitions import ConvolutionTransition, FeedForward, SeparableConvolution


def begin(mask=None, length=9):
    return StepTokens(mask, torch.arange(length)[None]).begin(0)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("causal", [True, False])
def test_separable_convolution_by_its_sum(causal, kernel):
    layer = SeparableConvolution(4, 6, kernel, causal=causal).double()
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    out = layer(x, begin(), "conv")
    before = kernel - 1 if causal else (kernel - 1) // 2
    filters = layer.depthwise.weight[:, 0]  # [C, k]
    for place in range(9):
        total = torch.zeros(2, 4, dtype=torch.float64)
        for tap in range(kernel):
            other = place + tap - before
            if 0 <= other < 9:
                total += filters[:, tap] * x[:, other]
        torch.testing.assert_close(out[:, place], layer.pointwise(total))


@pytest.mark.parametrize("causal", [True, False])
def test_convolutions_do_not_see_padding(causal):
    layer = ConvolutionTransition(4, 6, causal=causal).eval()
    x = torch.randn(3, 9, 4)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, 6:], mask[1, :4] = False, False
    out = layer(x, begin(mask), "ffn")
    torch.testing.assert_close(out[0, :6], layer(x[:1, :6], begin(length=6), "ffn")[0])
    torch.testing.assert_close(out[1, 4:], layer(x[1:2, 4:], begin(length=5), "ffn")[0])
    other = x.masked_fill(~mask[..., None], 7.0)
    torch.testing.assert_close(layer(other, begin(mask), "ffn")[mask], out[mask])


def test_a_causal_convolution_sees_nothing_later():
    layer = ConvolutionTransition(4, 6, causal=True).eval()
    x = torch.randn(1, 9, 4)
    later = x.clone()
    later[:, 5:] += 1
    assert torch.equal(layer(x, begin(), "ffn")[:, :5], layer(later, begin(), "ffn")[:, :5])


@pytest.mark.parametrize("rows", [0, 2, 100])
def test_feed_forward(rows):
    layer = FeedForward(4, 6, activation=F.gelu, chunk_rows=rows).eval()
    x = torch.randn(2, 9, 4)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 7:] = False
    out = layer(x, begin(mask), "ffn")
    torch.testing.assert_close(out[mask], layer.fc2(F.gelu(layer.fc1(x)))[mask])
    assert (out[~mask] == 0).all()


def test_dropout_inside():
    layer = FeedForward(4, 64, dropout=0.5)
    x = torch.randn(1, 9, 4)
    assert not torch.equal(layer(x, begin(), "ffn"), layer(x, begin(), "ffn"))
