"""What a block does to each token after attention: two dense layers, or two convolutions along the text.

C and F channels; rows are those of a step, see ``step_tokens.py``.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from longspan.layers.chunked import apply_chunked
from longspan.layers.step_tokens import StepRows


class FeedForward(nn.Module):
    """Dense, activation, dropout, dense; 0 at padding, as tensor2tensor has it.

    Args:
        hidden_size: C.
        intermediate_size: F.
        activation: between the two.
        dropout: after the activation.
        chunk_rows: rows taken at a time, which saves memory; 0: all.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: Callable[[Tensor], Tensor] = F.relu,
        dropout: float = 0.0,
        chunk_rows: int = 0,
    ):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.activation, self.chunk_rows = activation, chunk_rows
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, at: StepRows, name: str) -> Tensor:
        """Rows ``[..., C]`` -> the same shape."""
        return _without_padding(apply_chunked(self._each, x, self.chunk_rows), at)

    def _each(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(x))))


class SeparableConvolution(nn.Module):
    """A filter of its own for each channel along the text, then a dense layer at each token.

    Args:
        in_channels: C.
        out_channels: F.
        kernel_size: tokens that a filter sees: up to its own where causal, else around it.
        causal: no token sees a later one.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, causal: bool):
        super().__init__()
        self.kernel_size, self.causal = kernel_size, causal
        self.depthwise = nn.Conv1d(in_channels, in_channels, kernel_size, groups=in_channels, bias=False)
        self.pointwise = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, at: StepRows, name: str) -> Tensor:
        """Rows ``[..., C]`` -> ``[..., F]``; padding counts as 0."""
        x = _without_padding(x, at)
        more = self.kernel_size - 1
        if self.causal:
            around = at.seen(name, x, reach=more)
        else:
            around = F.pad(at.seen(name, x), (0, 0, more // 2, more - more // 2))
        # Without tokens there is only padding, less than a filter.
        out = self.depthwise(around.mT).mT if around.shape[1] > more else around[:, :0]
        return self.pointwise(at.rows_of(out))


class ConvolutionTransition(nn.Module):
    """Separable convolution, activation, dropout, separable convolution.

    Args:
        hidden_size: C.
        intermediate_size: F.
        kernel_sizes: of the two.
        causal: no token sees a later one.
        activation: between the two.
        dropout: after the activation.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        kernel_sizes: Sequence[int] = (3, 5),
        causal: bool = False,
        activation: Callable[[Tensor], Tensor] = F.relu,
        dropout: float = 0.0,
    ):
        super().__init__()
        first, second = kernel_sizes
        self.conv1 = SeparableConvolution(hidden_size, intermediate_size, first, causal=causal)
        self.conv2 = SeparableConvolution(intermediate_size, hidden_size, second, causal=causal)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x: Tensor, at: StepRows, name: str) -> Tensor:
        """Rows ``[..., C]`` -> the same shape."""
        x = self.dropout(self.activation(self.conv1(x, at, f"{name}.conv1")))
        return self.conv2(x, at, f"{name}.conv2")


def _without_padding(x: Tensor, at: StepRows) -> Tensor:
    mask = at.row_mask
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)
