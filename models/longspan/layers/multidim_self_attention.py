"""Self-attention with one weight per feature, one direction at a time (Shen et al. 2018, DiSAN and Bi-BloSAN).

Attention over all rows it is given: a whole text (DiSAN), the tokens of one block, or the blocks of a text.

B batch, L rows (tokens of a block, or blocks), E features that come in, D features of one direction.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from longspan.ops.multidim import multidim_attention, multidim_weights

Activation = Callable[[Tensor], Tensor]
Direction = Literal["forward", "backward", "diagonal_free"]


class MultidimSelfAttention(nn.Module):
    """g^m(x, M): weights softmax_j(c tanh((W1 x_j + W2 x_i + b) / c)) for each feature, over values x_j.

    Args:
        size: D.
        direction: "forward": row i sees the rows before it; "backward": those behind it; "diagonal_free":
            all others.
        scale: c, the bound of scores.
        dropout: of what the projection takes in.
    """

    def __init__(self, size: int, direction: Direction, *, scale: float, dropout: float):
        super().__init__()
        self.direction, self.scale = direction, scale
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(size, 2 * size, bias=False)  # of keys, then of queries
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, mask: Tensor | None, return_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: ``[B, L, D]``.
            mask: bool ``[B, L]``, True = a row that may be seen; None: all. Others get zeros, as does a row that sees
                none.
            return_weights: also return the weights, ``[B, D, L, L]``. For inspection: nothing else is of that size.
        """
        dependent, head = self.projection(self.dropout(x)).chunk(2, -1)
        options = {"direction": self.direction, "key_mask": mask, "scale": self.scale}
        out = multidim_attention(dependent, head, x, self.bias, **options)
        if not return_weights:
            return out, None
        return out, multidim_weights(dependent, head, self.bias, **options).permute(0, 3, 1, 2)


class FusionGate(nn.Module):
    """G * a + (1 - G) * b with G = sigmoid(Wa a + Wb b + bias).

    Args:
        size: D.
        dropout: of what the projections take in.
        linear_biases: give each projection a bias of its own, beside the common one. They add nothing to what can be
            learnt; the authors' weights have them.
    """

    def __init__(self, size: int, *, dropout: float, linear_biases: bool):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.first = nn.Linear(size, size, bias=linear_biases)
        self.second = nn.Linear(size, size, bias=linear_biases)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """``a`` and ``b`` of one shape ``[..., D]``; the result has it too."""
        gate = torch.sigmoid(self.first(self.dropout(first)) + self.second(self.dropout(second)) + self.bias)
        return torch.lerp(second.to(gate.dtype), first.to(gate.dtype), gate)  # the gate is wider under autocast


class GatedSelfAttention(nn.Module):
    """A gate between rows and what attention found for them: G weighs what was found (Bi-BloSAN's paper).

    ``own_attention = False``: ``forward`` is given an attention that has its place elsewhere.
    """

    def __init__(self, size: int, direction: Direction, *, scale: float, dropout: float, own_attention: bool = True):
        super().__init__()
        self.attention = MultidimSelfAttention(size, direction, scale=scale, dropout=dropout) if own_attention else None
        self.gate = FusionGate(size, dropout=dropout, linear_biases=False)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        return_weights: bool = False,
        attention: MultidimSelfAttention | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, L, D]`` -> the same, and weights as in ``MultidimSelfAttention``."""
        attention = self.attention or attention
        assert attention is not None
        found, weights = attention(x, mask, return_weights)
        return self.gate(found, x), weights


class DirectionalSelfAttention(nn.Module):
    """DiSA: y = act(W x + b), attention over y, and a gate G that weighs y (Shen et al. 2018, DiSAN).

    The encoder of DiSAN over a whole text; in the authors' Bi-BloSAN also what runs over blocks.

    Args:
        in_size: E.
        size: D.
        direction: see ``MultidimSelfAttention``.
        activation: elementwise.
        scale: bound of scores.
        dropout: of what linear layers take in.
        own_attention: False: ``forward`` is given an attention that has its place elsewhere.
    """

    def __init__(
        self,
        in_size: int,
        size: int,
        direction: Direction,
        *,
        activation: Activation,
        scale: float,
        dropout: float,
        own_attention: bool = True,
    ):
        super().__init__()
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.map = nn.Linear(in_size, size)
        self.attention = MultidimSelfAttention(size, direction, scale=scale, dropout=dropout) if own_attention else None
        self.gate = FusionGate(size, dropout=dropout, linear_biases=True)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        return_weights: bool = False,
        attention: MultidimSelfAttention | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, L, E]`` -> ``[B, L, D]``, zero where ``mask`` is False; weights as in ``MultidimSelfAttention``."""
        attention = self.attention or attention
        assert attention is not None
        mapped = self.activation(self.map(self.dropout(x)))
        found, weights = attention(mapped, mask, return_weights)
        out = self.gate(mapped, found)
        return (out if mask is None else out.masked_fill(~mask[..., None], 0.0)), weights
