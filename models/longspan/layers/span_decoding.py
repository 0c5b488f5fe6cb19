"""A step of generation under adaptive spans: attention of new tokens to what each head's span reaches.

The state is a ``SpanRings`` of longspan.adaptive_span; a step takes its tokens into it.

B batch, H heads, G heads of a group, T new tokens, N cached rows, D head size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from longspan.layers.arrangement import Arrangement
from longspan.layers.span_projection import take_heads
from longspan.ops.transfers import put_integers

# (heads, or None for all; query [B, G, T, D]; key and value [B, G, N + T, D]; key_mask bool [B, N + T] or None)
# -> [B, G, T, D]
Attend = Callable[[list[int] | None, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def ring_widths(spans: Sequence[float], *, max_span: int, ramp: float) -> list[int]:
    """How many keys each head sees with some weight: those nearer than span + ramp, at most ``max_span``.

    Args:
        spans: of each head, in tokens.
        max_span: the farthest key, in tokens.
        ramp: width of the mask's ramp, in tokens.
    """
    return [max(1, min(max_span, math.ceil(span + ramp))) for span in spans]


def span_step(
    state: Any, query: Tensor, key: Tensor, value: Tensor, *, attend: Attend, mask: Tensor | None = None
) -> Tensor:
    """Attend to earlier tokens and the new ones, and take the new ones into the state.

    Args:
        state: ``SpanRings``, with tokens in it, at least as wide as the heads' spans.
        query: ``[B, H, T, D]`` of the new tokens.
        key: ``[B, H, T, D]``.
        value: ``[B, H, T, D]``.
        attend: attention of some heads over keys in order, the newest last; query t stands at key N + t. Keys that its
            mask hides are zeros and stand before a row's first token.
        mask: bool ``[B, T]``, False at padding, which stands behind each row's tokens. None: no padding.

    Returns:
        ``[B, H, T, D]``; at padding, any values.
    """
    if mask is None or bool(mask.all()):
        parts = state.extend(key, value)
    else:
        parts = [(group, *_beside(state, group, key, value)) for group in state.groups]
        state.append(key, value, mask)
    if len(parts) == 1:
        _, keys, values, present = parts[0]
        return attend(None, query, keys, values, _unless_all(present))
    out = torch.empty_like(query)
    for group, keys, values, present in parts:
        heads = put_integers(group.heads, out.device)
        out[:, heads] = attend(group.heads, query[:, heads], keys, values, _unless_all(present))
    return out


def _beside(state: Any, group: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the group holds and the new rows behind it: keys, values, and which are tokens or stand behind one."""
    heads = None if len(state.groups) == 1 else group.heads
    new = (take_heads(x, heads) for x in (key, value))
    keys, values = (torch.cat(pair, 2) for pair in zip(group.rows, new, strict=True))
    filled = state.filled(group)
    return keys, values, torch.cat([filled, filled.new_ones(len(filled), key.shape[2])], 1)


def _unless_all(mask: Tensor) -> Tensor | None:
    return None if bool(mask.all()) else mask


def align(states: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    """Move tokens to the end of their rows, with zeros before them.

    Args:
        states: each ``[B, G, T, D]``.
        mask: bool ``[B, T]``, False at padding.
    """
    arrangement = Arrangement(~mask)  # padding first
    empty = ~mask.sort(1).values[:, None, :, None]
    return [arrangement.inward(x, 2).masked_fill(empty, 0) for x in states]
