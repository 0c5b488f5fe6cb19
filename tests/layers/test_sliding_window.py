"""The self-attention layer against a dense mask in float64, and what training asks of it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from longspan.layers import SlidingWindowSelfAttention, collect_global_tokens


def dense_reference(layer, x, state):
    """Softmax over explicit [T, T] masks: 0 padding, 1 ordinary, 2 global (Beltagy et al. 2020, section 3.1)."""
    batch, length, size = x.shape
    heads = layer.num_heads

    def split(linear):
        return linear(x).view(batch, length, heads, -1).transpose(1, 2)

    def attend(query, key, value, visible):
        scores = (query @ key.mT * layer.head_size**-0.5).masked_fill(~visible, -torch.inf)
        return scores.softmax(-1).nan_to_num(0.0) @ value

    position = torch.arange(length)
    offset = position - position[:, None]
    left, right = layer.window
    dilation = layer.dilation if isinstance(layer.dilation, list) else [layer.dilation] * heads
    step = torch.tensor(dilation)[:, None, None]
    window = (offset >= -left * step) & (offset <= right * step) & (offset % step == 0)
    past = offset <= 0 if layer.causal else torch.ones_like(offset, dtype=torch.bool)
    is_global, tokens = state == 2, state > 0
    local = (window | (is_global[:, None, None] & past)) & tokens[:, None, None]
    ordinary = attend(split(layer.query), split(layer.key), split(layer.value), local)
    dense = past & tokens[:, None, None]
    distant = attend(split(layer.query_global), split(layer.key_global), split(layer.value_global), dense)
    out = ordinary.where((state == 1)[:, None, :, None], distant.where(is_global[:, None, :, None], 0.0))
    return out.transpose(1, 2).reshape(batch, length, size)


def make_layer(heads=2, head_size=3, dtype=torch.float64, **options: Any):
    options = {"window": (2, 2)} | options
    torch.manual_seed(0)
    layer = SlidingWindowSelfAttention(heads * head_size, heads, **options).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return layer


def run(layer, x, state):
    tokens = state > 0
    out, _, _ = layer(x, None if tokens.all() else tokens, collect_global_tokens(state == 2))
    return out


@st.composite
def problems(draw):
    heads = draw(st.integers(1, 3))
    causal = draw(st.booleans())
    left = draw(st.integers(0, 6))
    layer = make_layer(
        heads,
        draw(st.integers(1, 4)),
        window=(left, 0 if causal else draw(st.integers(0, 6))),
        dilation=draw(st.one_of(st.integers(1, 3), st.lists(st.integers(1, 3), min_size=heads, max_size=heads))),
        causal=causal,
    )
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 17))
    kinds = st.sampled_from([0, 1, 1, 1, 2])
    state = draw(st.lists(st.lists(kinds, min_size=length, max_size=length), min_size=batch, max_size=batch))
    return layer, torch.tensor(state)


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_equals_a_dense_mask(problem):
    layer, state = problem
    x = torch.randn(*state.shape, layer.num_heads * layer.head_size, dtype=torch.float64)
    torch.testing.assert_close(run(layer.eval(), x, state), dense_reference(layer, x, state), atol=1e-10, rtol=0)


@pytest.mark.parametrize("num_global", [1, 9], ids=["folded", "projected"])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_equal_those_of_a_dense_mask(num_global, causal):
    layer = make_layer(4, 2, window=(2, 0 if causal else 2), dilation=[1, 2, 1, 3], causal=causal)
    state = torch.ones(2, 15, dtype=torch.long)
    state[0, : num_global + 1] = 2
    state[1, 7] = 2
    state[1, 12:] = 0
    x = torch.randn(2, 15, 8, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 15, 8, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    actual = torch.autograd.grad((run(layer, x, state) * direction).sum(), inputs)
    expected = torch.autograd.grad((dense_reference(layer, x, state) * direction).sum(), inputs)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("any_global", [False, True])
def test_every_parameter_gets_a_gradient_in_training(any_global):
    layer = make_layer().train()
    state = torch.ones(1, 9, dtype=torch.long)
    state[0, 4] = 2 if any_global else 1
    run(layer, torch.randn(1, 9, 6, dtype=torch.float64), state).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        moved = not name.endswith("key.bias") and not name.endswith("key_global.bias")
        if any_global and moved:
            assert parameter.grad.abs().max() > 1e-12, name


def test_dropout_is_drawn_from_torch_and_unbiased():
    state = torch.ones(2, 12, dtype=torch.long)
    state[0, :2] = 2
    layer = make_layer(dropout=0.3).train()
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    torch.manual_seed(3)
    first = run(layer, x, state)
    second = run(layer, x, state)
    torch.manual_seed(3)
    assert torch.equal(run(layer, x, state), first)
    assert not torch.equal(second, first)
    mean = sum(run(layer, x, state) for _ in range(1000)) / 1000
    torch.testing.assert_close(mean, dense_reference(layer, x, state), atol=0.1, rtol=0)
    torch.testing.assert_close(run(layer.eval(), x, state), dense_reference(layer, x, state), atol=1e-10, rtol=0)


def test_folded_and_projected_global_rows_agree_under_dropout_off_and_adapters_are_called():
    class Adapter(nn.Module):
        """Stands in for a projection, as PEFT's layers do."""

        def __init__(self, base):
            super().__init__()
            self.base, self.calls = base, 0

        def forward(self, x):
            self.calls += 1
            return self.base(x) * 2

    layer = make_layer().eval()
    state = torch.ones(1, 9, dtype=torch.long)
    state[0, 3] = 2
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    plain = run(layer, x, state)
    adapter = Adapter(layer.value_global)
    setattr(layer, "value_global", adapter)  # noqa: B010
    adapted = run(layer, x, state)
    assert adapter.calls == 1
    torch.testing.assert_close(adapted[0, 3], 2 * plain[0, 3], atol=1e-12, rtol=0)
    torch.testing.assert_close(adapted[0, 4:], plain[0, 4:], atol=1e-12, rtol=0)


def test_results_need_no_copy_of_the_layout():
    out = run(make_layer(dtype=torch.float32), torch.randn(2, 11, 6), torch.ones(2, 11, dtype=torch.long))
    assert out.is_contiguous()
