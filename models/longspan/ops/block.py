"""Block-local attention: every query of a block sees its own block and its neighbours, whole.

B batch, H heads, T tokens, D head size. Reformer's local layers (Kitaev et al. 2020) and Longformer's released
no-overlap variant; LSH attention is a sort, this tile, and a merge.
"""

from typing import Any

import torch
from torch import Tensor

from longspan.ops.checks import check_attention_inputs, check_dropout, check_integer, check_same_heads
from longspan.ops.tiled import Tile, autocast, blocks, register_attention


def _block_tiles(query: Tensor, key: Tensor, size: int, before: int, after: int, causal: bool, wrap: bool):
    length = query.shape[2]
    num_blocks = -(-length // size)
    for index, (q0, q1) in enumerate(blocks(length, size)):
        for offset in range(-before, after + 1):
            neighbour = index + offset
            if wrap:  # an offset beyond the number of blocks is the block itself
                neighbour = neighbour % num_blocks if abs(offset) <= num_blocks else index
            if not 0 <= neighbour < num_blocks or (causal and neighbour > index):
                continue
            k0, k1 = neighbour * size, min((neighbour + 1) * size, length)
            visible = None
            if causal and neighbour == index:
                visible = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool, device=query.device).tril()
            yield Tile(slice(q0, q1), slice(k0, k1), visible)


_block_attention = register_attention(
    "block_attention", "int block_size, int before, int after, bool causal, bool wrap", _block_tiles
)


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_size: int,
    before: int = 1,
    after: int = 0,
    causal: bool = False,
    wrap: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | int | None = None,
    return_lse: bool = False,
) -> Any:  # Tensor, or with return_lse a pair of them
    """Softmax attention to whole neighbouring blocks, linear in the length.

    Args:
        query: ``[B, H, T, D]``; any T, the last block may be short.
        key: ``[B, H, T, D]``.
        value: ``[B, H, T, D]``.
        block_size: tokens of a block.
        before: how many blocks before its own a query sees.
        after: how many blocks after its own a query sees.
        causal: never see a later position.
        wrap: count neighbours modulo the number of blocks, so that the first block sees the last, as Reformer's local
            layers do. A block that is met twice counts twice.
        key_mask: bool ``[B, T]``, True where a key may be seen.
        scale: factor of the scores, ``D ** -0.5`` by default.
        dropout_p: probability with which each (query, key) pair is dropped after the softmax.
        dropout_seed: 0-dim int64 tensor that fixes the dropped pairs.
        return_lse: also return the log-sum-exp of the scores (before dropout; differentiable), for ``merge``.

    Returns:
        ``out [B, H, T, D]``, and ``lse [B, H, T]``. A query that may see nothing gives zeros and -inf.

    Raises:
        ValueError: on shapes, dtypes or block numbers that do not fit, naming the argument.
    """
    query, key, value = autocast(query, key, value)
    check_attention_inputs("block_attention", query, key, value, key_mask)
    check_same_heads("block_attention", query, key)
    if key.shape[2] != query.shape[2]:
        raise ValueError(f"block_attention: {query.shape[2]} queries and {key.shape[2]} keys must be the same tokens")
    check_integer("block_attention", "block_size", block_size, 1)
    check_integer("block_attention", "before", before, 0)
    check_integer("block_attention", "after", after, 0)
    seed = check_dropout("block_attention", dropout_p, dropout_seed, query.device)
    scale = query.shape[3] ** -0.5 if scale is None else float(scale)
    out, lse = _block_attention(
        query, key, value, key_mask, seed, scale, dropout_p, block_size, before, after, causal, wrap
    )
    return (out, lse) if return_lse else out
