"""Attention among tokens that hash to the same bucket (Kitaev et al. 2020, Reformer, section 2).

``lsh_attention`` sorts tokens by bucket, cuts the order into chunks, and lets every query see its own chunk and its
neighbours: which keys that is, depends on all tokens. ``bucket_attention`` is its strictly causal sibling: the newest
``window`` earlier keys of the query's own bucket, which no later token can change.

B batch, H heads, R hash rounds, T tokens, D head size; c chunk size, N chunks of a round.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.ops.checks import check_devices, check_dropout, check_integer, check_key_mask, check_rows
from longspan.ops.hashing import lsh_order
from longspan.ops.tiled import autocast, blocks
from longspan.ops.windows import NOBODY, SCORES, Windows, register_sorted_attention

_QUERY_BLOCK = 64


def _neighbours(chunks: int, rounds: int, before: int, after: int, wrap: bool, device) -> Tensor:
    """The chunks that each chunk sees, oldest first: int64 ``[R * N, before + 1 + after]``, NOBODY where there is none.

    Chunks count through all rounds. With ``wrap`` neighbours are taken modulo them all: the first chunk of a round sees
    the last of the round before, and an offset beyond their number is the chunk itself, as in the original.
    """
    total = rounds * chunks
    own = torch.arange(total, device=device)[:, None]
    offset = torch.arange(-before, after + 1, device=device)
    if wrap:
        return torch.where(offset.abs() <= total, (own + offset) % max(1, total), own)
    neighbour = own + offset
    inside = (neighbour >= 0) & (neighbour < total) & (neighbour // max(1, chunks) == own // max(1, chunks))
    return torch.where(inside, neighbour, NOBODY)


def _segments(first: Tensor) -> Tensor:
    """A number for each bucket of each round, by slot: ``[B, H, R * T + 1]``; slot -1: one that nobody has."""
    rounds = torch.arange(first.shape[2], device=first.device)[:, None] * first.shape[3]
    return F.pad((first.to(torch.int64) + rounds).flatten(2), (0, 1), value=NOBODY)


def _same(segments: Tensor):
    return lambda queries, keys: segments[:, :, queries] == segments[:, :, keys]


def _chunk_windows(
    order: Tensor, first: Tensor, size: int, before: int, after: int,
    causal: bool, wrap: bool, same_bucket: bool, deduplicate: bool,
):  # fmt: skip
    rounds, length = order.shape[2:]
    chunks = -(-length // size)
    neighbours = _neighbours(chunks, rounds, before, after, wrap, order.device)
    place = torch.arange(size, device=order.device)

    def slots(chunk: Tensor) -> Tensor:
        """``[..]`` chunks -> ``[.., c]`` slots; the last chunk of a round may be short."""
        in_round = (chunk % max(1, chunks))[..., None] * size + place
        exists = (chunk[..., None] >= 0) & (in_round < length)
        return torch.where(exists, (chunk // max(1, chunks))[..., None] * length + in_round, NOBODY)

    copies = _count_copies(order, first, size, neighbours, wrap, same_bucket) if deduplicate else None
    visible = _same(_segments(first)) if same_bucket else None
    group = max(1, SCORES // (size * size * (before + 1 + after)))
    for r in range(rounds):
        for lo, hi in blocks(chunks, group):
            own = torch.arange(r * chunks + lo, r * chunks + hi, device=order.device)
            yield Windows(slots(own), slots(neighbours[own]).flatten(1), visible, causal, copies)


def _count_copies(order: Tensor, first: Tensor, size: int, neighbours: Tensor, wrap: bool, same_bucket: bool):
    """N_ij of pairs of positions: how often query i finds key j in all rounds."""
    B, H, R, T = order.shape
    rounds = torch.arange(R, device=order.device)[:, None]
    slots = torch.arange(T, device=order.device)

    def by_position(values: Tensor) -> Tensor:  # [R, T] or [B, H, R, T] by slot -> [B, H, R, T + 1] by position
        out = order.new_zeros(B, H, R, T + 1, dtype=torch.int64)
        return out.scatter_(3, order.to(torch.int64), values.expand(B, H, R, T))

    chunk = by_position(rounds * -(-T // size) + slots // size)
    bucket = by_position(_segments(first)[..., :-1].unflatten(2, (R, T))) if same_bucket else None

    def take(table: Tensor, r: int, at: Tensor) -> Tensor:
        return table[:, :, r].gather(2, at.flatten(2)).view_as(at)

    def copies(queries: Tensor, keys: Tensor) -> Tensor:
        count = queries.new_zeros(*queries.shape, keys.shape[-1])
        for r in range(R):
            seen = neighbours[take(chunk, r, queries)]  # [B, H, G, c, neighbours]
            for other in range(R) if wrap else [r]:
                found = (seen[..., None, :] == take(chunk, other, keys)[..., None, :, None]).sum(-1)
                if bucket is not None:
                    found = found * (take(bucket, r, queries)[..., None] == take(bucket, other, keys)[..., None, :])
                count += found
        return count

    return copies


def _bucket_windows(order: Tensor, first: Tensor, window: int):
    rounds, length = order.shape[2:]
    window = min(window, length)
    same = _same(_segments(first))
    size = max(_QUERY_BLOCK, window)
    group = max(1, SCORES // (size * (size + window)))
    place, back = torch.arange(size, device=order.device), torch.arange(-window, size, device=order.device)

    def visible(queries: Tensor, keys: Tensor) -> Tensor:
        return same(queries, keys) & (queries - keys <= window)

    for r in range(rounds):
        for lo, hi in blocks(-(-length // size), group):
            begin = torch.arange(lo, hi, device=order.device)[:, None] * size

            def inside(slots: Tensor, r=r) -> Tensor:
                return torch.where((slots >= 0) & (slots < length), slots + r * length, NOBODY)

            yield Windows(inside(begin + place), inside(begin + back), visible, causal=True)


_lsh_attention = register_sorted_attention(
    "lsh_attention",
    "int chunk_size, int before, int after, bool causal, bool wrap, bool same_bucket, bool deduplicate",
    _chunk_windows,
)
_bucket_attention = register_sorted_attention("bucket_attention", "int window", _bucket_windows)


def _check(name: str, query_key: Tensor, value: Tensor, buckets: Tensor, key_mask: Tensor | None) -> None:
    check_rows(name, query_key=query_key, value=value)
    check_devices(name, query_key=query_key, value=value, buckets=buckets, key_mask=key_mask)
    if query_key.shape != value.shape:
        raise ValueError(f"{name}: query_key {list(query_key.shape)} and value {list(value.shape)} must have one shape")
    if query_key.dtype != value.dtype:
        raise ValueError(f"{name}: one dtype wanted, got query_key {query_key.dtype}, value {value.dtype}")
    B, H, T, _ = query_key.shape
    check_key_mask(name, key_mask, B, T)
    if buckets.dim() != 4 or list(buckets.shape[:2]) != [B, H] or buckets.shape[3] != T or buckets.shape[2] < 1:
        raise ValueError(
            f"{name}: buckets must be [{B}, {H}, rounds, {T}] ([batch, heads, rounds, tokens]), "
            f"got {list(buckets.shape)}"
        )
    if buckets.is_floating_point() or buckets.dtype == torch.bool:
        raise ValueError(f"{name}: buckets must be integers, got {buckets.dtype}")
    if T >= 1 << 31:
        raise ValueError(f"{name}: at most 2^31 - 1 tokens, got {T}")


def lsh_attention(
    query_key: Tensor,
    value: Tensor,
    buckets: Tensor,
    *,
    chunk_size: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool = False,
    wrap: bool = False,
    same_bucket: bool = False,
    deduplicate: bool = False,
    key_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | int | None = None,
    return_lse: bool = False,
) -> Any:  # Tensor, or with return_lse a pair of them
    """LSH attention: softmax over the keys of nearby chunks in bucket order, over all rounds at once.

    Each round sorts the tokens by (bucket, position) and cuts them into chunks. Keys are the queries at unit length,
    so scores have no further scale. A key found several times counts that often. A query never counts itself.

    Args:
        query_key: ``[B, H, T, D]``, queries and keys in one. Any T, any strides; ``out`` gets the same strides.
        value: ``[B, H, T, D]``.
        buckets: integers ``[B, H, R, T]``, as from ``lsh_buckets``; only their order and equality within a round count.
        chunk_size: tokens of a chunk, c. The last chunk of a round may be short.
        chunks_before: how many chunks before its own a query sees.
        chunks_after: how many chunks after its own a query sees.
        causal: never see a later position. (Which earlier ones are seen still depends on later tokens.)
        wrap: count neighbours modulo the chunks of all rounds, as the original does: a query of a round's first chunk
            sees the last chunk of the round before.
        same_bucket: see keys of the query's own bucket only.
        deduplicate: count each key once, however often it is found (the paper's appendix A).
        key_mask: bool ``[B, T]``, True where a key may be seen.
        dropout_p: probability with which each (query, key) pair is dropped after the softmax, in all rounds alike.
        dropout_seed: 0-dim int64 tensor that fixes the dropped pairs; wanted when ``dropout_p > 0``.
        return_lse: also return the log-sum-exp of the scores (before dropout; differentiable), for ``merge``.

    Returns:
        ``out [B, H, T, D]``, and ``lse [B, H, T]`` in float32 (float64 for float64). A query that finds nothing takes
        its own value, with lse -inf. No gradient reaches ``buckets``.

    Raises:
        ValueError: on shapes, dtypes or numbers that do not fit, naming the argument.
    """
    query_key, _, value = autocast(query_key, query_key, value)
    _check("lsh_attention", query_key, value, buckets, key_mask)
    check_integer("lsh_attention", "chunk_size", chunk_size, 1)
    check_integer("lsh_attention", "chunks_before", chunks_before, 0)
    check_integer("lsh_attention", "chunks_after", chunks_after, 0)
    seed = check_dropout("lsh_attention", dropout_p, dropout_seed, query_key.device)
    order, first = lsh_order(buckets)
    out, lse = _lsh_attention(
        query_key, value, order, first, key_mask, seed, dropout_p,
        chunk_size, chunks_before, chunks_after, causal, wrap, same_bucket, deduplicate,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def bucket_attention(
    query_key: Tensor,
    value: Tensor,
    buckets: Tensor,
    *,
    window: int,
    key_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | int | None = None,
    return_lse: bool = False,
) -> Any:  # Tensor, or with return_lse a pair of them
    """Strictly causal LSH attention: in every round, the newest ``window`` earlier keys of the query's own bucket.

    No later token changes what a query sees, so decoding step by step gives the same numbers as one pass.

    Args:
        query_key: ``[B, H, T, D]``, queries and keys in one, as for ``lsh_attention``.
        value: ``[B, H, T, D]``.
        buckets: integers ``[B, H, R, T]``.
        window: how many keys of its bucket a query sees in each round, at least 1.
        key_mask: bool ``[B, T]``. A masked position is nobody's key, takes no place in a window, and sees nothing.
        dropout_p: probability with which each (query, key) pair is dropped after the softmax.
        dropout_seed: 0-dim int64 tensor that fixes the dropped pairs.
        return_lse: also return the log-sum-exp of the scores (before dropout; differentiable), for ``merge``.

    Returns:
        ``out [B, H, T, D]``, and ``lse [B, H, T]``. A query that finds nothing takes its own value, with lse -inf.

    Raises:
        ValueError: on shapes, dtypes or numbers that do not fit, naming the argument.
    """
    query_key, _, value = autocast(query_key, query_key, value)
    _check("bucket_attention", query_key, value, buckets, key_mask)
    check_integer("bucket_attention", "window", window, 1)
    seed = check_dropout("bucket_attention", dropout_p, dropout_seed, query_key.device)
    order, first = lsh_order(buckets, key_mask)
    out, lse = _bucket_attention(query_key, value, order, first, key_mask, seed, dropout_p, window)
    return (out, lse) if return_lse else out
