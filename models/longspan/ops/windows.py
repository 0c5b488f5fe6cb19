"""The shared reference of attention in sorted order: queries and keys of one tensor meet where sorting brought them.

    out[i] = sum_j N_ij exp(s_ij - lse[i]) v_j,   s_ij = x_i . k_j,   k_j = x_j / sqrt(|x_j|^2 + D 1e-6)
    lse[i] = log sum_j N_ij exp(s_ij)

Each hash round puts the tokens in an order of its own; in each, queries see keys of nearby slots. N_ij counts how
often query i finds key j, over all rounds: one softmax over the multiset union of its windows (Kitaev et al. 2020,
equations 5 and 6). A token never counts itself; one that finds nothing takes its own value, with lse -inf.

B batch, H heads, R rounds, T tokens, D head size; G groups of c queries and W keys each.

An operator is defined by its *windows*: which slots of queries meet which slots of keys. ``register_sorted_attention``
makes of that a torch operator with this reference on every device, shapes for ``torch.compile`` and a backward pass
that recomputes the scores from ``lse``: nothing of size T x T, and no scores of a whole round, are ever held.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.ops.dropout import keep
from longspan.ops.library import LIBRARY, define_reference
from longspan.ops.tiled import statistics_dtype

SCORES = 1 << 20  # scores that a block of windows holds at a time, for each head
NOBODY = -1  # a slot outside of everything


@dataclass
class Windows:
    """Slots count through all rounds: slot ``s`` of round ``r`` is ``r * T + s``."""

    queries: Tensor  # int64 [G, c], NOBODY where there is none
    keys: Tensor  # int64 [G, W], NOBODY where there is none
    visible: Callable[[Tensor, Tensor], Tensor] | None = None  # (query slots [.., c, 1], key slots [.., 1, W]) -> bool
    causal: bool = False
    copies: Callable[..., Tensor] | None = None  # deduplicate: (query, key positions [B, H, G, c | W]) -> N_ij


SortedWindows = Callable[..., Iterator[Windows]]  # (order, first, *arguments of the operator) -> windows


def unit_keys(x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of unit length and the factor that made them so: ``x [.., D]`` -> ``[.., D]``, ``[.., 1]``."""
    factor = torch.rsqrt((x * x).sum(-1, keepdim=True) + x.shape[-1] * 1e-6)
    return x * factor, factor


@dataclass
class _Block:
    """Windows with their rows, in the dtype of the statistics. Positions are T where there is nobody."""

    at_queries: Tensor  # [B, H, G * c] positions
    at_keys: Tensor  # [B, H, G * W]
    query: Tensor  # [B, H, G, c, D]
    key: Tensor  # [B, H, G, W, D]
    value: Tensor
    scores: Tensor  # [B, H, G, c, W], -inf where not visible
    keep: Tensor | float  # dropout: 1 / (1 - p) where kept, 0 where dropped


def _take(rows: Tensor, at: Tensor) -> Tensor:
    """``rows [B, H, T + 1, D]`` at ``[B, H, N]`` -> ``[B, H, N, D]``."""
    return rows.gather(2, at[..., None].expand(*at.shape, rows.shape[3]))


def _add(rows: Tensor, at: Tensor, terms: Tensor) -> None:
    rows.scatter_add_(2, at[..., None].expand(*at.shape, rows.shape[3]), terms)


