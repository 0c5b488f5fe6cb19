"""The post-norm sublayer: what it computes, and what it holds for the backward pass."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from longspan.layers import PostNorm


def make(activation=F.gelu, dtype=torch.float64):
    torch.manual_seed(0)
    return PostNorm(12, 6, layer_norm_eps=1e-5, dropout=0.0, activation=activation).to(dtype)


def formula(layer, x, residual):
    y = x if layer.activation is None else layer.activation(x)
    return F.layer_norm(
        F.linear(y, layer.dense.weight, layer.dense.bias) + residual, (6,), layer.LayerNorm.weight, layer.LayerNorm.bias
    )


@pytest.mark.parametrize("activation", [None, F.gelu, F.relu, torch.tanh])
def test_value_and_gradients(activation):
    layer = make(activation)
    x, residual = (torch.randn(2, 5, size, dtype=torch.float64, requires_grad=True) for size in (12, 6))
    direction = torch.randn(2, 5, 6, dtype=torch.float64)
    inputs = [x, residual, *layer.parameters()]
    actual, expected = layer(x, residual), formula(layer, x, residual)
    torch.testing.assert_close(actual, expected)
    grads = [torch.autograd.grad((out * direction).sum(), inputs) for out in (actual, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frozen_parts_get_no_gradient():
    layer = make()
    layer.dense.requires_grad_(False)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    layer(x, torch.zeros(3, 6, dtype=torch.float64)).pow(3).sum().backward()
    assert layer.dense.weight.grad is None and x.grad is not None


def test_the_activation_is_not_held():
    layer, x = make(dtype=torch.float32), torch.randn(100, 12, requires_grad=True)
    held = {}

    def pack(tensor):
        held[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x, torch.zeros(100, 6))
    assert sum(size == 1200 for size in held.values()) == 1  # x itself, not activation(x)


def test_autocast():
    layer = make(dtype=torch.float32)
    x, residual = torch.randn(4, 12, requires_grad=True), torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.bfloat16(), residual)
    out.float().pow(3).sum().backward()
    torch.testing.assert_close(out.float(), formula(layer, x, residual), atol=0.05, rtol=0.05)
    assert layer.dense.weight.grad is not None and x.grad is not None
    assert layer.dense.weight.grad.dtype == torch.float32


def test_a_layer_in_place_of_the_projection_is_called():
    layer = make()
    calls, stand_in = [], nn.Sequential(layer.dense)
    setattr(layer, "dense", stand_in)  # noqa: B010
    stand_in.register_forward_hook(lambda *_: calls.append(1))
    layer(torch.randn(3, 12, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.float64))
    assert calls == [1]
