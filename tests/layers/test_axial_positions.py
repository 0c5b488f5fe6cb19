"""Positions on a grid: against the definition, for any number of axes and any length; and the training dropout."""

import math

import pytest
import torch

from longspan.layers.axial_positions import AxialPositions, LearnedPositions

GRIDS = [((12,), (6,)), ((3, 4), (2, 5)), ((2, 3, 4), (3, 1, 2)), ((2, 1, 3, 2), (1, 2, 3, 4))]


@pytest.mark.parametrize(("shape", "widths"), GRIDS, ids=lambda value: "x".join(map(str, value)))
def test_definition(shape, widths):
    positions = AxialPositions(shape, widths)
    for axis, table in enumerate(positions.weights):
        assert table.shape == (*(shape[a] if a == axis else 1 for a in range(len(shape))), widths[axis])
    whole = torch.cat([table.expand(*shape, -1) for table in positions.weights], -1).reshape(-1, sum(widths))
    assert positions.num_positions == len(whole) == math.prod(shape)
    for length in (0, 1, 5, len(whole)):
        embedded = positions(torch.arange(length)[None], batch=2)
        assert torch.equal(embedded, whole[None, :length])
    some = torch.tensor([[3, 3, 0], [1, 11, 2]]) % len(whole)
    assert torch.equal(positions(some, batch=2), whole[some])


def test_every_row_in_use_gets_a_gradient():
    positions = AxialPositions((3, 4), (2, 5))
    positions(torch.arange(6)[None], batch=1).sum().backward()
    gradients = [table.grad for table in positions.weights if table.grad is not None]
    first, second = (gradient.flatten(0, -2)[:, 0] for gradient in gradients)
    assert first.tolist() == [4, 2, 0]
    assert second.tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(("shape", "widths"), GRIDS, ids=lambda value: "x".join(map(str, value)))
def test_dropout_takes_all_positions_of_one_index(shape, widths):
    """Of the second axis, for each example apart, whole embeddings at a time."""
    torch.manual_seed(0)
    positions = AxialPositions(shape, widths, dropout=0.4)
    for table in positions.weights:
        table.data.uniform_(1, 2)
    ids = torch.arange(positions.num_positions)[None]
    plain = positions.eval()(ids, batch=50)
    ratio = positions.train()(ids, batch=50) / plain  # [B, T, E]
    torch.testing.assert_close(ratio[ratio > 0], torch.full_like(ratio[ratio > 0], 1 / 0.6))
    ratio = (ratio > 0).float()
    assert torch.equal(ratio.amin(-1), ratio.amax(-1))
    axis = min(1, len(shape) - 1)
    grid = ratio[..., 0].unflatten(1, shape).movedim(1 + axis, 1).reshape(50, shape[axis], -1)
    assert torch.equal(grid.amin(-1), grid.amax(-1))
    assert not torch.equal(grid[:25], grid[25:])
    assert abs((ratio == 0).float().mean() - 0.4) < 0.15


def test_learned_positions():
    torch.manual_seed(0)
    positions = LearnedPositions(10, 4, dropout=0.5)
    ids = torch.arange(7)[None]
    assert torch.equal(positions.eval()(ids, batch=3), positions.embedding.weight[None, :7])
    embedded = positions.train()(ids, batch=3)
    assert embedded.shape == (3, 7, 4)
    assert not torch.equal(embedded[0], embedded[1])
