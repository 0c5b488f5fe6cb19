"""LayerNorm between a residual stream and a sublayer of another dtype."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StreamLayerNorm(nn.LayerNorm):
    """LayerNorm in the dtype of its input, the result in the dtype that the sublayer computes in.

    Streams stay float32 whatever the dtype of the weights: what a reversible stack reconstructs from them is only as
    good as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape with E last -> the same shape."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        out = F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
        device_type = input.device.type
        if torch.is_autocast_enabled(device_type) and out.dtype != torch.float64:
            return out.to(torch.get_autocast_dtype(device_type))  # once, and not in each of the projections
        return out.to(self.weight.dtype)
