"""Gates between a candidate and what it was made of.

D features.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


class ContextFusion(nn.Module):
    """u = G * F + (1 - G) * x, F = act(Wf z + bf), G = sigmoid(Wg z + bg), z = [x; h; E] (Bi-BloSAN, section 3.3).

    Args:
        size: D.
        activation: of the candidate F.
        dropout: of what the linear layer takes in.
    """

    def __init__(self, size: int, *, activation: Activation, dropout: float):
        super().__init__()
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(3 * size, 2 * size)  # the candidate, then the gate

    def forward(self, x: Tensor, local: Tensor, context: Tensor) -> Tensor:
        """Three of one shape ``[..., D]``; the result has it too."""
        candidate, gate = self.dense(self.dropout(torch.cat([x, local, context], -1))).chunk(2, -1)
        return torch.lerp(x, self.activation(candidate), torch.sigmoid(gate))


class Highway(nn.Module):
    """g * act(Wm x + bm) + (1 - g) * x with g = sigmoid(Wg x + bg) (Srivastava et al. 2015)."""

    def __init__(self, size: int, *, activation: Activation, dropout: float):
        super().__init__()
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.map = nn.Linear(size, size)
        self.gate = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> the same."""
        gate = torch.sigmoid(self.gate(self.dropout(x)))
        return torch.lerp(x, self.activation(self.map(self.dropout(x))), gate)
