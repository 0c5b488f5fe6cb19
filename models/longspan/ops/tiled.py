"""What every attention operator of the zoo shares: an exact softmax over tiles of (queries x keys).

    out[t] = sum_s p[t, s] value[s],   p[t, s] = exp(score[t, s] - lse[t]),   score[t, s] = scale * query[t] . key[s]
    lse[t] = log sum_s exp(score[t, s]), over the keys s that query t may see

B batch, H heads, T queries, S keys, D head size. An operator is defined by its *tiles*: which blocks of queries meet
which blocks of keys, and which pairs within them are visible. ``register_attention`` makes of that a torch operator
``longspan::<name>`` with this reference on every device, shapes for ``torch.compile`` and a backward pass that
recomputes the scores from ``lse`` (as in Dao et al. 2022, algorithm 4): memory is linear in the length, whatever the
tiles are. ``csrc/`` adds faster kernels for the same schemas.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.ops.dropout import keep_mask
from longspan.ops.library import LIBRARY, define_reference
from longspan.ops.transfers import put_integers

QUERY_BLOCK = 128
KEY_BLOCK = 1024


@dataclass
class Tile:
    """Queries ``rows`` meet keys ``columns`` in ``heads``; a pair that stands in several tiles counts that often."""

    rows: slice | Tensor
    columns: slice | Tensor
    visible: Tensor | None = None  # bool [rows, columns] or [B, 1, rows, columns]; None: all
    heads: Sequence[int] | None = None  # None: all


Tiles = Callable[..., Iterator[Tile]]  # (query, key, *arguments of the operator) -> tiles


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Softmax statistics and sums: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def blocks(length: int, size: int) -> Iterator[tuple[int, int]]:
    """``[begin, end)`` blocks of at most ``size`` that cover ``[0, length)``."""
    for begin in range(0, length, size):
        yield begin, min(begin + size, length)


def _indices(rows: slice | Tensor, length: int, device) -> Tensor:
    return torch.arange(length, device=device)[rows] if isinstance(rows, slice) else rows


@dataclass
class _Block:
    """One tile of one call, in the dtype of the statistics: views or copies of its rows, and its masks."""

    query: Tensor  # [B, h, t, D]
    key: Tensor  # [B, h or 1, s, D]
    value: Tensor
    at_rows: tuple  # index of [B, H, T] tensors
    at_columns: tuple  # index of [B, H or 1, S] tensors
    scores: Tensor  # [B, h, t, s], -inf where not visible
    keep: Tensor | float  # dropout: 1 / (1 - p) where kept, 0 where dropped


def _blocks_of(tiles, query, key, value, key_mask, seed, scale, dropout_p) -> Iterator[_Block]:
    dtype = statistics_dtype(query.dtype)
    num_heads = query.shape[1]
    for tile in tiles:
        heads = slice(None) if tile.heads is None else put_integers(list(tile.heads), query.device)
        at_rows = (slice(None), heads, tile.rows) if isinstance(tile.rows, slice) or tile.heads is None else None
        if at_rows is None:
            raise ValueError("a tile of some heads takes its rows as a slice")
        at_columns = (slice(None), slice(None) if key.shape[1] == 1 else heads, tile.columns)
        q, k = query[at_rows].to(dtype), key[at_columns].to(dtype)
        v = k if value is key else value[at_columns].to(dtype)
        scores = (q @ k.mT).mul_(scale)
        if tile.visible is not None:
            scores.masked_fill_(~tile.visible, -torch.inf)
        if key_mask is not None:
            scores.masked_fill_(~key_mask[:, None, None, tile.columns], -torch.inf)
        keep: Tensor | float = 1.0
        if seed is not None:
            head_indices = range(num_heads) if tile.heads is None else tile.heads
            rows = _indices(tile.rows, query.shape[2], query.device)
            columns = _indices(tile.columns, key.shape[2], query.device)
            kept = keep_mask(seed, dropout_p, query.shape[0], list(head_indices), rows, columns)
            keep = kept.to(dtype) / (1.0 - dropout_p)
        yield _Block(q, k, v, at_rows, at_columns, scores, keep)


def _finite(lse: Tensor) -> Tensor:
    """-inf (nothing visible) -> 0, so that exp(-inf - lse) is 0 and not NaN."""
    return lse.masked_fill(lse == -torch.inf, 0.0)


def tiled_attention(tiles, query, key, value, key_mask, seed, scale, dropout_p) -> tuple[Tensor, Tensor]:
    """The definition: ``out [B, H, T, D]`` with the strides of ``query``, ``lse [B, H, T]``. Online over tiles."""
    dtype = statistics_dtype(query.dtype)
    out = torch.zeros_like(query, dtype=dtype)
    lse = torch.full(query.shape[:3], -torch.inf, dtype=dtype, device=query.device)
    for block in _blocks_of(tiles, query, key, value, key_mask, seed, scale, dropout_p):
        before = lse[block.at_rows]
        after = torch.logaddexp(before, block.scores.logsumexp(-1))
        shift = _finite(after)[..., None]
        p = torch.exp(block.scores - shift) * block.keep
        out[block.at_rows] = out[block.at_rows] * torch.exp(before[..., None] - shift) + p @ block.value
        lse[block.at_rows] = after
    return torch.empty_like(query).copy_(out), lse


def tiled_attention_backward(
    tiles, grad_out, grad_lse, query, key, value, out, lse, key_mask, seed, scale, dropout_p
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; ``grad_lse`` may be None."""
    dtype = statistics_dtype(query.dtype)
    grad_out = grad_out.to(dtype)
    delta = (grad_out * out.to(dtype)).sum(-1)  # [B, H, T]: sum over keys of p * dp
    if grad_lse is not None:
        delta -= grad_lse
    dq, dk, dv = (torch.zeros_like(tensor, dtype=dtype) for tensor in (query, key, value))

    def add(grad: Tensor, at: tuple, term: Tensor) -> None:
        grad[at] = grad[at] + (term.sum(1, keepdim=True) if grad.shape[1] == 1 else term)

    for block in _blocks_of(tiles, query, key, value, key_mask, seed, scale, dropout_p):
        p = torch.exp(block.scores - _finite(lse[block.at_rows])[..., None])
        d_out = grad_out[block.at_rows]
        dp = (d_out @ block.value.mT) * block.keep
        ds = p * (dp - delta[block.at_rows][..., None]) * scale
        add(dv, block.at_columns, (p * block.keep).mT @ d_out)
        add(dk, block.at_columns, ds.mT @ block.query)
        dq[block.at_rows] = dq[block.at_rows] + ds @ block.key
    return tuple(torch.empty_like(like).copy_(grad) for like, grad in ((query, dq), (key, dk), (value, dv)))  # type: ignore[return-value]