def _blocks_of(windows, query, key, value, order, key_mask, seed, dropout_p) -> Iterator[_Block]:
    """``query, key, value [B, H, T + 1, D]``, the last row for nobody."""
    B, H, T = order.shape[0], order.shape[1], order.shape[3]
    position = F.pad(order.to(torch.int64).flatten(2), (0, 1), value=T)  # [B, H, R * T + 1]; slot -1: nobody
    for window in windows:
        G, c = window.queries.shape
        at_queries, at_keys = (position[:, :, slots] for slots in (window.queries, window.keys))  # [B, H, G, c | W]
        q, k = at_queries[..., None], at_keys[..., None, :]
        visible = (k < q) if window.causal else (k != q)
        visible = visible & (k < T) & (q < T)
        if key_mask is not None:
            seen = F.pad(key_mask, (0, 1))[:, None].expand(B, H, T + 1)
            visible &= seen.gather(2, at_keys.flatten(2)).view_as(at_keys)[..., None, :]
        if window.visible is not None:
            visible &= window.visible(window.queries[..., None], window.keys[..., None, :])
        flat_queries, flat_keys = at_queries.flatten(2), at_keys.flatten(2)
        rows = _take(query, flat_queries).unflatten(2, (G, c))
        columns, values = (_take(x, flat_keys).unflatten(2, (G, -1)) for x in (key, value))
        scores = rows @ columns.mT
        if window.copies is not None:
            scores -= window.copies(at_queries, at_keys).clamp(min=1).to(scores.dtype).log()
        scores.masked_fill_(~visible, -torch.inf)
        kept: Tensor | float = 1.0
        if seed is not None:
            batch = torch.arange(B, device=order.device)[:, None, None, None, None]
            heads = torch.arange(H, device=order.device)[:, None, None, None]
            kept = keep(seed, dropout_p, batch, heads, q, k).to(scores.dtype) / (1.0 - dropout_p)
        yield _Block(flat_queries, flat_keys, rows, columns, values, scores, kept)


def _padded(x: Tensor) -> Tensor:
    """One row more, in the dtype of the statistics: what nobody reads and writes."""
    return F.pad(x.to(statistics_dtype(x.dtype)), (0, 0, 0, 1))


def sorted_attention(windows, query_key, value, order, key_mask, seed, dropout_p) -> tuple[Tensor, Tensor]:
    """The definition: ``out [B, H, T, D]`` with the strides of ``query_key``, ``lse [B, H, T]``. Online."""
    x, values = _padded(query_key), _padded(value)
    out = torch.zeros_like(x)
    lse = x.new_full(x.shape[:3], -torch.inf)
    for block in _blocks_of(windows, x, unit_keys(x)[0], values, order, key_mask, seed, dropout_p):
        G, c = block.scores.shape[2:4]
        before = lse.gather(2, block.at_queries)
        after = torch.logaddexp(before, block.scores.logsumexp(-1).flatten(2))
        shift = after.masked_fill(after == -torch.inf, 0.0)
        p = torch.exp(block.scores - shift.view(*shift.shape[:2], G, c, 1)) * block.keep
        rows = _take(out, block.at_queries) * torch.exp(before - shift)[..., None] + (p @ block.value).flatten(2, 3)
        out.scatter_(2, block.at_queries[..., None].expand_as(rows), rows)
        lse.scatter_(2, block.at_queries, after)
    out, lse = out[:, :, :-1], lse[:, :, :-1]
    out = torch.where(lse[..., None] == -torch.inf, value.to(out.dtype), out)
    return torch.empty_like(query_key).copy_(out), lse.contiguous()


def sorted_attention_backward(
    windows, grad_out, grad_lse, query_key, value, out, lse, order, key_mask, seed, dropout_p
) -> tuple[Tensor, Tensor]:
    """Gradients of query_key and value; ``grad_lse`` may be None."""
    x, values, d_out = _padded(query_key), _padded(value), _padded(grad_out)
    keys, factor = unit_keys(x)
    delta = (d_out[:, :, :-1] * out.to(d_out.dtype)).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    alone = lse == -torch.inf
    delta, shift = F.pad(delta, (0, 1)), F.pad(lse.masked_fill(alone, 0.0), (0, 1))
    dq, dk, dv = (torch.zeros_like(x) for _ in range(3))
    for block in _blocks_of(windows, x, keys, values, order, key_mask, seed, dropout_p):
        shape = (*block.scores.shape[:4], 1)
        p = torch.exp(block.scores - shift.gather(2, block.at_queries).view(shape))
        rows = _take(d_out, block.at_queries).view(*shape[:4], d_out.shape[3])
        dp = (rows @ block.value.mT) * block.keep
        ds = p * (dp - delta.gather(2, block.at_queries).view(shape))
        _add(dq, block.at_queries, (ds @ block.key).flatten(2, 3))
        _add(dk, block.at_keys, (ds.mT @ block.query).flatten(2, 3))
        _add(dv, block.at_keys, ((p * block.keep).mT @ rows).flatten(2, 3))
    dx = dq + factor * (dk - keys * (keys * dk).sum(-1, keepdim=True))
    dv = dv[:, :, :-1] + torch.where(alone[..., None], d_out[:, :, :-1], 0.0)
    return torch.empty_like(query_key).copy_(dx[:, :, :-1]), torch.empty_like(value).copy_(dv)


