"""Keys and values of those rows only that a head's span reaches.

Remembered rows are many, heads that look back far are few: projecting every row for every head would cost more than
attention itself.

B batch, S rows, H heads, D head size, E hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.ops.transfers import take


class HeadGroup(NamedTuple):
    """Heads that look back about equally far, and how many of the newest rows they read."""

    heads: list[int] | None  # None: all
    rows: int


def group_heads(windows: Sequence[int], num_queries: int, num_rows: int) -> list[HeadGroup]:
    """Heads by the rows that they need, each group within a factor of two.

    Args:
        windows: keys that a query of each head reads.
        num_queries: T; the queries are the newest rows.
        num_rows: S.

    Returns:
        Groups, the widest first; the union of their heads is all.
    """
    needed = [min(num_rows, window + num_queries) for window in windows]
    order = sorted(range(len(needed)), key=lambda head: (-needed[head], head))
    groups: list[HeadGroup] = []
    for head in order:
        if groups and 2 * needed[head] >= groups[-1].rows:
            groups[-1].heads.append(head)  # type: ignore[union-attr]
        else:
            groups.append(HeadGroup([head], needed[head]))
    if len(groups) == 1:
        return [HeadGroup(None, groups[0].rows)]
    return [HeadGroup(sorted(group.heads or []), group.rows) for group in groups]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B, S, H * D]`` -> ``[B, H, S, D]``, a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def take_heads(x: Tensor, heads: Sequence[int] | None, dim: int = 1) -> Tensor:
    """Those heads of ``x``, which stand along ``dim``; None: all."""
    return x if heads is None else take(x, dim, heads)


def join_groups(parts: Sequence[Tensor], groups: Sequence[HeadGroup]) -> Tensor:
    """``[B, heads of a group, T, D]`` of each group -> ``[B, H, T, D]``, heads in their order."""
    order = [head for group in groups for head in group.heads or []]
    return take(torch.cat(list(parts), 1), 1, sorted(range(len(order)), key=order.__getitem__))


def project_heads(projection: nn.Module, source: Tensor, num_heads: int, groups: Sequence[HeadGroup]) -> list[Tensor]:
    """The rows that each group reads, projected for its heads: ``[B, heads of the group, rows, D]`` each.

    Args:
        projection: E -> H * D. Anything but a plain linear layer (an adapter, a quantised one) is called once, on all
            rows that any group reads.
        source: ``[B, S, E]``.
        num_heads: H.
        groups: of ``group_heads``, the widest first.
    """
    source = source[:, source.shape[1] - groups[0].rows :]
    if len(groups) == 1:
        return [split_heads(projection(source), num_heads)]
    if type(projection) is not nn.Linear or projection._forward_hooks or projection._forward_pre_hooks:
        every = split_heads(projection(source), num_heads)
        return [take_heads(every[:, :, every.shape[2] - group.rows :], group.heads) for group in groups]
    weight = projection.weight.unflatten(0, (num_heads, -1))  # [H, D, E]
    return [
        split_heads(
            F.linear(source[:, source.shape[1] - group.rows :], take_heads(weight, group.heads, 0).flatten(0, 1)),
            len(group.heads or []),
        )
        for group in groups
    ]
