"""Position embeddings on a grid (Kitaev et al. 2020, "axial positional embeddings"), and learned ones.

A position is the index of a cell of a grid ``S0 x S1 x ...``, row-major; its embedding is the concatenation of one row
of each axis' table. Half a million positions take as many parameters as a few hundred.

B batch, T tokens, E hidden size, S_a cells along axis a, d_a its width; the widths sum to E.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AxialTables(nn.Module):
    """The tables ``w_a [1, .., S_a, .., 1, d_a]``, parameters named "0", "1", ..."""

    def __init__(self, shape: Sequence[int], widths: Sequence[int]):
        super().__init__()
        for axis, width in enumerate(widths):
            size = [1] * len(shape) + [width]
            size[axis] = shape[axis]
            self.register_parameter(str(axis), nn.Parameter(torch.empty(size).normal_()))

    def __iter__(self) -> Iterator[nn.Parameter]:
        return self.parameters(recurse=False)

    def forward(self, indices: Sequence[Tensor]) -> Tensor:
        """Rows ``[B, T]`` of each table, side by side: ``[B, T, E]``."""
        rows = [F.embedding(index, table.flatten(0, -2)) for index, table in zip(indices, self, strict=True)]
        return torch.cat(rows, -1)


class AxialPositions(nn.Module):
    """Axial position embeddings with any number of axes.

    Args:
        shape: cells along each axis.
        widths: width of each axis' table.
        dropout: in training, probability with which an example loses all positions that share one index of the second
            axis (of the only axis, where there is one).
    """

    def __init__(self, shape: Sequence[int], widths: Sequence[int], dropout: float = 0.0):
        super().__init__()
        self.shape, self.dropout = tuple(shape), dropout
        self.weights = AxialTables(self.shape, widths)

    @property
    def num_positions(self) -> int:
        return math.prod(self.shape)

    def forward(self, position_ids: Tensor, batch: int) -> Tensor:
        """Embed.

        Args:
            position_ids: int64 ``[B, T]``, or ``[1, T]`` where all examples have the same; below ``num_positions``.
            batch: B.

        Returns:
            ``[B, T, E]``, or ``[1, T, E]``.
        """
        indices = self._indices(position_ids)
        embedded = self.weights(indices)
        if not self.training or self.dropout == 0.0:
            return embedded
        axis = min(1, len(self.shape) - 1)
        kept = F.dropout(embedded.new_ones(batch, self.shape[axis]), self.dropout)  # 0 or 1 / (1 - p)
        return embedded * kept.gather(1, indices[axis].expand(batch, -1))[..., None]

    def _indices(self, position_ids: Tensor) -> list[Tensor]:
        """The index along each axis, the last axis fastest."""
        indices, stride = [], self.num_positions
        for size in self.shape:
            stride //= size
            indices.append((position_ids // stride) % size)
        return indices


class LearnedPositions(nn.Module):
    """One row of a table for each position, with dropout."""

    def __init__(self, num_positions: int, hidden_size: int, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(num_positions, hidden_size)
        self.dropout = dropout

    @property
    def num_positions(self) -> int:
        return self.embedding.num_embeddings

    def forward(self, position_ids: Tensor, batch: int) -> Tensor:
        """``position_ids [B or 1, T]`` -> ``[B, T, E]``, or ``[1, T, E]``; examples draw their dropout apart."""
        embedded = self.embedding(position_ids)
        if not self.training or self.dropout == 0.0:
            return embedded
        return F.dropout(embedded.expand(batch, -1, -1), self.dropout)
