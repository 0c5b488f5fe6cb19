"""Heads project the rows that they read, and no others."""

import pytest
import torch
from torch import nn

from longspan.layers.span_projection import HeadGroup, group_heads, join_groups, project_heads, split_heads


def test_groups_of_heads_that_look_back_about_equally_far():
    groups = group_heads([10, 500, 12, 40, 300], num_queries=8, num_rows=1000)
    assert groups == [HeadGroup([1, 4], 508), HeadGroup([3], 48), HeadGroup([0, 2], 20)]
    assert group_heads([10, 500, 12], num_queries=8, num_rows=30) == [HeadGroup(None, 30)]
    assert group_heads([5, 5], num_queries=0, num_rows=0) == [HeadGroup(None, 0)]


@pytest.mark.parametrize("kind", ["plain", "hooked", "other"])
def test_projected_rows(kind):
    torch.manual_seed(0)
    projection = nn.Linear(12, 12, bias=False)
    other = nn.Sequential(projection) if kind == "other" else projection
    if kind == "hooked":
        projection.register_forward_hook(lambda module, inputs, out: None)
    source = torch.randn(2, 40, 12, requires_grad=True)
    groups = [HeadGroup([1], 35), HeadGroup([0, 2], 9)]
    whole = split_heads(projection(source), 3)
    parts = project_heads(other, source, 3, groups)
    assert [part.shape for part in parts] == [(2, 1, 35, 4), (2, 2, 9, 4)]
    torch.testing.assert_close(parts[0], whole[:, [1], -35:])
    torch.testing.assert_close(parts[1], whole[:, [0, 2], -9:])
    grads = [torch.autograd.grad(sum(x.square().sum() for x in some), (projection.weight, source), retain_graph=True)
             for some in (parts, (whole[:, [1], -35:], whole[:, [0, 2], -9:]))]  # fmt: skip
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_work_follows_the_rows_that_are_read():
    """Counted in multiplications: seven heads that read 100 rows and one that reads 4000."""
    from torch.utils.flop_counter import FlopCounterMode

    projection, source = nn.Linear(64, 64, bias=False), torch.randn(1, 4000, 64)
    groups = group_heads([92] * 7 + [8000], num_queries=8, num_rows=4000)
    with FlopCounterMode(display=False) as counter:
        project_heads(projection, source, 8, groups)
    assert counter.get_total_flops() == 2 * 64 * 8 * (7 * 100 + 4000)


def test_heads_in_their_order_again():
    groups = [HeadGroup([1, 3], 9), HeadGroup([2], 5), HeadGroup([0], 3)]
    parts = [torch.tensor(group.heads).view(1, -1, 1, 1) for group in groups]
    assert join_groups(parts, groups).flatten().tolist() == [0, 1, 2, 3]
