"""Attention of new tokens to cached ones: a step of generation, of any number of tokens.

The states are those of ``longspan.cache``; a step takes its tokens into them.

B batch, H heads, T new tokens, S cached tokens, D head size, W slots of a ring, R hash rounds.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from longspan.ops.lsh_decode import bucket_decode, lsh_decode

Semantics = Literal["original", "chunked", "strict"]
ChooseHashing = Callable[[int], tuple[Tensor, int | Sequence[int]]]


def local_step(
    state: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    chunk_length: int,
    chunks_before: int,
) -> Tensor:
    """Causal attention within chunks and their ``chunks_before`` predecessors; chunks count from a row's first token.

    Args:
        state: ``RingLayer`` of at least ``chunk_length * (1 + chunks_before)`` slots.
        query: ``[B, H, T, D]`` of the new tokens.
        key: ``[B, H, T, D]``.
        value: ``[B, H, T, D]``.
        mask: bool ``[B, T]``, False at padding, which is seen by nobody and gets zeros. None: no padding.
        chunk_length: tokens of a chunk.
        chunks_before: how many chunks before its own a token sees.

    Returns:
        ``[B, H, T, D]``, what the full pass gives these tokens.
    """
    out = torch.empty_like(query)
    for begin in range(0, query.shape[2], state.window):
        piece = slice(begin, begin + state.window)
        some = None if mask is None else mask[:, piece]
        q, k, v = (x[:, :, piece] for x in (query, key, value))
        held_keys, held_values, held = state.keys, state.values, state.positions
        number = torch.arange(q.shape[2], device=q.device) if some is None else some.cumsum(1) - 1
        at_query = (state.lengths[:, None] + number).expand(q.shape[0], -1)
        at_new = at_query if some is None else at_query.masked_fill(~some, -1)
        at_key = torch.cat([held, at_new], 1)[:, None]
        first = (at_query // chunk_length - chunks_before).clamp(min=0) * chunk_length
        visible = (at_key >= first[..., None]) & (at_key <= at_query[..., None])
        if some is not None:
            visible &= some[..., None]
        state.append(k, v, some)
        out[:, :, piece] = _attend(q, torch.cat([held_keys, k], 2), torch.cat([held_values, v], 2), visible[:, None])
    return out


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Plain attention over few keys; zeros where nothing is ``visible [B, 1, T, S]``."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(wide) * query.shape[3] ** -0.5) @ key.to(wide).mT
    weights = scores.masked_fill(~visible, torch.finfo(wide).min).softmax(-1) * visible
    return (weights @ value.to(wide)).to(query.dtype)


def lsh_step(
    state: Any,
    query_key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    hashing: ChooseHashing,
    *,
    chunk_length: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    semantics: Semantics = "chunked",
) -> Tensor:
    """LSH attention of new tokens to everything before them, one after the other.

    A row hashes as soon as it is longer than a chunk, with the rotations and the number of buckets that ``hashing``
    gives for the tokens it had then; both are kept in the state, so all later steps compare like with like. Before
    that a token sees all tokens of its row. With ``strict`` a row hashes from its first token on.

    Args:
        state: ``RowsLayer``.
        query_key: ``[B, H, T, D]`` of the new tokens.
        value: ``[B, H, T, D]``.
        mask: bool ``[B, T]``, False at padding; None: no padding.
        hashing: number of real tokens of a row -> rotations ``[H, D, R, S / 2]`` and number of buckets.
        chunk_length: slots of a chunk.
        chunks_before: how many chunks before its own a token sees.
        chunks_after: how many chunks after its own.
        semantics: ``original``: slots wrap around (`lsh_decode`); ``chunked``: they do not; ``strict``: the newest
            ``chunk_length * (1 + chunks_before)`` tokens of the own bucket (`bucket_decode`), as in the full pass.

    Returns:
        ``[B, H, T, D]``.
    """
    options = dict(chunk_length=chunk_length, chunks_before=chunks_before, chunks_after=chunks_after)
    tokens = [
        _lsh_token(
            state,
            query_key[:, :, t : t + 1],
            value[:, :, t : t + 1],
            None if mask is None else mask[:, t : t + 1],
            hashing,
            semantics=semantics,
            **options,
        )
        for t in range(query_key.shape[2])
    ]
    return torch.cat(tokens, 2)


def _lsh_token(
    state, query_key, value, mask, hashing, *, chunk_length, chunks_before, chunks_after, semantics
) -> Tensor:
    """One token, ``[B, H, 1, D]``."""
    before = state.lengths
    # The original begins to hash after a step that made a row as long as a chunk, and a prompt hashes when longer.
    least = {"original": chunk_length + 1, "chunked": chunk_length, "strict": 0}[semantics]
    due = ~state.hashed & (before >= least)
    if bool(due.any()):
        state.hash_rows(due, hashing, state.prompt if semantics == "original" else before)
    state.append(query_key, value, mask)
    hashed = state.hashed
    if bool(hashed.all()):
        groups = [(slice(None), True)]
    else:
        groups = [(rows.nonzero()[:, 0], flag) for rows, flag in ((hashed, True), (~hashed, False)) if bool(rows.any())]
    out = torch.empty_like(query_key)
    for rows, has_buckets in groups:
        x, v, key_mask = state.keys[rows], state.values[rows], state.mask[rows]
        key_mask = None if bool(key_mask.all()) else key_mask
        if not has_buckets:
            everyone = x.new_zeros(*x.shape[:2], 1, x.shape[2], dtype=torch.int32)
            out[rows] = bucket_decode(x, v, everyone, window=chunk_length, key_mask=key_mask)
        elif semantics == "strict":
            window = chunk_length * (1 + chunks_before)
            out[rows] = bucket_decode(x, v, state.buckets[rows], window=window, key_mask=key_mask)
        else:
            out[rows] = lsh_decode(
                x,
                v,
                state.buckets[rows],
                chunk_size=chunk_length,
                chunks_before=chunks_before,
                chunks_after=chunks_after,
                wrap=semantics == "original",
                key_mask=key_mask,
            )
    if semantics == "original":
        due = ~state.hashed & (state.lengths >= chunk_length)
        if bool(due.any()):
            state.hash_rows(due, hashing, state.lengths)
    return out