def register_attention(name: str, arguments: str, tiles: Tiles) -> Any:
    """Define ``longspan::<name>`` and ``longspan::<name>_backward`` for the attention that ``tiles`` describes.

    Args:
        name: operator name.
        arguments: the operator's own arguments as in a torch schema, e.g. ``"int[] left, int[] right"``, or "".
        tiles: ``tiles(query, key, *own arguments)`` -> iterator of ``Tile``.

    Returns:
        The overload ``(query, key, value, key_mask, dropout_seed, scale, dropout_p, *own) -> (out, lse)``.
    """
    common = "Tensor query, Tensor key, Tensor value"
    options = "Tensor? key_mask, Tensor? dropout_seed, float scale, float dropout_p"
    options = f"{options}, {arguments}" if arguments else options
    LIBRARY.define(f"{name}({common}, {options}) -> (Tensor out, Tensor lse)")
    LIBRARY.define(
        f"{name}_backward(Tensor grad_out, Tensor? grad_lse, {common}, Tensor out, Tensor lse, {options})"
        " -> (Tensor, Tensor, Tensor)"
    )

    def reference(query, key, value, key_mask, seed, scale, dropout_p, *own):
        return tiled_attention(tiles(query, key, *own), query, key, value, key_mask, seed, scale, dropout_p)

    def reference_backward(grad_out, grad_lse, query, key, value, out, lse, key_mask, seed, scale, dropout_p, *own):
        return tiled_attention_backward(
            tiles(query, key, *own),
            grad_out, grad_lse, query, key, value, out, lse, key_mask, seed, scale, dropout_p,
        )  # fmt: skip

    def fake(query, key, value, key_mask, seed, scale, dropout_p, *own):
        lse = query.new_empty(query.shape[:3], dtype=statistics_dtype(query.dtype))
        return torch.empty_like(query), lse

    def fake_backward(grad_out, grad_lse, query, key, value, *rest):
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    define_reference(name, reference)
    define_reference(f"{name}_backward", reference_backward)
    torch.library.register_fake(f"longspan::{name}", fake, lib=LIBRARY)
    torch.library.register_fake(f"longspan::{name}_backward", fake_backward, lib=LIBRARY)
    backward_op = getattr(torch.ops.longspan, f"{name}_backward").default

    def setup_context(ctx, inputs, output):
        query, key, value, key_mask, seed, scale, dropout_p, *own = inputs
        ctx.save_for_backward(query, key, value, *output, key_mask, seed)
        ctx.options = (scale, dropout_p, *own)
        ctx.set_materialize_grads(False)

    def backward(ctx, grad_out, grad_lse):
        query, key, value, out, lse, key_mask, seed = ctx.saved_tensors
        unused = (None,) * (2 + len(ctx.options))
        if grad_out is None and grad_lse is None:
            return None, None, None, *unused
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grads = backward_op(grad_out, grad_lse, query, key, value, out, lse, key_mask, seed, *ctx.options)
        return *grads, *unused

    def second_derivative(ctx, *grads):
        raise NotImplementedError(f"longspan::{name}: second derivatives are not implemented")

    torch.library.register_autograd(f"longspan::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_autograd(f"longspan::{name}_backward", second_derivative, lib=LIBRARY)
    return getattr(torch.ops.longspan, name).default


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What ``torch.autocast`` has products of ``x`` computed in; None where it is off, for float64, and on "meta"."""
    device_type = x.device.type
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return None if x.dtype == torch.float64 else torch.get_autocast_dtype(device_type)


def autocast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under ``torch.autocast`` attention computes in the autocast dtype, as matrix products do."""
    dtype = autocast_dtype(query)
    return (query, key, value) if dtype is None else (query.to(dtype), key.to(dtype), value.to(dtype))
