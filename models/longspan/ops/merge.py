"""Joining attention over several key sets: one softmax over their union, from each set's (out, lse).

    lse = log(exp(a_lse) + exp(b_lse)),   out = exp(a_lse - lse) a + exp(b_lse - lse) b

B batch, H heads, T queries, D head size. A window and its global tokens, the rounds of LSH, a memory and the present:
all are this one sum, taken pair by pair.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.ops.checks import check_devices
from longspan.ops.library import LIBRARY, define_reference


def _weights(a_lse: Tensor, b_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Share of each set, and the joint log-sum-exp, all ``[B, H, T]``; rows without any key: 0, 0, -inf."""
    lse = torch.logaddexp(a_lse, b_lse)
    shift = lse.masked_fill(lse == -torch.inf, 0.0)
    return torch.exp(a_lse - shift), torch.exp(b_lse - shift), lse


def _merge_pair(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> tuple[Tensor, Tensor]:
    a_share, b_share, lse = _weights(a_lse, b_lse)
    out = a_share[..., None] * a + b_share[..., None] * b
    return torch.empty_like(a).copy_(out), lse


def _merge_pair_backward(
    grad_out: Tensor, grad_lse: Tensor | None, a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a_share, b_share, lse = _weights(a_lse, b_lse)
    grad = grad_out.to(lse.dtype)
    exchange = a_share * b_share * (grad * (a.to(lse.dtype) - b.to(lse.dtype))).sum(-1)
    extra = torch.zeros_like(lse) if grad_lse is None else grad_lse.masked_fill(lse == -torch.inf, 0.0)
    return (
        torch.empty_like(a).copy_(a_share[..., None] * grad),
        a_share * extra + exchange,
        torch.empty_like(b).copy_(b_share[..., None] * grad),
        b_share * extra - exchange,
    )


LIBRARY.define("merge_pair(Tensor a, Tensor a_lse, Tensor b, Tensor b_lse) -> (Tensor out, Tensor lse)")
LIBRARY.define(
    "merge_pair_backward(Tensor grad_out, Tensor? grad_lse, Tensor a, Tensor a_lse, Tensor b, Tensor b_lse)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
define_reference("merge_pair", _merge_pair)
define_reference("merge_pair_backward", _merge_pair_backward)


@torch.library.register_fake("longspan::merge_pair", lib=LIBRARY)
def _(a, a_lse, b, b_lse):
    return torch.empty_like(a), torch.empty_like(a_lse)


@torch.library.register_fake("longspan::merge_pair_backward", lib=LIBRARY)
def _(grad_out, grad_lse, a, a_lse, b, b_lse):
    return torch.empty_like(a), torch.empty_like(a_lse), torch.empty_like(b), torch.empty_like(b_lse)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, grad_lse):
    if grad_out is None and grad_lse is None:
        return None, None, None, None
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks it only once
    grad_out = torch.zeros_like(saved[0]) if grad_out is None else grad_out
    return torch.ops.longspan.merge_pair_backward.default(grad_out, grad_lse, *saved)


torch.library.register_autograd("longspan::merge_pair", _backward, setup_context=_setup_context, lib=LIBRARY)


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint key sets.

    Differentiable in every argument. Rows where every ``lse`` is -inf give zeros, -inf and zero gradients.

    Args:
        outs: tensors ``[B, H, T, D]`` of one dtype.
        lses: their log-sum-exps ``[B, H, T]``, taken before dropout; float32, or float64 for float64.

    Returns:
        ``(out [B, H, T, D], lse [B, H, T])``; ``out`` has dtype and strides of ``outs[0]``.

    Raises:
        ValueError: when there is nothing to merge, or numbers, shapes or dtypes differ.
    """
    if not outs or len(outs) != len(lses):
        raise ValueError(f"merge: as many outs as lses wanted, at least one; got {len(outs)} and {len(lses)}")
    if any(out.shape != outs[0].shape or out.dtype != outs[0].dtype for out in outs):
        given = [(list(out.shape), out.dtype) for out in outs]
        raise ValueError(f"merge: outs of one shape and dtype wanted, got {given}")
    if any(outs[0].shape[:-1] != lse.shape or lse.dtype != lses[0].dtype for lse in lses):
        given = [(list(lse.shape), lse.dtype) for lse in lses]
        raise ValueError(f"merge: each lse must have the shape of out but for the last dimension, got {given}")
    given = {f"{label}[{i}]": x for label, group in (("outs", outs), ("lses", lses)) for i, x in enumerate(group)}
    check_devices("merge", **given)
    out, lse = outs[0], lses[0].contiguous()
    for other, other_lse in zip(outs[1:], lses[1:], strict=True):
        out, lse = torch.ops.longspan.merge_pair.default(out, lse, other, other_lse.contiguous())
    return out, lse
