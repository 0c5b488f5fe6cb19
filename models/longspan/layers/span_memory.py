"""Hidden states that a layer remembers from one block of a stream to the next (Dai et al. 2019; spec of the original).

A layer keeps its own inputs, without gradient, and projects them anew in every step with the weights of that step.
A row of zeros is a place before the beginning of the text.

B batch, C remembered rows, T tokens, E hidden size.
"""

import torch
from torch import Tensor


def next_memory(
    memory: Tensor | None, hidden: Tensor, rows: int, *, lengths: Tensor | None = None, zeros: bool = False
) -> Tensor:
    """The newest ``rows`` of what was remembered and of this block's states, detached.

    Where there are fewer, all: a memory whose span has just grown grows by one block at a time.

    Args:
        memory: ``[B, C, E]``, or None at the beginning of a stream.
        hidden: ``[B, T, E]``, the layer's input.
        rows: how many to remember.
        lengths: int64 ``[B]``: only so many tokens of each row are text, what follows is padding; None: all.
        zeros: at the beginning of a stream, begin with ``rows`` rows of zeros, as the original does.

    Returns:
        ``[B, C', E]`` with ``C' = min(rows, C + T)``, or ``rows`` where zeros fill up.
    """
    hidden = hidden.detach()
    batch, length, size = hidden.shape
    memory = hidden[:, :0] if memory is None else memory.detach().to(hidden.dtype)
    held = memory.shape[1]
    kept = rows if zeros and held == 0 else min(rows, held + length)
    if lengths is None:
        older = max(0, kept - length)
        before = hidden.new_zeros(batch, max(0, older - held), size)
        return torch.cat([before, memory[:, max(0, held - older) :], hidden[:, max(0, length - kept) :]], 1)
    before = hidden.new_zeros(batch, kept, size)
    newest = held + lengths[:, None] + torch.arange(kept, device=hidden.device)  # [B, C'], counted from ``before``
    return torch.cat([before, memory, hidden], 1).gather(1, newest[..., None].expand(-1, -1, size))
