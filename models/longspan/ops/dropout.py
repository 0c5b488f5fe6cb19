"""Attention dropout as a pure function of (seed, batch, head, query, key).

One draw per pair from a counter-based generator, so the mask does not depend on tiling, device, number of threads or
recomputation in the backward pass. The same arithmetic stands in ``csrc/common/dropout.h``; the two are bit-equal.

The mixer is ``lowbias32`` (C. Wellons, "Prospecting for hash functions", 2018), a bijection of 32-bit words with the
smallest known bias of its form. It is written here on int64 tensors, since torch has no wrapping uint32 product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_STEP = 0x9E3779B9  # 2^32 / golden ratio: keeps counters that differ by little apart


def _mix(word: Tensor) -> Tensor:
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D) & _LOW
    word = word ^ (word >> 15)
    word = (word * 0x846CA68B) & _LOW
    return word ^ (word >> 16)


def keep_mask(seed: Tensor, dropout_p: float, batch: int, heads: Sequence[int], query: Tensor, key: Tensor) -> Tensor:
    """Which pairs survive dropout: bool ``[batch, len(heads), len(query), len(key)]``, True with probability ``1 - p``.

    Args:
        seed: 0-dim int64 tensor, drawn once per forward pass by the layer.
        dropout_p: probability of dropping a pair, in ``[0, 1)``.
        batch: number of examples; example ``b`` draws with batch index ``b``.
        heads: indices of the heads, as the whole operator counts them.
        query: int64 ``[T']``, indices of query rows.
        key: int64 ``[S']``, indices of key rows.
    """
    device = query.device
    seed = seed.to(device)
    word = _mix(_mix((seed + _STEP) & _LOW) ^ ((seed >> 32) & _LOW))
    for counter in (
        torch.arange(batch, device=device)[:, None, None, None],
        torch.tensor(heads, device=device)[:, None, None],
        query[:, None],
    ):
        word = _mix(((word + _STEP) & _LOW) ^ counter)  # [batch, heads, T', 1] in the end
    second = _mix((word + _STEP) & _LOW)
    draw = _mix((_mix(word ^ key) + second) & _LOW)
    return draw >= int(dropout_p * 2**32)
