"""Attention with a learned, soft span per head (Sukhbaatar et al. 2019, "Adaptive attention span in transformers").

Query t of T stands at key position ``t + S - T`` of S (earlier keys are a cache) and sees the keys before it, the
nearest at distance x = 0, through a mask that ends in a ramp:

    m(x) = min(max((ramp + span - x) / ramp, 0), 1)                               (equations 4 and 5)
    score[t, s] = scale * (query[t] . key[s] + query[t] . position_key[x])
    out[t] = sum_s m(x) exp(score[t, s] - lse[t]) value[s],   lse[t] = log sum_s m(x) exp(score[t, s])

B batch, H heads, T queries, S keys, D head size, P rows of ``position_key``. Work follows the span of every head: keys
out of its reach are not looked at. Spans are differentiable: dm/dspan = 1 / ramp for span <= x <= span + ramp, both
ends included, whatever the weight there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.ops.checks import (
    FLOATING,
    check_attention_inputs,
    check_devices,
    check_dropout,
    check_integer,
    check_same_heads,
)
from longspan.ops.dropout import keep_mask
from longspan.ops.library import LIBRARY, define_reference
from longspan.ops.tiled import KEY_BLOCK, QUERY_BLOCK, autocast, autocast_dtype, blocks, statistics_dtype

LARGEST_EXPONENT = 80.0  # a key with weight 0 at the end of the ramp may score anything: its slope stays finite


def span_reach(span: Tensor, *, max_span: int, ramp: float) -> Tensor:
    """How many keys a head looks at, int64 of the shape of ``span``: distances 0 up to ``span + ramp``.

    The last of them may have weight 0: it still has a slope.
    """
    return (torch.floor(span.detach().double() + ramp) + 1).nan_to_num(0.0).clamp(0, max_span).to(torch.int64)


def soft_mask(span: Tensor, distance: Tensor, *, ramp: float) -> Tensor:
    """m(x), of the shape that ``span`` and ``distance`` broadcast to; differentiable in ``span``."""
    return ((span - distance) / ramp + 1.0).clamp(0.0, 1.0)


@dataclass
class _Options:
    scale: float
    dropout_p: float
    max_span: int
    ramp: float
    zero_cache: bool
    bidirectional: bool

    def distance(self, offset: Tensor) -> Tensor:
        """Of a key that stands ``offset`` tokens after the query; negative: not seen."""
        return offset.abs() if self.bidirectional else -1 - offset

    def position_row(self, offset: Tensor, rows: int) -> Tensor:
        """The row of ``position_key`` for each offset, and any row where there is none."""
        signed = self.bidirectional and rows == 2 * self.max_span - 1
        row = offset + self.max_span - 1 if signed else self.distance(offset)
        return row.clamp(0, rows - 1)


@dataclass
class _Block:
    """Some queries of one head and some of its keys, in the dtype of the statistics."""

    head: int
    rows: slice  # queries
    columns: slice  # keys; negative places are zero cache
    query: Tensor  # [B, t, D]
    key: Tensor  # [B, s, D]
    value: Tensor
    positions: Tensor  # rows of position_key that the block can reach, by offset [n]
    position_key: Tensor  # [n, D]
    at: Tensor  # int64 [t, s]: which of them a pair takes
    weight: Tensor  # m(x) [t, s] or [B, t, s], 0 where not visible
    slope: Tensor  # bool, as weight: on the ramp, ends included
    scores: Tensor  # [B, t, s]
    keep: Tensor | float  # dropout: 1 / (1 - p) where kept, 0 where dropped

    def exp(self, lse: Tensor) -> Tensor:
        """Weights but for the mask, ``[B, t, s]``: the exponential of score - lse; 0 in rows that see nothing."""
        shift = torch.where(lse == -torch.inf, torch.inf, lse)[..., None]
        return torch.exp((self.scores - shift).clamp(max=LARGEST_EXPONENT))


def _with_zero_cache(rows: Tensor, begin: int, end: int) -> Tensor:
    """Rows ``begin .. end`` of ``[B, S, D]``; rows before 0 are zeros."""
    return F.pad(rows[:, max(begin, 0) : max(end, 0)], (0, 0, min(0, end) - min(0, begin), 0))


def _blocks_of(query, key, value, position_key, span, key_mask, seed, options: _Options) -> Iterator[_Block]:
    dtype = statistics_dtype(query.dtype)
    batch, num_heads, num_queries, _ = query.shape
    num_keys, num_rows = key.shape[2], position_key.shape[1]
    cached = num_keys - num_queries
    if not batch or not num_queries:
        return
    # The only look at values from the host: without it every head would cost as much as the widest could.
    reach = span_reach(span, max_span=options.max_span, ramp=options.ramp)
    reaches = (reach if span.dim() == 1 else reach.amax((0, 2))).tolist()
    for head in range(num_heads):
        reach = reaches[head]
        z = span[head] if span.dim() == 1 else span[:, head, :, None]  # [] or [B, T, 1]
        table = position_key[head if position_key.shape[0] > 1 else 0].to(dtype)
        left, right = (reach - 1, reach - 1) if options.bidirectional else (reach, -1)
        for q0, q1 in blocks(num_queries, QUERY_BLOCK):
            first = q0 + cached - left
            low = first if options.zero_cache else max(0, first)
            high = min(num_keys, q1 + cached + right)
            for k0, k1 in blocks(high - low, KEY_BLOCK):
                columns = slice(low + k0, low + k1)
                place = torch.arange(q0 + cached, q1 + cached, device=query.device)[:, None]
                tokens = torch.arange(columns.start, columns.stop, device=query.device)
                offset = tokens - place  # [t, s]
                distance = options.distance(offset)
                spans = z if span.dim() == 1 else z[:, q0:q1]
                visible = (distance >= 0) & (distance < options.max_span)
                if key_mask is not None:
                    hidden = ~key_mask[:, None, max(0, columns.start) : max(0, columns.stop)]
                    visible = visible & ~F.pad(hidden, (len(tokens) - hidden.shape[2], 0))
                weight = soft_mask(spans, distance, ramp=options.ramp).masked_fill(~visible, 0.0)
                slope = (distance >= spans) & (distance <= spans + options.ramp) & visible
                q = query[:, head, q0:q1].to(dtype)
                k, v = (_with_zero_cache(x[:, head], columns.start, columns.stop).to(dtype) for x in (key, value))
                scores = q @ k.mT
                nearest = columns.start - (q1 - 1 + cached)  # the smallest offset
                offsets = torch.arange(nearest, columns.stop - q0 - cached, device=query.device)
                positions, at = offsets[:0], offset - nearest
                if num_rows:
                    positions = options.position_row(offsets, num_rows)
                    scores += (q @ table[positions].mT).gather(2, at.expand(batch, *at.shape))
                keep: Tensor | float = 1.0
                if seed is not None:
                    queries = torch.arange(q0, q1, device=query.device)
                    kept = keep_mask(seed, options.dropout_p, batch, [head], queries, tokens.clamp(min=0))
                    keep = kept[:, 0].to(dtype) / (1.0 - options.dropout_p)
                yield _Block(
                    head, slice(q0, q1), columns, q, k, v, positions, table[positions], at,
                    weight, slope, scores.mul_(options.scale), keep,
                )  # fmt: skip


def span_attention_reference(
    query, key, value, position_key, span, key_mask, seed, scale, dropout_p, max_span, ramp, zero_cache, bidirectional
) -> tuple[Tensor, Tensor]:
    """The definition: ``out [B, H, T, D]`` with the strides of ``query``, ``lse [B, H, T]``. Online over blocks."""
    dtype = statistics_dtype(query.dtype)
    out = torch.zeros_like(query, dtype=dtype)
    lse = torch.full(query.shape[:3], -torch.inf, dtype=dtype, device=query.device)
    options = _Options(scale, dropout_p, max_span, ramp, zero_cache, bidirectional)
    for block in _blocks_of(query, key, value, position_key, span, key_mask, seed, options):
        here = (slice(None), block.head, block.rows)
        before = lse[here]
        seen = (block.scores + block.weight.log()).logsumexp(-1)
        after = torch.logaddexp(before, seen)
        p = block.weight * block.exp(after) * block.keep
        shift = after.masked_fill(after == -torch.inf, 0.0)
        out[here] = out[here] * torch.exp(before - shift)[..., None] + p @ block.value
        lse[here] = after
    return torch.empty_like(query).copy_(out), lse


def span_attention_backward_reference(
    grad_out, grad_lse, query, key, value, position_key, span, out, lse, key_mask, seed,
    scale, dropout_p, max_span, ramp, zero_cache, bidirectional,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key, value, position_key and span; ``grad_lse`` may be None."""
    dtype = statistics_dtype(query.dtype)
    grad_out = grad_out.to(dtype)
    delta = (grad_out * out.to(dtype)).sum(-1)  # [B, H, T]
    if grad_lse is not None:
        delta -= grad_lse
    dq, dk, dv, dp, dz = (torch.zeros_like(x, dtype=dtype) for x in (query, key, value, position_key, span))
    options = _Options(scale, dropout_p, max_span, ramp, zero_cache, bidirectional)
    for block in _blocks_of(query, key, value, position_key, span, key_mask, seed, options):
        here = (slice(None), block.head, block.rows)
        e = block.exp(lse[here])
        p = block.weight * e
        d_out = grad_out[here]
        change = (d_out @ block.value.mT) * block.keep - delta[here][..., None]
        ds = p * change * scale
        dq[here] = dq[here] + ds @ block.key
        real = slice(max(0, block.columns.start), max(0, block.columns.stop))
        for grad, term in ((dk, ds.mT @ block.query), (dv, (p * block.keep).mT @ d_out)):
            grad[:, block.head, real] = grad[:, block.head, real] + term[:, term.shape[1] - (real.stop - real.start) :]
        if len(block.positions):
            by_offset = ds.new_zeros(*ds.shape[:2], len(block.positions))
            by_offset.scatter_(2, block.at.expand_as(ds), ds)
            dq[here] = dq[here] + by_offset @ block.position_key
            rows = (by_offset.mT @ block.query).sum(0)
            dp[block.head if dp.shape[0] > 1 else 0].index_add_(0, block.positions, rows)
        d_span = torch.where(block.slope, e * change, 0.0).sum(-1) / ramp
        if dz.dim() == 1:
            dz[block.head] = dz[block.head] + d_span.sum()
        else:
            dz[here] = dz[here] + d_span
    likes = ((query, dq), (key, dk), (value, dv), (position_key, dp), (span, dz))
    return tuple(torch.empty_like(like).copy_(grad) for like, grad in likes)  # type: ignore[return-value]


