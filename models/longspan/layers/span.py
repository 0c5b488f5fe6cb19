"""How far a head looks: learned spans, and the arithmetic that follows from them (Sukhbaatar et al. 2019, section 2.2).

A head sees ``span`` tokens whole, and behind them its attention fades over a ramp (``longspan.ops.span``).

B batch, H heads, T tokens, E hidden size, S maximum span.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.ops.tiled import autocast_dtype


def reach(span: float, ramp: int, max_span: int) -> int:
    """Tokens that a head with this span sees, its ramp included: the original's way of counting."""
    return min(max(math.ceil(span) + ramp, 0), max_span)


def trimmed_rows(longest: float, ramp: int, max_span: int, multiple: int) -> int:
    """Farthest of ``max_span`` positions that no head of a layer needs, in steps of ``multiple``.

    Args:
        longest: the longest span of the layer's heads, in tokens.
        ramp: tokens over which weights fade.
        max_span: S.
        multiple: the original's 64.
    """
    return min(max_span - 1, max_span - reach(longest, ramp, max_span)) // multiple * multiple


def memory_rows(trimmed: int, max_span: int, slack: int) -> int:
    """Hidden states that a layer remembers: its window, and ``slack`` more, since spans may grow."""
    return min(max_span, max_span - trimmed + slack)


def window_rows(span: float, ramp: int, max_span: int) -> int:
    """Keys that a query reads, the outer end of the ramp included: its weight is 0, its gradient is not.

    One more than that, since a kernel may round ``span + ramp`` up.
    """
    return min(max_span, max(math.floor(span + ramp) + 2, 1))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class StaticSpan(nn.Module):
    """A span for each head, or one for all heads of a layer, learned as a fraction of the maximum.

    Args:
        num_heads: H.
        max_span: S, in tokens.
        init: the fraction of a new layer.
        shared: one span for all heads.

    Attributes:
        span_fraction: ``[H]``, or ``[1]`` where shared.
    """

    def __init__(self, num_heads: int, max_span: int, *, init: float = 0.0, shared: bool = False):
        super().__init__()
        self.num_heads, self.max_span, self.init = num_heads, max_span, init
        self.span_fraction = nn.Parameter(torch.empty(1 if shared else num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.span_fraction, self.init)

    def forward(self, hidden: Tensor) -> Tensor:
        """Spans in tokens, ``[H]``, float32 at least; of ``hidden`` nothing counts.

        As stored: a fraction that an optimiser has pushed out of [0, 1] is taken as it is until it is clamped.
        """
        return (_wide(self.span_fraction) * self.max_span).expand(self.num_heads).contiguous()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Put fractions back into [0, 1]: after each step of an optimiser."""
        self.span_fraction.clamp_(0, 1)

    def tokens(self) -> list[float]:
        """Spans in tokens on the host, ``max_span`` times the stored fraction in double precision; H or, shared, 1."""
        return [fraction * self.max_span for fraction in self.span_fraction.tolist()]


class DynamicSpan(nn.Module):
    """A span for each head and token: ``S sigmoid(v . x + b)`` of the layer's input x (section 2.2).

    New layers ignore x, and begin with spans of ``init`` of the maximum, but of one ramp at least, and half of the
    maximum at most: a sigmoid that begins at its end does not move.

    Args:
        hidden_size: E.
        num_heads: H.
        max_span: S, in tokens.
        ramp: tokens over which weights fade.
        init: the fraction of a new layer.

    Attributes:
        weight: v, ``[H, E]``.
        bias: b, ``[H]``.
    """

    def __init__(self, hidden_size: int, num_heads: int, max_span: int, *, ramp: int, init: float = 0.0):
        super().__init__()
        self.max_span = max_span
        self.init = max(init, min(ramp / max_span, 0.5))
        self.weight = nn.Parameter(torch.empty(num_heads, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        fraction = min(self.init, 1 - 1e-3)
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, math.log(fraction / (1 - fraction)))

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, E]`` -> spans in tokens ``[B, H, T]``, float32 at least: half precision could not count them."""
        plain = autocast_dtype(hidden) is None
        with nullcontext() if plain else torch.autocast(hidden.device.type, enabled=False):
            x = F.linear(_wide(hidden), _wide(self.weight), _wide(self.bias))
        return (self.max_span * x.sigmoid()).transpose(1, 2).contiguous()

    def clamp_(self) -> None:
        """Nothing: a sigmoid stays where it should."""


class FullSpan(nn.Module):
    """The maximum for every head: attention without adaptive spans.

    Args:
        num_heads: H.
        max_span: S, in tokens.
    """

    def __init__(self, num_heads: int, max_span: int):
        super().__init__()
        self.num_heads, self.max_span = num_heads, max_span

    def forward(self, hidden: Tensor) -> Tensor:
        """``[H]``."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return torch.full((self.num_heads,), float(self.max_span), dtype=dtype, device=hidden.device)

    def clamp_(self) -> None:
        """Nothing to clamp."""

    def tokens(self) -> list[float]:
        """Spans in tokens on the host, one for each head."""
        return [float(self.max_span)] * self.num_heads


Span = StaticSpan | DynamicSpan | FullSpan


def head_windows(spans: Sequence[float], num_heads: int, ramp: int, max_span: int) -> list[int]:
    """Keys that each head reads; ``spans`` has one entry for each head or one for all."""
    windows = [window_rows(span, ramp, max_span) for span in spans]
    return windows * num_heads if len(windows) == 1 else windows
