"""Angular locality-sensitive hashing, and the order that it puts tokens in (Andoni et al. 2015; Kitaev et al. 2020).

    p = query_key . rotations;   bucket = argmax [p, -p],   one such digit for each factor of the number of buckets

B batch, H heads, R hash rounds, T tokens, D head size. The projections are never stored: the kernels, and the blocks
of the reference, keep the largest alone. Hashing has no gradient.
"""

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor

from longspan.ops.checks import check_devices, check_key_mask, check_rows
from longspan.ops.library import LIBRARY, define_reference
from longspan.ops.tiled import blocks, statistics_dtype

_TOKEN_BLOCK = 1024

LIBRARY.define("lsh_hash(Tensor query_key, Tensor rotations, int[] factors, Tensor? key_mask) -> Tensor")
LIBRARY.define("lsh_order(Tensor buckets, Tensor? key_mask) -> (Tensor order, Tensor first)")


def _lsh_hash(query_key: Tensor, rotations: Tensor, factors: list[int], key_mask: Tensor | None) -> Tensor:
    B, H, T, _ = query_key.shape
    dtype = statistics_dtype(query_key.dtype)
    rotations = rotations.to(dtype)
    buckets = query_key.new_empty(B, H, rotations.shape[2], T, dtype=torch.int64)
    columns = [0]
    for factor in factors:
        columns.append(columns[-1] + factor // 2)
    for begin, end in blocks(T, _TOKEN_BLOCK):
        projected = torch.einsum("bhtd,hdrs->bhrts", query_key[:, :, begin:end].to(dtype), rotations)
        digits, weight = 0, 1
        for factor, (lo, hi) in zip(factors, pairwise(columns), strict=True):
            axes = projected[..., lo:hi]
            digits = digits + weight * torch.cat([axes, -axes], -1).argmax(-1)  # ties: the first
            weight *= factor
        buckets[..., begin:end] = digits
    if key_mask is not None:
        total = 1
        for factor in factors:
            total *= factor
        buckets.masked_fill_(~key_mask[:, None, None], total)
    return buckets


def _lsh_order(buckets: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if key_mask is not None:  # masked positions are one bucket behind all others
        buckets = buckets.to(torch.int64).masked_fill(~key_mask[:, None, None], torch.iinfo(torch.int64).max)
    ordered, order = buckets.sort(dim=-1, stable=True)
    slots = torch.arange(buckets.shape[-1], device=buckets.device)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = torch.where(begins, slots, 0).cummax(-1).values if buckets.numel() else order
    return order.to(torch.int32), first.to(torch.int32)


define_reference("lsh_hash", _lsh_hash)
define_reference("lsh_order", _lsh_order)


@torch.library.register_fake("longspan::lsh_hash", lib=LIBRARY)
def _(query_key, rotations, factors, key_mask):
    B, H, T, _ = query_key.shape
    return query_key.new_empty(B, H, rotations.shape[2], T, dtype=torch.int64)


@torch.library.register_fake("longspan::lsh_order", lib=LIBRARY)
def _(buckets, key_mask):
    return tuple(torch.empty_like(buckets, dtype=torch.int32, memory_format=torch.contiguous_format) for _ in range(2))


def bucket_factors(name: str, num_buckets: int | Sequence[int]) -> list[int]:
    """``num_buckets`` as a list of even factors; ValueError where it is none."""
    factors = list(num_buckets) if isinstance(num_buckets, Sequence) else [num_buckets]
    whole = all(isinstance(factor, Integral) and not isinstance(factor, bool) for factor in factors)
    if not factors or not whole or any(factor < 2 or factor % 2 for factor in factors):
        raise ValueError(
            f"{name}: num_buckets must be an even number or a sequence of even factors (each is one direction "
            f"and its opposite), got {num_buckets!r}"
        )
    return [int(factor) for factor in factors]


def lsh_buckets(
    query_key: Tensor, rotations: Tensor, num_buckets: int | Sequence[int], *, key_mask: Tensor | None = None
) -> Tensor:
    """The bucket of every token in every round, by its direction; vectors of like direction tend to share one.

    With several factors ``f1, f2, ...`` the bucket is ``a1 + f1 a2 + f1 f2 a3 + ...``, each digit from its own columns
    of the rotations: many buckets from few projections (Kitaev et al. 2020, appendix).

    Args:
        query_key: ``[B, H, T, D]``.
        rotations: ``[H, D, R, S / 2]``, drawn from N(0, 1) by the caller; S is the sum of the factors.
        num_buckets: an even number, or a sequence of even factors of it.
        key_mask: bool ``[B, T]``; where it is False the bucket is ``num_buckets``, one more than any other.

    Returns:
        int64 ``[B, H, R, T]``, in ``[0, num_buckets]``; rounds share their numbers.

    Raises:
        ValueError: on shapes, dtypes or factors that do not fit, naming the argument.
    """
    check_rows("lsh_buckets", query_key=query_key)
    check_devices("lsh_buckets", query_key=query_key, rotations=rotations, key_mask=key_mask)
    factors = bucket_factors("lsh_buckets", num_buckets)
    B, H, T, D = query_key.shape
    wanted = f"[{H}, {D}, rounds, {sum(factors) // 2}] ([heads, head size, rounds, half the sum of the factors])"
    if rotations.dim() != 4 or [*rotations.shape[:2], rotations.shape[3]] != [H, D, sum(factors) // 2]:
        raise ValueError(f"lsh_buckets: rotations must be {wanted}, got {list(rotations.shape)}")
    if not rotations.is_floating_point():
        raise ValueError(f"lsh_buckets: rotations must be floating point, got {rotations.dtype}")
    check_key_mask("lsh_buckets", key_mask, B, T)
    return torch.ops.longspan.lsh_hash.default(query_key.detach(), rotations.detach(), factors, key_mask)


def lsh_order(buckets: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens sorted by (bucket, position), stable, in each round.

    Args:
        buckets: integers ``[B, H, R, T]``.
        key_mask: bool ``[B, T]``; masked positions share one bucket behind all others.

    Returns:
        int32 ``[B, H, R, T]`` both: the token at each slot, and the slot where the bucket of each slot begins.
    """
    if buckets.dtype != torch.int32:
        buckets = buckets.to(torch.int64)
    return torch.ops.longspan.lsh_order.default(buckets, key_mask)