_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor position_key, Tensor span"
_OPTIONS = (
    "Tensor? key_mask, Tensor? dropout_seed, float scale, float dropout_p, int max_span, float ramp, bool zero_cache, "
    "bool bidirectional"
)
LIBRARY.define(f"span_attention({_INPUTS}, {_OPTIONS}) -> (Tensor out, Tensor lse)")
LIBRARY.define(
    f"span_attention_backward(Tensor grad_out, Tensor? grad_lse, {_INPUTS}, Tensor out, Tensor lse, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
define_reference("span_attention", span_attention_reference)
define_reference("span_attention_backward", span_attention_backward_reference)


@torch.library.register_fake("longspan::span_attention", lib=LIBRARY)
def _(query, *rest):
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=statistics_dtype(query.dtype))


@torch.library.register_fake("longspan::span_attention_backward", lib=LIBRARY)
def _(grad_out, grad_lse, query, key, value, position_key, span, *rest):
    return tuple(torch.empty_like(x) for x in (query, key, value, position_key, span))


def _setup_context(ctx, inputs, output):
    query, key, value, position_key, span, key_mask, seed, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, position_key, span, *output, key_mask, seed)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, grad_lse):
    unused = (None,) * (2 + len(ctx.options))
    if grad_out is None and grad_lse is None:
        return *(None,) * 5, *unused
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks it only once
    grad_out = torch.zeros_like(saved[5]) if grad_out is None else grad_out
    grads = torch.ops.longspan.span_attention_backward.default(grad_out, grad_lse, *saved, *ctx.options)
    return *grads, *unused