def register_sorted_attention(name: str, arguments: str, windows: SortedWindows) -> Any:
    """Define ``longspan::<name>`` and ``longspan::<name>_backward`` for the attention that ``windows`` describes.

    Args:
        name: operator name.
        arguments: the operator's own arguments as in a torch schema, e.g. ``"int window"``.
        windows: ``windows(order, first, *own arguments)`` -> iterator of ``Windows``.

    Returns:
        The overload ``(query_key, value, order, first, key_mask, dropout_seed, dropout_p, *own) -> (out, lse)``, with
        ``order`` and ``first`` as ``longspan::lsh_order`` makes them.
    """
    inputs = "Tensor query_key, Tensor value"
    options = f"Tensor order, Tensor first, Tensor? key_mask, Tensor? dropout_seed, float dropout_p, {arguments}"
    LIBRARY.define(f"{name}({inputs}, {options}) -> (Tensor out, Tensor lse)")
    LIBRARY.define(
        f"{name}_backward(Tensor grad_out, Tensor? grad_lse, {inputs}, Tensor out, Tensor lse, {options})"
        " -> (Tensor, Tensor)"
    )

    def reference(query_key, value, order, first, key_mask, seed, dropout_p, *own):
        return sorted_attention(windows(order, first, *own), query_key, value, order, key_mask, seed, dropout_p)

    def reference_backward(
        grad_out, grad_lse, query_key, value, out, lse, order, first, key_mask, seed, dropout_p, *own
    ):
        return sorted_attention_backward(
            windows(order, first, *own),
            grad_out, grad_lse, query_key, value, out, lse, order, key_mask, seed, dropout_p,
        )  # fmt: skip

    def fake(query_key, value, *rest):
        lse = query_key.new_empty(query_key.shape[:3], dtype=statistics_dtype(query_key.dtype))
        return torch.empty_like(query_key), lse

    def fake_backward(grad_out, grad_lse, query_key, value, *rest):
        return torch.empty_like(query_key), torch.empty_like(value)

    define_reference(name, reference)
    define_reference(f"{name}_backward", reference_backward)
    torch.library.register_fake(f"longspan::{name}", fake, lib=LIBRARY)
    torch.library.register_fake(f"longspan::{name}_backward", fake_backward, lib=LIBRARY)
    backward_op = getattr(torch.ops.longspan, f"{name}_backward").default

    def setup_context(ctx, inputs, output):
        query_key, value, order, first, key_mask, seed, *own = inputs
        ctx.save_for_backward(query_key, value, *output, order, first, key_mask, seed)
        ctx.options = tuple(own)
        ctx.set_materialize_grads(False)

    def backward(ctx, grad_out, grad_lse):
        query_key, value, out, lse, *given = ctx.saved_tensors
        unused = (None,) * (4 + len(ctx.options))
        if grad_out is None and grad_lse is None:
            return None, None, *unused
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grads = backward_op(grad_out, grad_lse, query_key, value, out, lse, *given, *ctx.options)
        return *grads, *unused

    def second_derivative(ctx, *grads):
        raise NotImplementedError(f"longspan::{name}: second derivatives are not implemented")

    torch.library.register_autograd(f"longspan::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_autograd(f"longspan::{name}_backward", second_derivative, lib=LIBRARY)
    return getattr(torch.ops.longspan, name).default
