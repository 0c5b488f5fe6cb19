"""Calls of the operators, and what they should give: the operators' own references in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops import (
    banded_attention,
    block_attention,
    bucket_attention,
    dense_attention,
    lsh_attention,
    lsh_buckets,
    merge,
    multidim_attention,
    seeded_dropout,
    span_attention,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 5e-2}


@dataclass
class Case:
    """``call(*inputs)`` gives ``(out, lse)``; ``inputs`` float64, to be narrowed."""

    call: Callable[..., tuple[Tensor, Tensor]]
    inputs: list[Tensor]

    def run(self, dtype: torch.dtype) -> list[Tensor]:
        """out, lse and the gradients of all inputs, in float64."""
        generator = torch.Generator("cpu").manual_seed(1)

        def weights(like: Tensor) -> Tensor:
            return torch.randn(like.shape, dtype=torch.float64, generator=generator, device="cpu").to(like.device)

        inputs = [x.to(dtype).requires_grad_() for x in self.inputs]
        out, lse = self.call(*inputs)
        seen = lse != -torch.inf
        loss = (out.double() * weights(out)).sum() + (lse.double() * weights(lse)).masked_fill(~seen, 0).sum()
        return [out.detach().double(), lse.detach().double(), *(g.double() for g in torch.autograd.grad(loss, inputs))]


def check(case: Case, dtype: torch.dtype, computing) -> list[Tensor]:
    """The case agrees with its reference, where ``computing`` is the context in which kernels run; what they gave.

    The reference takes the narrowed inputs in float64, so that only the kernels' own rounding counts.
    """
    wanted = Case(case.call, [x.to(dtype).double() for x in case.inputs]).run(torch.float64)
    with computing:
        got = case.run(dtype)
    compare(got, wanted, dtype)
    return got


def compare(got: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    """What ``Case.run`` gave in ``dtype`` against what it gave in float64."""
    names = ["out", "lse", *(f"grad {i}" for i in range(1, len(wanted) - 1))]
    for name, ours, theirs in zip(names, got, wanted, strict=True):
        finite = theirs != -torch.inf
        assert torch.equal(ours != -torch.inf, finite), name
        if finite.any():
            gap, scale = (ours - theirs)[finite].abs().max().item(), max(1.0, theirs[finite].abs().max().item())
            assert gap <= TOLERANCE[dtype] * scale, f"{name}: off by {gap:.1e}"


# Everything is drawn on the CPU and moved to the default device: the same numbers everywhere.


def _rows(count: int, *shape: int) -> list[Tensor]:
    """A shape's rows are the same in every call."""
    generator = torch.Generator("cpu").manual_seed(sum(shape))
    rows = (torch.randn(shape, dtype=torch.float64, generator=generator, device="cpu") for _ in range(count))
    return [x.to(torch.get_default_device()) for x in rows]


def _mask(B: int, length: int, masked: bool = True) -> Tensor | None:
    generator = torch.Generator("cpu").manual_seed(B + length)
    drawn = torch.rand(B, length, generator=generator, device="cpu") > 0.3
    return drawn.to(torch.get_default_device()) if masked else None


