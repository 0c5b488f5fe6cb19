"""The second half of a post-norm sublayer: LayerNorm(residual + dropout(W activation(x) + b)) (Vaswani et al. 2017).

N rows (batch x tokens), F width before and E width after the projection.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


class _ActivationLinear(torch.autograd.Function):
    """``linear(activation(x))`` that keeps x alone: the activation is computed again in the backward pass.

    Of the feed-forward layer's two wide tensors, before and after the activation, only one is held. An elementwise
    function costs little beside the matrix products on both sides of it.
    """

    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
        return F.linear(activation(hidden), weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        hidden, weight, bias, activation = inputs
        ctx.save_for_backward(hidden, weight)
        ctx.activation, ctx.has_bias = activation, bias is not None

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        hidden, weight = ctx.saved_tensors
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            activated = ctx.activation(hidden)
        rows = grad_out.flatten(0, -2)  # [N, E]
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = rows.mT @ activated.detach().flatten(0, -2).to(rows.dtype)
        grad_bias = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            # Under autocast grad_out is narrower than the weight.
            (grad_hidden,) = torch.autograd.grad(activated, hidden, grad_out @ weight.to(grad_out.dtype))
        return grad_hidden, grad_weight, grad_bias, None


class PostNorm(nn.Module):
    """LayerNorm(residual + dropout(dense(activation(x))))."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        layer_norm_eps: float,
        dropout: float,
        activation: Activation | None = None,
    ):
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.LayerNorm = nn.LayerNorm(out_features, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """``hidden_states [..., F]``, ``residual [..., E]`` -> ``[..., E]``."""
        return self.LayerNorm(self.dropout(self._project(hidden_states)) + residual)

    def _project(self, hidden_states: Tensor) -> Tensor:
        if self.activation is None:
            return self.dense(hidden_states)
        # A layer that stands in for nn.Linear (adapters, quantisation) must be called; a compiler chooses by itself
        # what to compute again.
        plain = type(self.dense) is nn.Linear and not torch.compiler.is_compiling()
        if plain and torch.is_grad_enabled():
            return _ActivationLinear.apply(hidden_states, self.dense.weight, self.dense.bias, self.activation)
        return self.dense(self.activation(hidden_states))
