"""Dropout as a pure function of a seed and of what is dropped: (batch, head, query, key), or the place of an element.

One draw each from a counter-based generator, so the mask does not depend on tiling, device, number of threads or
recomputation in the backward pass. The same arithmetic stands in ``csrc/common/dropout.h``; the two are bit-equal.

The mixer is ``lowbias32`` (C. Wellons, "Prospecting for hash functions", 2018), a bijection of 32-bit words with the
smallest known bias of its form. It is written here on int64 tensors, since torch has no wrapping uint32 product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.ops.checks import FLOATING, check_dropout
from longspan.ops.library import LIBRARY, define_reference
from longspan.ops.transfers import put_integers

_LOW = 0xFFFFFFFF
_STEP = 0x9E3779B9  # 2^32 / golden ratio: keeps counters that differ by little apart
_ROW = 4096  # elements that share their first counter in ``seeded_dropout``


def _mix(word: Tensor) -> Tensor:
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D) & _LOW
    word = word ^ (word >> 15)
    word = (word * 0x846CA68B) & _LOW
    return word ^ (word >> 16)


def keep(seed: Tensor, dropout_p: float, *counters: Tensor) -> Tensor:
    """True with probability ``1 - p`` for each tuple of counters: bool, of the shape that they broadcast to.

    Args:
        seed: 0-dim int64 tensor, drawn once per forward pass by the layer.
        dropout_p: probability of dropping, in ``[0, 1)``.
        counters: int64 tensors in ``[0, 2^32)``, at least one.
    """
    *outer, last = counters
    seed = seed.to(last.device)
    word = _mix(_mix((seed + _STEP) & _LOW) ^ ((seed >> 32) & _LOW))
    for counter in outer:
        word = _mix(((word + _STEP) & _LOW) ^ counter)
    second = _mix((word + _STEP) & _LOW)
    draw = _mix((_mix(word ^ last) + second) & _LOW)
    return draw >= int(dropout_p * 2**32)


def keep_mask(seed: Tensor, dropout_p: float, batch: int, heads: Sequence[int], query: Tensor, key: Tensor) -> Tensor:
    """Which pairs survive attention dropout: bool ``[batch, len(heads), len(query), len(key)]``.

    Args:
        seed: 0-dim int64 tensor.
        dropout_p: probability of dropping a pair, in ``[0, 1)``.
        batch: number of examples; example ``b`` draws with batch index ``b``.
        heads: indices of the heads, as the whole operator counts them.
        query: int64 ``[T']``, indices of query rows.
        key: int64 ``[S']``, indices of key rows.
    """
    device = query.device
    examples = torch.arange(batch, device=device)[:, None, None, None]
    counted = put_integers(heads, device)[:, None, None]
    return keep(seed, dropout_p, examples, counted, query[:, None], key)


LIBRARY.define("seeded_dropout(Tensor x, Tensor seed, float p) -> Tensor")


def _seeded_dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    from_, to = x.reshape(-1), out.view(-1)
    for begin in range(0, len(to), 1 << 20):  # the generator's words are wide: never those of the whole tensor at once
        index = torch.arange(begin, min(begin + (1 << 20), len(to)), device=x.device)
        kept = keep(seed, p, index // _ROW, index % _ROW)
        to[index] = torch.where(kept, from_[index] * (1.0 / (1.0 - p)), 0.0).to(x.dtype)
    return out


define_reference("seeded_dropout", _seeded_dropout)


@torch.library.register_fake("longspan::seeded_dropout", lib=LIBRARY)
def _(x, seed, p):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _backward(ctx, grad_out):
    (seed,) = ctx.saved_tensors
    return torch.ops.longspan.seeded_dropout.default(grad_out, seed, ctx.p), None, None


torch.library.register_autograd("longspan::seeded_dropout", _backward, setup_context=_setup_context, lib=LIBRARY)


def seeded_dropout(x: Tensor, seed: Tensor | int, p: float) -> Tensor:
    """Dropout whose mask is a function of ``(seed, place of the element)``: ``x / (1 - p)`` where kept, else 0.

    It can be computed again, which reversible layers and checkpointing need, without touching a generator; and no mask
    is kept for the backward pass.

    Args:
        x: floating point, any shape; an element's place is counted in row-major order.
        seed: 0-dim int64 tensor, or an int.
        p: probability of dropping an element, in ``[0, 1)``; 0 returns ``x``.

    Raises:
        ValueError: on a dtype, seed or probability that does not fit.
    """
    if x.dtype not in FLOATING:
        raise ValueError(f"seeded_dropout: x must be floating point of 16 to 64 bits, got {x.dtype}")
    checked = check_dropout("seeded_dropout", p, seed, x.device)
    return x if checked is None else torch.ops.longspan.seeded_dropout.default(x, checked, p)