def _buckets(rounds: int, buckets: int, T: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(rounds + T)
    drawn = torch.randint(buckets, (1, 2, rounds, T), generator=generator, device="cpu")
    return drawn.to(torch.get_default_device())


def banded(T: int, D: int, *, cached: int = 0, B: int = 1, H: int = 2, masked: bool = False, **options) -> Case:
    """``banded_attention`` of T queries behind ``cached`` more keys."""
    query, key, value = (*_rows(1, B, H, T, D), *_rows(2, B, H, T + cached, D))
    mask = _mask(B, T + cached, masked)
    return Case(lambda *x: banded_attention(*x, key_mask=mask, return_lse=True, **options), [query, key, value])


def dense(T: int, S: int, D: int, *, B: int = 2, H: int = 2, masked: bool = False, **options) -> Case:
    """``dense_attention`` of T queries to S keys; of one head it is no kernel of its own."""
    inputs = [*_rows(1, B, H, T, D), *_rows(2, B, H, S, D)]
    mask = _mask(B, S, masked)
    return Case(lambda *x: dense_attention(*x, key_mask=mask, return_lse=True, **options), inputs)


def block(T: int, D: int, *, B: int = 2, masked: bool = False, **options) -> Case:
    """``block_attention``."""
    inputs = _rows(3, B, 1, T, D)
    mask = _mask(B, T, masked)
    return Case(lambda *x: block_attention(*x, key_mask=mask, return_lse=True, **options), inputs)


def lsh(T: int, D: int, *, B: int = 1, rounds: int = 2, buckets: int = 4, masked: bool = False, **options) -> Case:
    """``lsh_attention`` over random buckets."""
    inputs = _rows(2, B, 2, T, D)
    assigned = _buckets(rounds, buckets, T).expand(B, -1, -1, -1)
    mask = _mask(B, T, masked)
    return Case(lambda *x: lsh_attention(*x, assigned, key_mask=mask, return_lse=True, **options), inputs)


def bucket(T: int, D: int, *, rounds: int = 2, buckets: int = 3, masked: bool = False, **options) -> Case:
    """``bucket_attention`` over random buckets."""
    inputs = _rows(2, 1, 2, T, D)
    assigned = _buckets(rounds, buckets, T)
    mask = _mask(1, T, masked)
    return Case(lambda *x: bucket_attention(*x, assigned, key_mask=mask, return_lse=True, **options), inputs)


def buckets_of(
    T: int, D: int, *, num_buckets: int | list[int], masked: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What ``lsh_buckets`` gives on the default device: no gradients, so no ``Case``."""
    (x,), (rotations,) = _rows(1, 2, 2, T, D), _rows(1, 2, D, 3, sum(_factors(num_buckets)) // 2)
    return lsh_buckets(x.to(dtype), rotations.to(dtype), num_buckets, key_mask=_mask(2, T, masked))


def _factors(num_buckets: int | list[int]) -> list[int]:
    return num_buckets if isinstance(num_buckets, list) else [num_buckets]


def multidim(L: int, D: int, *, B: int = 2, **options) -> Case:
    """``multidim_attention`` with some padding; the last input is the bias."""
    inputs = [*(2 * x for x in _rows(3, B, L, D)), *_rows(1, D)]
    mask = _mask(B, L)
    return Case(lambda *x: multidim_attention(*x, key_mask=mask, return_lse=True, **options), inputs)


def span(
    T: int, D: int, *, spans: list[float], cached: int = 0, B: int = 1, masked: bool = False, by_query: bool = False,
    tables: int = 1, signed: bool = False, **options,
) -> Case:  # fmt: skip
    """``span_attention`` of as many heads as spans; the last inputs are the spans and the table of positions."""
    H, max_span = len(spans), options.setdefault("max_span", 24)
    inputs = [*_rows(1, B, H, T, D), *_rows(2, B, H, T + cached, D)]
    lengths = torch.tensor(spans, dtype=torch.float64)
    if by_query:
        lengths = lengths[None, :, None] * _rows(1, B, H, T)[0].sigmoid()
    inputs += [lengths, *_rows(1, tables, 2 * max_span - 1 if signed else max_span, D)]
    mask = _mask(B, T + cached, masked)

    def call(query, key, value, spans, positions):
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        return span_attention(
            query, key, value, positions, spans.to(wide), ramp=4, key_mask=mask, return_lse=True, **options
        )

    return Case(call, inputs)


DROPOUT = dict(dropout_p=0.3, dropout_seed=0x123456789ABCDEF)


def merged(T: int, D: int, *, B: int = 2, H: int = 2) -> Case:
    """``merge`` of two sides, where some rows have no key on one side or on both."""
    a, b = _rows(2, B, H, T, D)
    lses = _rows(2, B, H, T)
    empty = [torch.arange(T, device=a.device) % 5 == 1, torch.arange(T, device=a.device) % 3 == 1]

    def call(a, b, *lses):
        wide = torch.float64 if a.dtype == torch.float64 else torch.float32
        return merge(
            [a, b], [lse.to(wide).masked_fill(rows, -torch.inf) for lse, rows in zip(lses, empty, strict=True)]
        )

    return Case(call, [a, b, *lses])


def dropped(*shape: int, p: float = 0.3) -> Case:
    """``seeded_dropout``, beside something that stands for an lse."""
    return Case(lambda x: (seeded_dropout(x, (7 << 32) + 3, p), x.sum(-1)), _rows(1, *shape))


QUICK = {
    "band": lambda D: banded(90, D, window=(20, 13)),
    "bands by head, cached, masked": lambda D: banded(
        75, D, cached=9, masked=True, window=[(4, 3), (40, 0)], dilation=[1, 3]
    ),
    "band with dropout": lambda D: banded(70, D, window=(30, 5), **DROPOUT),
    "dense": lambda D: dense(5, 70, D),
    "few queries, many keys": lambda D: dense(3, 520, D, B=1, masked=True),
    "blocks": lambda D: block(75, D, block_size=16, before=1, after=1, masked=True),
    "lsh": lambda D: lsh(75, D, chunk_size=16, chunks_before=1, chunks_after=0, causal=True),
    "lsh, wrapped, with dropout": lambda D: lsh(
        70, D, chunk_size=32, chunks_before=1, chunks_after=1, wrap=True, same_bucket=True, **DROPOUT
    ),
    "lsh, deduplicated": lambda D: lsh(40, D, chunk_size=16, wrap=True, deduplicate=True, masked=True),
    "buckets": lambda D: bucket(75, D, window=7, masked=True),
    "multidim": lambda D: multidim(37, D, direction="forward"),
    "multidim, full": lambda D: multidim(9, D + 5, direction="full"),
    "merged": lambda D: merged(37, D),
    "dropped": lambda D: dropped(3, 25, D),
    "spans": lambda D: span(70, D, spans=[3.5, 17.0], cached=9),
    "spans, signed": lambda D: span(35, D, spans=[9.25], bidirectional=True, signed=True, masked=True),
}

HASHING = {
    "one factor": dict(T=70, D=40, num_buckets=70),
    "factors, masked": dict(T=9, D=5, num_buckets=[4, 6], masked=True),
    "no tokens": dict(T=0, D=5, num_buckets=4),
}

UNUSUAL = {
    "unlimited band": lambda D: banded(70, D, cached=3, window=(None, None), dilation=[1, 200]),
    "band of one token": lambda D: banded(66, D, window=(0, 0)),
    "band wider than the text, causal": lambda D: banded(20, D, window=(90, 0), masked=True),
    "one-sided band": lambda D: banded(37, D, H=1, window=(6, -1)),
    "many heads": lambda D: banded(3, D, H=67, window=(1, 1), dilation=[1, *[2] * 66]),
    "one query, many keys": lambda D: banded(1, D, cached=96, window=[(20, 0), (None, 0)], dilation=[4, 1]),
    "band, empty batch": lambda D: banded(9, D, B=0, window=(1, 1)),
    "many examples": lambda D: banded(5, D, B=7, masked=True, window=(2, 2), **DROPOUT),
    "dense, masked, with dropout": lambda D: dense(70, 5, D, masked=True, **DROPOUT),
    "dense, without keys": lambda D: dense(3, 0, D),
    "many queries, few keys": lambda D: dense(300, 3, D, masked=True, **DROPOUT),
    "many heads, one with many keys": lambda D: banded(1, D, cached=520, H=66, window=[*[(1, 0)] * 65, (None, 0)]),
    "blocks, wrapped, with dropout": lambda D: block(50, D, block_size=16, before=2, after=0, wrap=True, **DROPOUT),
    "blocks, causal": lambda D: block(130, D, block_size=70, before=1, after=0, causal=True),
    "block longer than the text": lambda D: block(10, D, block_size=64, before=2, after=2),
    "blocks, empty batch": lambda D: block(10, D, B=0, block_size=4, before=1, after=0),
    "lsh, one round": lambda D: lsh(37, D, rounds=1, chunk_size=5, chunks_before=1, chunks_after=0),
    "lsh, chunks of several tiles": lambda D: lsh(150, D, chunk_size=70, causal=True, same_bucket=True, masked=True),
    "lsh, more neighbours than chunks": lambda D: lsh(9, D, chunk_size=4, chunks_before=7, chunks_after=3, wrap=True),
    "lsh, everything": lambda D: lsh(
        50, D, B=2, rounds=3, chunk_size=7, wrap=True, causal=True, same_bucket=True, deduplicate=True, masked=True,
        **DROPOUT,
    ),
    "lsh, found more than 255 times": lambda D: lsh(8, D, chunk_size=8, chunks_before=255, wrap=True, deduplicate=True),
    "lsh, empty batch": lambda D: lsh(9, D, B=0, chunk_size=4),
    "lsh, no tokens": lambda D: lsh(0, D, chunk_size=4, deduplicate=True),
    "buckets, wide window, with dropout": lambda D: bucket(140, D, window=500, **DROPOUT),
    "buckets, one round": lambda D: bucket(66, D, window=1, rounds=1),
    "spans on both sides, masked, with dropout": lambda D: span(
        67, D, spans=[0.0, 9.25, 24.0], B=2, bidirectional=True, masked=True, **DROPOUT
    ),
    "spans by query, a table for each head": lambda D: span(
        40, D, spans=[3.0, 30.0], cached=30, by_query=True, tables=2, B=2, zero_cache=True
    ),
    "spans, one query": lambda D: span(1, D, spans=[2.5, 20.0], cached=40),
    "spans, few queries, many keys": lambda D: span(3, D, spans=[430.0, 2.0], cached=520, max_span=500, masked=True),
    "spans, empty heads": lambda D: span(5, D, spans=[]),
    "spans, empty batch": lambda D: span(5, D, spans=[2.0], B=0),
    "merged, empty batch": lambda D: merged(5, D, B=0),
    "dropped, several draws": lambda D: dropped(5, 1667, D % 9 + 1, p=0.99),
    "dropped, empty": lambda D: dropped(0, D),
    "multidim, backward": lambda D: multidim(34, D, direction="backward"),
    "multidim, many rows and features": lambda D: multidim(100, 2 * D + 3, B=3, direction="diagonal_free"),
    "multidim, empty batch": lambda D: multidim(5, D, B=0, direction="forward"),
}  # fmt: skip
