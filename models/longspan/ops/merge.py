"""Joining attention over several key sets: one softmax over their union, from each set's (out, lse)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint key sets.

        lse = log sum_i exp(lse_i),   out = sum_i exp(lse_i - lse) out_i

    A window and its global tokens, the rounds of LSH, a memory and the present: all are this one sum.
    Differentiable in every argument. Rows where every ``lse_i`` is -inf give zeros, -inf and zero gradients.

    Args:
        outs: tensors ``[B, H, T, D]``.
        lses: their log-sum-exps ``[B, H, T]``, taken before dropout.

    Returns:
        ``(out [B, H, T, D], lse [B, H, T])``; ``out`` has the dtype of ``outs[0]``.

    Raises:
        ValueError: when there is nothing to merge or the numbers differ.
    """
    if not outs or len(outs) != len(lses):
        raise ValueError(f"merge: as many outs as lses wanted, at least one; got {len(outs)} and {len(lses)}")
    if any(out.shape[:-1] != lse.shape for out, lse in zip(outs, lses, strict=True)):
        shapes = [(list(out.shape), list(lse.shape)) for out, lse in zip(outs, lses, strict=True)]
        raise ValueError(f"merge: lse must have the shape of its out but for the last dimension, got {shapes}")
    stacked = torch.stack(list(lses))  # [sets, B, H, T]
    nothing = (stacked == -torch.inf).all(0)
    # Rows without any key take part with constants, so that neither value nor gradient of theirs is NaN.
    stacked = stacked.masked_fill(nothing, 0.0)
    lse = stacked.logsumexp(0)
    weights = torch.exp(stacked - lse).masked_fill(nothing, 0.0).to(outs[0].dtype)
    out = outs[0] * weights[0][..., None]
    for index in range(1, len(outs)):
        out = torch.addcmul(out, outs[index].to(out.dtype), weights[index][..., None])
    return out, lse.masked_fill(nothing, -torch.inf)
