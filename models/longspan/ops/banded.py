"""Banded (sliding-window) attention: each query sees the keys within a window of its own position.

Query t of T stands at key position ``t + S - T`` of S (earlier keys are a cache) and sees the keys

    t + S - T + dilation * o,   o = -left .. right,   inside [0, S)

B batch, H heads, T queries, S keys, D head size, W = left + right + 1 columns of the band.
Windows and dilations may differ per head. Beltagy et al. 2020 (Longformer), section 3.1; Child et al. 2019.
"""

from typing import Any

import torch
from torch import Tensor

from longspan.ops.checks import check_attention_inputs, check_dropout, check_same_heads, parse_band
from longspan.ops.tiled import KEY_BLOCK, QUERY_BLOCK, Tile, autocast, blocks, register_attention, statistics_dtype


def _banded_tiles(query: Tensor, key: Tensor, left: list[int], right: list[int], dilation: list[int]):
    """A dilated band is ``dilation`` plain bands, one over each residue class of positions."""
    cached = key.shape[2] - query.shape[2]
    bands = list(zip(left, right, dilation, strict=True))
    for band in dict.fromkeys(bands):
        heads = [head for head, other in enumerate(bands) if other == band]
        before, after, step = band
        step = min(step, max(1, key.shape[2]))  # a longer step than the sequence reaches nobody, like this one
        for residue in range(step):
            first = (residue - cached) % step  # the first query of this class, at place (first + cached) // step
            num_queries = len(range(first, query.shape[2], step))
            num_keys = len(range(residue, key.shape[2], step))
            shift = (first + cached) // step
            for q0, q1 in blocks(num_queries, QUERY_BLOCK):
                lo, hi = max(0, q0 + shift - before), min(num_keys, q1 + shift + after)
                for k0, k1 in blocks(hi - lo, KEY_BLOCK):
                    place = torch.arange(q0 + shift, q1 + shift, device=query.device)[:, None]
                    offset = torch.arange(lo + k0, lo + k1, device=query.device) - place
                    yield Tile(
                        rows=slice(first + q0 * step, first + q1 * step, step),
                        columns=slice(residue + (lo + k0) * step, residue + (lo + k1) * step, step),
                        visible=(offset >= -before) & (offset <= after),
                        heads=None if len(heads) == len(bands) else heads,
                    )


_banded_attention = register_attention("banded_attention", "int[] left, int[] right, int[] dilation", _banded_tiles)


def _check(name: str, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> None:
    check_attention_inputs(name, query, key, value, key_mask)
    check_same_heads(name, query, key)
    if key.shape[2] < query.shape[2]:
        raise ValueError(
            f"{name}: {key.shape[2]} keys for {query.shape[2]} queries; the queries are the last of the keys"
        )


def banded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window,
    dilation=1,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | int | None = None,
    return_lse: bool = False,
) -> Any:  # Tensor, or with return_lse a pair of them
    """Softmax attention inside a band, in time and memory linear in the length.

    Args:
        query: ``[B, H, T, D]``. Any strides; ``out`` gets the same, so ``[B, T, H, D]`` storage needs no copies.
        key: ``[B, H, S, D]`` with ``S >= T``; query t stands at key position ``t + S - T``.
        value: ``[B, H, S, D]``.
        window: ``(left, right)``, or one such pair per head: how many steps of the dilation a query looks back and
            ahead. 0 is its own position only, right = -1 everything before it, None no limit.
        dilation: step between visible keys, an int or one per head.
        key_mask: bool ``[B, S]``, True where a key may be seen.
        scale: factor of the scores, ``D ** -0.5`` by default.
        dropout_p: probability with which each (query, key) pair is dropped after the softmax.
        dropout_seed: 0-dim int64 tensor that fixes the dropped pairs; wanted when ``dropout_p > 0``.
        return_lse: also return the log-sum-exp of the scores (before dropout; differentiable), for ``merge``.

    Returns:
        ``out [B, H, T, D]``, and ``lse [B, H, T]`` in float32 (float64 for float64). A query that may see nothing
        gives zeros and -inf.

    Raises:
        ValueError: on shapes, dtypes or windows that do not fit, naming the argument.
    """
    query, key, value = autocast(query, key, value)
    _check("banded_attention", query, key, value, key_mask)
    left, right, step = parse_band("banded_attention", window, dilation, query.shape[1])
    seed = check_dropout("banded_attention", dropout_p, dropout_seed, query.device)
    scale = query.shape[3] ** -0.5 if scale is None else float(scale)
    out, lse = _banded_attention(query, key, value, key_mask, seed, scale, dropout_p, left, right, step)
    return (out, lse) if return_lse else out


def banded_scores(
    query: Tensor,
    key: Tensor,
    *,
    window,
    dilation=1,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The scores themselves, ``[B, H, T, W]``: column c of query t is the key ``dilation * (c - left)`` from its own.

    For inspection and tests: it holds all scores (which ``banded_attention`` never does) and is plain PyTorch.
    W is the widest head's ``left + right + 1``; the columns of every head are counted from the widest ``left``.
    Out of range, masked and outside the head's own window: -inf. Windows must be finite.

    Args:
        query: ``[B, H, T, D]``.
        key: ``[B, H, S, D]`` with ``S >= T``.
        window: as for ``banded_attention``; None is taken as the length.
        dilation: as for ``banded_attention``.
        key_mask: bool ``[B, S]``, True where a key may be seen.
        scale: factor of the scores, ``D ** -0.5`` by default.
    """
    _check("banded_scores", query, key, key, key_mask)
    left, right, step = parse_band("banded_scores", window, dilation, query.shape[1])
    num_queries, num_keys = query.shape[2], key.shape[2]
    left = [min(side, num_keys) for side in left]
    right = [min(side, num_keys) for side in right]
    factor = query.shape[3] ** -0.5 if scale is None else float(scale)
    dtype = statistics_dtype(query.dtype)
    columns = torch.arange(-max(left, default=0), max(right, default=0) + 1, device=query.device)  # [W]
    place = torch.arange(num_queries, device=query.device) + num_keys - num_queries
    per_head = []
    for head, (before, after, stride) in enumerate(zip(left, right, step, strict=True)):
        index = place[:, None] + stride * columns  # [T, W]
        seen = (columns >= -before) & (columns <= after) & (index >= 0) & (index < num_keys)
        index = index.clamp(0, max(0, num_keys - 1))
        neighbours = key[:, head].to(dtype)[:, index]  # [B, T, W, D]
        scores = torch.einsum("btd,btwd->btw", query[:, head].to(dtype), neighbours) * factor
        visible = seen if key_mask is None else seen & key_mask[:, index]
        per_head.append(scores.masked_fill(~visible, -torch.inf))
    if not per_head:
        return query.new_zeros(*query.shape[:3], len(columns), dtype=dtype)
    return torch.stack(per_head, 1)
