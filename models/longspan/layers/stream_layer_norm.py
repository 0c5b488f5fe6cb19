"""LayerNorm between a residual stream and a sublayer of another dtype."""

from torch import Tensor, nn
from torch.nn import functional as F

from longspan.ops.tiled import autocast_dtype


class StreamLayerNorm(nn.LayerNorm):
    """LayerNorm in the dtype of its input, the result in the dtype that the sublayer computes in.

    Streams stay float32 whatever the dtype of the weights: what a reversible stack reconstructs from them is only as
    good as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape with E last -> the same shape."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        out = F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
        return out.to(autocast_dtype(out) or self.weight.dtype)  # once, and not in each of the projections
