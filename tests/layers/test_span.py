"""Spans as modules, and the arithmetic of windows and memories; tables of the original's are golden data."""

import math

import pytest
import torch

from longspan.layers.span import (
    DynamicSpan,
    FullSpan,
    StaticSpan,
    head_windows,
    memory_rows,
    reach,
    trimmed_rows,
    window_rows,
)
from longspan.ops import span_reach


@pytest.mark.parametrize("span", [-9.0, -3.5, 0.0, 0.3, 7.0, 59.999, 63.0, 64.0])
@pytest.mark.parametrize("ramp", [1, 5, 200])
def test_windows_hold_what_the_operator_reads(span, ramp):
    reads = span_reach(torch.tensor([span]), max_span=64, ramp=ramp).item()
    window = window_rows(span, ramp, 64)
    assert reads <= window <= min(64, max(reads + 1, 1))
    rows = 64 - trimmed_rows(span, ramp, 64, 8)
    assert min(64, math.ceil(span + ramp)) <= rows <= memory_rows(64 - rows, 64, 8) <= 64


def test_reported_reach():
    assert [reach(z, 32, 256) for z in (0.0, 10.5, 100.0, 240.0, -40.0)] == [32, 43, 132, 256, 0]


def test_static_spans_in_tokens():
    span = StaticSpan(3, 50, init=0.5)
    assert span(torch.zeros(1)).tolist() == [25.0] * 3 and span.tokens() == [25.0] * 3
    shared = StaticSpan(3, 50, init=0.2, shared=True)
    assert shared.span_fraction.shape == (1,) and shared(torch.zeros(1)).shape == (3,)
    assert head_windows(shared.tokens(), 3, 4, 50) == [16] * 3
    (gradient,) = torch.autograd.grad(shared(torch.zeros(1)).sum(), shared.span_fraction)
    assert gradient.item() == 150.0
    assert StaticSpan(2, 50).to(torch.bfloat16)(torch.zeros(1)).dtype == torch.float32
    assert StaticSpan(2, 50).double()(torch.zeros(1)).dtype == torch.float64


def test_clamping_in_place():
    span = StaticSpan(3, 50)
    span.span_fraction.data = torch.tensor([-0.2, 0.4, 1.7])
    assert span(torch.zeros(1)).tolist() == pytest.approx([-10.0, 20.0, 85.0])  # as they are stored
    span.clamp_()
    assert span.span_fraction.tolist() == pytest.approx([0.0, 0.4, 1.0])
    assert span.span_fraction.requires_grad


def test_dynamic_spans_of_each_token():
    torch.manual_seed(0)
    span = DynamicSpan(6, 2, 40, ramp=8).double()
    span.weight.data.normal_()
    hidden = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    found = span(hidden)
    assert found.shape == (3, 2, 5)
    expected = 40 * torch.sigmoid(hidden[1, 4] @ span.weight[1] + span.bias[1])
    torch.testing.assert_close(found[1, 1, 4], expected)
    assert torch.autograd.gradcheck(span, (hidden,))


@pytest.mark.parametrize(("init", "expected"), [(0.0, 8.0), (0.1, 8.0), (0.5, 20.0), (1.0, 39.96)])
def test_new_dynamic_spans_are_one_ramp_or_more(init, expected):
    span = DynamicSpan(6, 2, 40, ramp=8, init=init)
    assert span(torch.randn(1, 3, 6)).flatten().tolist() == pytest.approx([expected] * 6, rel=1e-4)


def test_half_precision_counts_tokens_in_float32():
    span = DynamicSpan(16, 2, 8192, ramp=32).to(torch.bfloat16)
    assert span(torch.randn(1, 3, 16, dtype=torch.bfloat16)).dtype == torch.float32
    plain = DynamicSpan(16, 2, 8192, ramp=32)
    plain.weight.data.normal_()
    hidden = torch.randn(1, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = plain(hidden)
    torch.testing.assert_close(inside, plain(hidden))


def test_full_spans():
    span = FullSpan(3, 50)
    assert span(torch.zeros(1, dtype=torch.bfloat16)).tolist() == [50.0] * 3
    assert not list(span.parameters()) and span.tokens() == [50.0] * 3