def _second_derivative(ctx, *grads):
    raise NotImplementedError("longspan::span_attention: second derivatives are not implemented")


torch.library.register_autograd("longspan::span_attention", _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd("longspan::span_attention_backward", _second_derivative, lib=LIBRARY)


def _check(query, key, value, position_key, span, key_mask, max_span, ramp, zero_cache, bidirectional) -> None:
    name = "span_attention"
    check_attention_inputs(name, query, key, value, key_mask)
    check_same_heads(name, query, key)
    heads, head_size = query.shape[1], query.shape[3]
    if key.shape[2] < query.shape[2]:
        raise ValueError(
            f"{name}: {key.shape[2]} keys for {query.shape[2]} queries; the queries are the last of the keys"
        )
    check_integer(name, "max_span", max_span, 1)
    if not isinstance(ramp, (int, float)) or isinstance(ramp, bool) or not 0.0 < ramp < float("inf"):
        raise ValueError(f"{name}: ramp must be a positive number of tokens, got {ramp!r}")
    if not isinstance(span, Tensor):
        raise ValueError(f"{name}: span must be a tensor, one number for each head, got {span!r}")
    check_devices(name, query=query, position_key=position_key, span=span)
    if list(span.shape) not in ([heads], list(query.shape[:3])) or span.dtype not in FLOATING:
        raise ValueError(
            f"{name}: span must be floating point [{heads}] ([heads]) or {list(query.shape[:3])} ([batch, heads, "
            f"queries]), in tokens, got {span.dtype} {list(span.shape)}"
        )
    if zero_cache and bidirectional:
        raise ValueError(f"{name}: zero_cache belongs to the causal form; with bidirectional=True leave it off")
    if position_key is None:
        return
    rows = [max_span, 2 * max_span - 1] if bidirectional else [max_span]
    shape = list(position_key.shape)
    if len(shape) != 3 or shape[0] not in (1, heads) or shape[1] not in rows or shape[2] != head_size:
        raise ValueError(
            f"{name}: position_key must be [{heads} or 1, {' or '.join(map(str, rows))}, {head_size}] ([heads, "
            f"distances, head size]), got {shape}"
        )
    if position_key.dtype != query.dtype:
        raise ValueError(f"{name}: one dtype wanted, got query {query.dtype}, position_key {position_key.dtype}")


def span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_key: Tensor | None,
    span: Tensor,
    *,
    max_span: int,
    ramp: float,
    zero_cache: bool = False,
    bidirectional: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | int | None = None,
    return_lse: bool = False,
) -> Any:  # Tensor, or with return_lse a pair of them
    """Causal attention over the keys before each query, as far as its head's soft span reaches, at that cost.

    A query does not see its own position (bidirectional: it does). Normalisation is exact: over the keys that the mask
    leaves, and over nothing else.

    Args:
        query: ``[B, H, T, D]``. Any strides; ``out`` gets the same, so ``[B, T, H, D]`` storage needs no copies.
        key: ``[B, H, S, D]`` with ``S >= T``; query t stands at key position ``t + S - T``.
        value: ``[B, H, S, D]``.
        position_key: ``[H or 1, max_span, D]``, row x for the key at distance x, 0 = nearest; added to the keys that
            queries meet there. Bidirectional: by absolute distance, or ``[.., 2 * max_span - 1, D]`` by offset, row
            ``max_span - 1 + (key place - query place)``. None: scores do not depend on the distance.
        span: ``[H]``, or ``[B, H, T]`` for a span of every query; tokens with full weight before the ramp begins, in
            any floating dtype; differentiable. Usually in ``[0, max_span]``; below ``-ramp`` nothing is seen.
        max_span: distances from here on are never seen.
        ramp: length of the ramp, in tokens.
        zero_cache: places before the first key take part as keys and values of zero (their position term counts), as
            in the released models, whose streams begin with a cache of zeros.
        bidirectional: see keys on both sides, at distance ``|key place - query place| < max_span``, the own included.
        key_mask: bool ``[B, S]``, True where a key may be seen; others take no part at all.
        scale: factor of the scores, ``D ** -0.5`` by default.
        dropout_p: probability with which each (query, key) pair is dropped after the normalisation.
        dropout_seed: 0-dim int64 tensor that fixes the dropped pairs; wanted when ``dropout_p > 0``.
        return_lse: also return the log of the sum of m(x) exp(score) (before dropout; differentiable), for ``merge``.

    Returns:
        ``out [B, H, T, D]``, and ``lse [B, H, T]`` in float32 (float64 for float64). A query that may see nothing
        gives zeros and -inf.

    Raises:
        ValueError: on shapes, dtypes or options that do not fit, naming the argument.
    """
    query, key, value = autocast(query, key, value)
    if position_key is not None and autocast_dtype(query) is not None:
        position_key = position_key.to(query.dtype)
    _check(query, key, value, position_key, span, key_mask, max_span, ramp, zero_cache, bidirectional)
    seed = check_dropout("span_attention", dropout_p, dropout_seed, query.device)
    scale = query.shape[3] ** -0.5 if scale is None else float(scale)
    if position_key is None:
        position_key = query.new_empty(1, 0, query.shape[3])
    out, lse = torch.ops.longspan.span_attention.default(
        query, key, value, position_key, span.to(statistics_dtype(query.dtype)), key_mask, seed, scale, dropout_p,
        max_span, float(ramp), zero_cache, bidirectional,
    )  # fmt: skip
    return (out, lse) if return_lse else out
