"""One new token's attention to cached rows: what LSH attention and bucket attention become, step by step.

    out = sum_j N_j exp(q . k_j) v_j / sum_j N_j exp(q . k_j),   k_j = x_j / sqrt(|x_j|^2 + D 1e-6)

q is the newest row, itself never among its keys; one that finds nothing takes its own value. N_j counts how often the
rounds find key j.

B batch, H heads, R hash rounds, T tokens, D head size; W slots of a window.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.ops.checks import check_attention_inputs, check_devices, check_integer
from longspan.ops.hashing import lsh_order
from longspan.ops.library import without_autocast
from longspan.ops.tiled import statistics_dtype
from longspan.ops.windows import unit_keys


def lsh_decode(
    query_key: Tensor,
    value: Tensor,
    buckets: Tensor,
    *,
    chunk_size: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    wrap: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:
    """LSH attention of the newest token to the rows before it (decoding of Kitaev et al. 2020).

    In every round the real tokens, the new one among them, stand sorted by bucket, ties by position; the new token
    sees the chunk that it falls into, the ``chunks_before`` before and the ``chunks_after`` after it. All of these are
    earlier tokens, whichever side they sorted to. Chunk borders move as tokens come, so this is not what
    ``lsh_attention`` gives the last of T tokens with other rows padded; ``bucket_decode`` has that property.

    Buckets are sorted by counting; of the rows only those of a window are gathered.

    Args:
        query_key: ``[B, H, T, D]``, the new token last.
        value: ``[B, H, T, D]``.
        buckets: integer ``[B, H, R, T]``, of ``lsh_buckets`` with one set of rotations.
        chunk_size: slots of a chunk.
        chunks_before: how many chunks before its own the token sees.
        chunks_after: how many chunks after its own.
        wrap: count slots modulo the number of real tokens, within the round; a key that a window meets twice counts
            twice. Otherwise windows end where the round does.
        key_mask: bool ``[B, T]``, True where there is a token. What is False is as if it were not there.

    Returns:
        ``[B, H, 1, D]``.

    Raises:
        ValueError: on shapes, dtypes or chunk numbers that do not fit, naming the argument.
    """
    _check("lsh_decode", query_key, value, buckets, key_mask)
    check_integer("lsh_decode", "chunk_size", chunk_size, 1)
    check_integer("lsh_decode", "chunks_before", chunks_before, 0)
    check_integer("lsh_decode", "chunks_after", chunks_after, 0)
    T = query_key.shape[2]
    if key_mask is not None:
        key_mask = F.pad(key_mask[:, :-1], (0, 1), value=True)  # the new token is real
    order, _ = lsh_order(buckets, key_mask)  # masked positions last
    earlier = buckets <= buckets[..., -1:]  # in that order: the new token is the last of its bucket
    real = torch.full((), T, device=buckets.device)
    if key_mask is not None:
        earlier &= key_mask[:, None, None]
        real = key_mask.sum(1)[:, None, None, None]
    own = earlier.sum(-1, keepdim=True) - 1  # [B, H, R, 1], the slot of the new token
    slots = torch.arange(chunk_size * (chunks_before + 1 + chunks_after), device=buckets.device)
    slots = slots + (own // chunk_size - chunks_before) * chunk_size  # [B, H, R, W]
    if wrap:
        slots = slots % real
    seen = (slots >= 0) & (slots < real)
    at = order.gather(-1, slots.clamp(0, T - 1)).to(torch.int64)
    return _attend(query_key, value, at.flatten(2), (seen & (at != T - 1)).flatten(2))


def bucket_decode(
    query_key: Tensor, value: Tensor, buckets: Tensor, *, window: int, key_mask: Tensor | None = None
) -> Tensor:
    """The newest token's row of ``bucket_attention``: in every round the newest ``window`` tokens of its bucket.

    Args:
        query_key: ``[B, H, T, D]``, the new token last.
        value: ``[B, H, T, D]``.
        buckets: integer ``[B, H, R, T]``.
        window: how many earlier tokens of its bucket the token sees in a round.
        key_mask: bool ``[B, T]``, True where there is a token.

    Returns:
        ``[B, H, 1, D]``.

    Raises:
        ValueError: on shapes, dtypes or a window that do not fit, naming the argument.
    """
    _check("bucket_decode", query_key, value, buckets, key_mask)
    check_integer("bucket_decode", "window", window, 1)
    T = query_key.shape[2]
    if T == 1:
        return value[:, :, -1:].clone()
    same = buckets[..., :-1] == buckets[..., -1:]
    if key_mask is not None:
        same &= key_mask[:, None, None, :-1]
    position = torch.arange(T - 1, device=buckets.device).expand(same.shape)
    newest = position.masked_fill(~same, -1).topk(min(window, T - 1), sorted=False).values
    return _attend(query_key, value, newest.clamp(min=0).flatten(2), (newest >= 0).flatten(2))


@without_autocast
def _attend(query_key: Tensor, value: Tensor, at: Tensor, seen: Tensor) -> Tensor:
    """One softmax over the rows ``at [B, H, N]`` that are ``seen``; the new token's own value where there is none."""
    dtype = statistics_dtype(query_key.dtype)
    index = at[..., None].expand(*at.shape, query_key.shape[3])
    keys, _ = unit_keys(query_key.gather(2, index).to(dtype))
    scores = (keys @ query_key[:, :, -1, :, None].to(dtype))[..., 0].masked_fill(~seen, -torch.inf)
    alone = ~seen.any(-1, keepdim=True)
    weights = scores.masked_fill(alone, 0.0).softmax(-1)
    out = weights[:, :, None] @ value.gather(2, index).to(dtype)
    return torch.where(alone[..., None], value[:, :, -1:], out.to(value.dtype))


def _check(name: str, query_key: Tensor, value: Tensor, buckets: Tensor, key_mask: Tensor | None) -> None:
    check_attention_inputs(name, query_key, query_key, value, key_mask)
    check_devices(name, query_key=query_key, buckets=buckets)
    B, H, T = query_key.shape[:3]
    if T == 0:
        raise ValueError(f"{name}: query_key has no token, the newest one is wanted last; got {list(query_key.shape)}")
    if buckets.dim() != 4 or [*buckets.shape[:2], buckets.shape[3]] != [B, H, T] or buckets.shape[2] == 0:
        raise ValueError(
            f"{name}: buckets must be [{B}, {H}, rounds, {T}] ([batch, heads, rounds, tokens]), "
            f"got {list(buckets.shape)}"
        )
    if buckets.is_floating_point() or buckets.dtype == torch.bool:
        raise ValueError(f"{name}: buckets must be integers, got {buckets.dtype}")
