"""Dense attention where one side is short: few queries against all keys, or all queries against few keys.

B batch, H heads, T queries, S keys, D head size. What global tokens, persistent vectors and memories need; computed by
blocks, so nothing of size T x S is ever held. Joined with a window by ``longspan.ops.merge``.
"""

from typing import Any

import torch
from torch import Tensor

from longspan.ops.checks import check_attention_inputs, check_devices, check_dropout
from longspan.ops.tiled import KEY_BLOCK, Tile, autocast, blocks, register_attention

_TILE_ELEMENTS = 1 << 22  # scores of one tile over batch and heads: 16 MiB in float32


def _dense_tiles(query: Tensor, key: Tensor, query_position: Tensor | None = None, key_position: Tensor | None = None):
    num_keys = key.shape[2]
    key_block = max(KEY_BLOCK, _TILE_ELEMENTS // max(1, query.shape[0] * query.shape[1] * min(query.shape[2], 64)))
    widest = max(1, query.shape[0] * query.shape[1] * min(num_keys, key_block))
    query_block = max(64, _TILE_ELEMENTS // widest)
    for q0, q1 in blocks(query.shape[2], query_block):
        for k0, k1 in blocks(num_keys, key_block):
            visible = None
            if query_position is not None and key_position is not None:
                visible = key_position[:, None, None, k0:k1] <= query_position[:, None, q0:q1, None]
            yield Tile(slice(q0, q1), slice(k0, k1), visible)


_dense_attention = register_attention("dense_attention", "", _dense_tiles)
_dense_causal_attention = register_attention(
    "dense_causal_attention", "Tensor query_position, Tensor key_position", _dense_tiles
)
# Keys that all heads share are many heads of few queries on one matrix: best left to its two matrix products.
_dense_shared_attention = register_attention("dense_shared_attention", "", _dense_tiles)


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | None = None,
    query_position: Tensor | None = None,
    key_position: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | int | None = None,
    return_lse: bool = False,
) -> Any:  # Tensor, or with return_lse a pair of them
    """Softmax attention of every query to every visible key, by blocks.

    Args:
        query: ``[B, H, T, D]``.
        key: ``[B, H, S, D]``, or ``[B, 1, S, D]`` shared by all heads.
        value: as ``key``.
        key_mask: bool ``[B, S]``, True where a key may be seen.
        query_position: int64 ``[T]`` or ``[B, T]``; with ``key_position``, a query sees only keys at positions up to
            its own (causal).
        key_position: int64 ``[S]`` or ``[B, S]``.
        scale: factor of the scores, ``D ** -0.5`` by default.
        dropout_p: probability with which each (query, key) pair is dropped after the softmax.
        dropout_seed: 0-dim int64 tensor that fixes the dropped pairs (by row of ``query`` and of ``key``).
        return_lse: also return the log-sum-exp of the scores (before dropout; differentiable), for ``merge``.

    Returns:
        ``out [B, H, T, D]`` with the strides of ``query``, and ``lse [B, H, T]``. A query that may see nothing gives
        zeros and -inf.

    Raises:
        ValueError: on shapes or dtypes that do not fit, naming the argument.
    """
    query, key, value = autocast(query, key, value)
    check_attention_inputs("dense_attention", query, key, value, key_mask)
    check_devices("dense_attention", query=query, query_position=query_position, key_position=key_position)
    if key.shape[1] not in (1, query.shape[1]):
        raise ValueError(f"dense_attention: key has {key.shape[1]} heads, wanted 1 or {query.shape[1]}")
    if (query_position is None) != (key_position is None):
        raise ValueError("dense_attention: query_position and key_position go together (both given = causal)")
    for label, position, tokens in (
        ("query_position", query_position, query),
        ("key_position", key_position, key),
    ):
        if position is not None and list(position.shape) not in ([tokens.shape[2]], [tokens.shape[0], tokens.shape[2]]):
            wanted = f"[{tokens.shape[2]}] or [{tokens.shape[0]}, {tokens.shape[2]}]"
            raise ValueError(f"dense_attention: {label} must be {wanted}, got {list(position.shape)}")
    seed = check_dropout("dense_attention", dropout_p, dropout_seed, query.device)
    scale = query.shape[3] ** -0.5 if scale is None else float(scale)
    inputs = (query, key, value, key_mask, seed, scale, dropout_p)
    if query_position is not None and key_position is not None:
        out, lse = _dense_causal_attention(*inputs, torch.atleast_2d(query_position), torch.atleast_2d(key_position))
    elif key.shape[1] == 1:
        out, lse = _dense_shared_attention(*inputs)
    else:
        out, lse = _dense_attention(*inputs)
    return (out, lse) if return_lse else out
