"""Attention weights of every pair of tokens, for inspection: of whatever attention, read off its own output.

B batch, H heads, T tokens, D head size.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def dense_weights(attend: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The weights ``P`` of an attention ``attend(value) = P value``.

    Found by attending to unit vectors in place of values, D tokens at a time: exact, whatever the attention does, and
    as long as T / D passes of it. The result has T^2 entries for each head, which attention itself never holds.

    Args:
        attend: ``[B, H, T, D]`` values -> ``[B, H, T, D]``.
        like: ``[B, H, T, D]``, for shape and dtype.

    Returns:
        ``[B, H, T, T]``, entry ``(i, j)``: what query i takes of key j.
    """
    batch, heads, length, head_size = like.shape
    unit = torch.eye(head_size, dtype=like.dtype, device=like.device)
    columns = []
    for begin in range(0, length, head_size):
        some = min(head_size, length - begin)
        value = like.new_zeros(batch, heads, length, head_size)
        value[:, :, begin : begin + some] = unit[:some]
        columns.append(attend(value)[..., :some])
    return torch.cat(columns, -1) if columns else like.new_zeros(batch, heads, 0, 0)
