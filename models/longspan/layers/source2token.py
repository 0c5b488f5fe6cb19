"""Pooling with one weight per token and feature: source2token self-attention (Shen et al. 2018).

B batch, L tokens, D features.
"""

from collections.abc import Callable

from torch import Tensor, nn

from longspan.ops.multidim import source2token_pooling


class Source2TokenPooling(nn.Module):
    """g^s2t(x) = sum_i softmax_i(W act(W1 x_i + b1) + b) * x_i, for each feature.

    Args:
        size: D.
        activation: elementwise, between the two layers; unused with one.
        num_layers: 2, or 1: the logits are W x_i + b, as in the blocks of the authors' code.
        dropout: of what linear layers take in.
        average_empty: where a row has no token at all, return the plain mean of what stands there, as the authors'
            code does, in place of zeros.
    """

    def __init__(
        self,
        size: int,
        *,
        activation: Callable[[Tensor], Tensor],
        num_layers: int = 2,
        dropout: float = 0.0,
        average_empty: bool = False,
    ):
        super().__init__()
        self.activation, self.average_empty = activation, average_empty
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(size, size) if num_layers == 2 else None
        self.logits = nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``x [B, L, D]``, ``mask`` bool ``[B, L]`` with True = a token, or None -> ``[B, D]``."""
        hidden = x if self.dense is None else self.activation(self.dense(self.dropout(x)))
        pooled = source2token_pooling(self.logits(self.dropout(hidden)), x, key_mask=mask)
        if mask is None or not self.average_empty:
            return pooled
        return pooled.where(mask.any(1, keepdim=True), x.mean(1))
