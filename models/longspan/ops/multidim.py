"""Attention with one weight per feature: additive scores, squashed by a tanh (Shen et al. 2018, Bi-BloSAN, section 2).

    s_ij = c tanh((dependent_j + head_i + bias) / c)          a vector of D scores for query i and key j
    out_i = sum_j exp(s_ij) * value_j / sum_j exp(s_ij)       over the keys j that query i may see, feature by feature

B sequences (or blocks of them), L tokens, D features, c scale. Scores lie within +-c, so the softmax needs no maximum
and no rescaling: numerator and denominator are two sums. Nothing of size L x L x D is ever stored, in either pass; the
backward pass recomputes the scores and keeps, beside the inputs, ``out`` and the denominator.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longspan.ops.checks import FLOATING, check_devices, check_key_mask
from longspan.ops.library import LIBRARY, define_reference
from longspan.ops.tiled import autocast, statistics_dtype

LARGEST_SCALE = 40.0  # sums of exp(+-40) are safe in float32

# What a query sees: (earlier keys, later keys, itself).
DIRECTIONS = {
    "forward": (True, False, False),
    "backward": (False, True, False),
    "diagonal_free": (True, True, False),
    "full": (True, True, True),
}


def _rows(dependent: Tensor, head: Tensor, value: Tensor, bias: Tensor, key_mask: Tensor | None) -> list[Tensor]:
    """Keys, queries with the bias, and values in the dtype of the sums; padding, whatever it holds, becomes 0."""
    dtype = statistics_dtype(dependent.dtype)
    rows = [dependent.to(dtype), head.to(dtype) + bias.to(dtype), value.to(dtype)]
    return rows if key_mask is None else [x.masked_fill(~key_mask[..., None], 0.0) for x in rows]


def _each_key(
    keys: Tensor, queries: Tensor, key_mask: Tensor | None, earlier: bool, later: bool, own: bool, scale: float
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """For each key: its place, the places of queries around it, their tanh and their weights ``[B, L', D]``."""
    length = keys.shape[1]
    for j in range(length):
        key, rows = slice(j, j + 1), slice(0 if later else j, length if earlier else j + 1)
        tanh = (keys[:, key] + queries[:, rows]).div_(scale).tanh_()
        weight = (scale * tanh).exp_()
        if not own:
            weight[:, j - rows.start] = 0.0
        if key_mask is not None:
            weight.masked_fill_(~(key_mask[:, key] & key_mask[:, rows])[..., None], 0.0)
        yield key, rows, tanh, weight


def multidim_attention_reference(
    dependent, head, value, bias, key_mask, earlier, later, own, scale
) -> tuple[Tensor, Tensor]:
    """The definition: ``out [B, L, D]`` and the denominator ``[B, L, D]``, 0 for a query that sees nothing."""
    keys, queries, values = _rows(dependent, head, value, bias, key_mask)
    numerator, denominator = torch.zeros_like(values), torch.zeros_like(values)
    for key, rows, _, weight in _each_key(keys, queries, key_mask, earlier, later, own, scale):
        numerator[:, rows].addcmul_(weight, values[:, key])
        denominator[:, rows].add_(weight)
    out = torch.where(denominator == 0, 0.0, numerator / denominator)
    return out.to(value.dtype).contiguous(), denominator.contiguous()


def multidim_attention_backward_reference(
    grad_out, grad_denominator, dependent, head, value, bias, out, denominator, key_mask, earlier, later, own, scale
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of dependent, head, value and bias; ``grad_denominator`` may be None."""
    keys, queries, values = _rows(dependent, head, value, bias, key_mask)
    share = torch.where(denominator == 0, 0.0, grad_out.to(values.dtype) / denominator)
    delta = share * out.to(values.dtype)
    if grad_denominator is not None:
        delta = delta - torch.where(denominator == 0, 0.0, grad_denominator)
    d_keys, d_queries, d_values = (torch.zeros_like(values) for _ in range(3))
    for key, rows, tanh, weight in _each_key(keys, queries, key_mask, earlier, later, own, scale):
        d_values[:, key] = (weight * share[:, rows]).sum(1, keepdim=True)
        d_score = (share[:, rows] * values[:, key]).sub_(delta[:, rows]).mul_(weight)
        d_sum = d_score.mul_(1.0 - tanh * tanh)
        d_keys[:, key] = d_sum.sum(1, keepdim=True)
        d_queries[:, rows].add_(d_sum)
    grads = (grad.to(value.dtype).contiguous() for grad in (d_keys, d_queries, d_values))
    return *grads, d_queries.sum((0, 1)).to(bias.dtype)  # type: ignore[return-value]


_INPUTS = "Tensor dependent, Tensor head, Tensor value, Tensor bias"
_OPTIONS = "Tensor? key_mask, bool earlier, bool later, bool own, float scale"
LIBRARY.define(f"multidim_attention({_INPUTS}, {_OPTIONS}) -> (Tensor out, Tensor denominator)")
LIBRARY.define(
    f"multidim_attention_backward(Tensor grad_out, Tensor? grad_denominator, {_INPUTS}, Tensor out, Tensor denominator,"
    f" {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
define_reference("multidim_attention", multidim_attention_reference)
define_reference("multidim_attention_backward", multidim_attention_backward_reference)


@torch.library.register_fake("longspan::multidim_attention", lib=LIBRARY)
def _(dependent, head, value, *rest):
    return value.new_empty(value.shape), value.new_empty(value.shape, dtype=statistics_dtype(value.dtype))


@torch.library.register_fake("longspan::multidim_attention_backward", lib=LIBRARY)
def _(grad_out, grad_denominator, dependent, head, value, bias, *rest):
    return *(value.new_empty(value.shape) for _ in range(3)), torch.empty_like(bias)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.earlier, ctx.later, ctx.own, ctx.scale = inputs
    ctx.save_for_backward(*tensors[:4], *output, tensors[4])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, grad_denominator):
    unused = (None,) * 5
    if grad_out is None and grad_denominator is None:
        return None, None, None, None, *unused
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks it only once
    grad_out = torch.zeros_like(saved[4]) if grad_out is None else grad_out
    grads = torch.ops.longspan.multidim_attention_backward.default(
        grad_out, grad_denominator, *saved, ctx.earlier, ctx.later, ctx.own, ctx.scale
    )
    return *grads, *unused


def _second_derivative(ctx, *grads):
    raise NotImplementedError("longspan::multidim_attention: second derivatives are not implemented")


torch.library.register_autograd("longspan::multidim_attention", _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd("longspan::multidim_attention_backward", _second_derivative, lib=LIBRARY)


def _check(name: str, bias: Tensor | None, **rows: Tensor) -> None:
    (label, first), *others = rows.items()
    if first.dim() != 3:
        raise ValueError(f"{name}: {label} must be [batch, tokens, features], got {list(first.shape)}")
    if first.dtype not in FLOATING:
        raise ValueError(f"{name}: {label} must be floating point of 16 to 64 bits, got {first.dtype}")
    for other, tensor in others:
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise ValueError(
                f"{name}: {other} must be {first.dtype} {list(first.shape)}, as {label}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
    if bias is not None and (list(bias.shape) != [first.shape[2]] or bias.dtype not in FLOATING):
        raise ValueError(
            f"{name}: bias must be floating point [{first.shape[2]}] ([features]), got {bias.dtype} {list(bias.shape)}"
        )


def _check_options(name: str, direction: Any, scale: float) -> None:
    if not isinstance(direction, str) or direction not in DIRECTIONS:
        raise ValueError(f"{name}: direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    if not 0.0 < scale <= LARGEST_SCALE:
        raise ValueError(f"{name}: scale must lie in (0, {LARGEST_SCALE:g}], got {scale}")


def multidim_attention(
    dependent: Tensor,
    head: Tensor,
    value: Tensor,
    bias: Tensor,
    *,
    direction: str,
    key_mask: Tensor | None = None,
    scale: float = 5.0,
    return_lse: bool = False,
) -> Any:  # Tensor, or with return_lse a pair of them
    """Multi-dimensional token-to-token self-attention: a softmax over tokens for every feature of its own.

    Memory is linear in the length. Blocks are sequences: reshape ``[B, n, D]`` to ``[B * n / r, r, D]``. One block over
    all tokens is directional self-attention (Shen et al. 2018, DiSAN, equations 7 to 10).

    Args:
        dependent: ``[B, L, D]``, what keys put into the score: W1 x_j. Any L, any strides.
        head: ``[B, L, D]``, what queries put into it: W2 x_i.
        value: ``[B, L, D]``, what is summed.
        bias: ``[D]``, of any floating dtype.
        direction: what a query sees: ``"forward"`` earlier tokens, ``"backward"`` later ones, ``"diagonal_free"`` all
            but itself, ``"full"`` all.
        key_mask: bool ``[B, L]``, True = token. Padding is not seen, and sees nothing: its row is 0.
        scale: c, the bound of the scores; in ``(0, 40]``.
        return_lse: also return the log-sum-exp of the scores, per feature; differentiable.

    Returns:
        ``out [B, L, D]``, and ``lse [B, L, D]`` in float32 (float64 for float64). A query that sees nothing (the first
        token forward, the last one backward, padding) gets 0, with lse -inf.

    Raises:
        ValueError: on shapes, dtypes or options that do not fit, naming the argument.
    """
    dependent, head, value = autocast(dependent, head, value)
    _check("multidim_attention", bias, dependent=dependent, head=head, value=value)
    check_devices("multidim_attention", dependent=dependent, head=head, value=value, bias=bias, key_mask=key_mask)
    check_key_mask("multidim_attention", key_mask, value.shape[0], value.shape[1])
    _check_options("multidim_attention", direction, scale)
    out, denominator = torch.ops.longspan.multidim_attention.default(
        dependent, head, value, bias.to(statistics_dtype(value.dtype)), key_mask, *DIRECTIONS[direction], float(scale)
    )
    return (out, denominator.log()) if return_lse else out


@torch.no_grad()
def multidim_weights(
    dependent: Tensor,
    head: Tensor,
    bias: Tensor,
    *,
    direction: str,
    key_mask: Tensor | None = None,
    scale: float = 5.0,
) -> Tensor:
    """The attention weights that ``multidim_attention`` never stores, for looking at: ``[B, L queries, L keys, D]``.

    Rows sum to 1 over the keys, or to 0 where a query sees nothing. Arguments are those of ``multidim_attention``; no
    gradient flows.

    Raises:
        ValueError: as ``multidim_attention``.
    """
    _check("multidim_weights", bias, dependent=dependent, head=head)
    check_key_mask("multidim_weights", key_mask, head.shape[0], head.shape[1])
    _check_options("multidim_weights", direction, scale)
    keys, queries, _ = _rows(dependent, head, dependent, bias, key_mask)
    weights = keys.new_zeros(keys.shape[0], keys.shape[1], *keys.shape[1:])
    for key, rows, _, weight in _each_key(keys, queries, key_mask, *DIRECTIONS[direction], scale):
        weights[:, rows, key.start] = weight
    total = weights.sum(2, keepdim=True)
    return torch.where(total == 0, 0.0, weights / total).to(head.dtype)


def source2token_pooling(logits: Tensor, value: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
    """One vector from a sequence: a softmax of ``logits`` over the tokens, feature by feature, weighs ``value``.

    Args:
        logits: ``[B, L, D]``, unbounded.
        value: ``[B, L, D]``.
        key_mask: bool ``[B, L]``, True = token. Padding is left out.

    Returns:
        ``[B, D]``; 0 for a sequence of nothing but padding.

    Raises:
        ValueError: on shapes or dtypes that do not fit, naming the argument.
    """
    _, logits, value = autocast(value, logits, value)
    _check("source2token_pooling", None, logits=logits, value=value)
    check_key_mask("source2token_pooling", key_mask, value.shape[0], value.shape[1])
    dtype = statistics_dtype(value.dtype)
    logits, values = logits.to(dtype), value.to(dtype)
    if key_mask is None:
        return (torch.softmax(logits, 1) * values).sum(1).to(value.dtype)
    padding = ~key_mask[..., None]
    weights = torch.softmax(logits.masked_fill(padding, torch.finfo(dtype).min), 1).masked_fill(padding, 0.0)
    return (weights * values.masked_fill(padding, 0.0)).sum(1).to(value.dtype)
