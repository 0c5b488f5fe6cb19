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
    multidim_attention,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


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


def check(case: Case, dtype: torch.dtype, computing) -> None:
    """The case agrees with its reference, where ``computing`` is the context in which kernels run.

    The reference takes the narrowed inputs in float64, so that only the kernels' own rounding counts.
    """
    wanted = Case(case.call, [x.to(dtype).double() for x in case.inputs]).run(torch.float64)
    with computing:
        got = case.run(dtype)
    compare(got, wanted, dtype)


def compare(got: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    """What ``Case.run`` gave in ``dtype`` against what it gave in float64."""
    for name, ours, theirs in zip(("out", "lse", "grad 1", "grad 2", "grad 3"), got, wanted, strict=False):
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


def dense(T: int, S: int, D: int) -> Case:
    """``dense_attention`` of T queries to S keys."""
    inputs = [*_rows(1, 2, 1, T, D), *_rows(2, 2, 1, S, D)]
    return Case(lambda *x: dense_attention(*x, return_lse=True), inputs)


def block(T: int, D: int, *, masked: bool = False, **options) -> Case:
    """``block_attention``."""
    inputs = _rows(3, 2, 1, T, D)
    mask = _mask(2, T, masked)
    return Case(lambda *x: block_attention(*x, key_mask=mask, return_lse=True, **options), inputs)


def lsh(T: int, D: int, *, rounds: int = 2, buckets: int = 4, masked: bool = False, **options) -> Case:
    """``lsh_attention`` over random buckets."""
    inputs = _rows(2, 1, 2, T, D)
    assigned = _buckets(rounds, buckets, T)
    mask = _mask(1, T, masked)
    return Case(lambda *x: lsh_attention(*x, assigned, key_mask=mask, return_lse=True, **options), inputs)


def bucket(T: int, D: int, *, rounds: int = 2, buckets: int = 3, masked: bool = False, **options) -> Case:
    """``bucket_attention`` over random buckets."""
    inputs = _rows(2, 1, 2, T, D)
    assigned = _buckets(rounds, buckets, T)
    mask = _mask(1, T, masked)
    return Case(lambda *x: bucket_attention(*x, assigned, key_mask=mask, return_lse=True, **options), inputs)


def multidim(L: int, D: int, *, B: int = 2, **options) -> Case:
    """``multidim_attention`` with some padding; the last input is the bias."""
    inputs = [*(2 * x for x in _rows(3, B, L, D)), *_rows(1, D)]
    mask = _mask(B, L)
    return Case(lambda *x: multidim_attention(*x, key_mask=mask, return_lse=True, **options), inputs)


DROPOUT = dict(dropout_p=0.3, dropout_seed=0x123456789ABCDEF)

QUICK = {
    "band": lambda D: banded(90, D, window=(20, 13)),
    "bands by head, cached, masked": lambda D: banded(
        75, D, cached=9, masked=True, window=[(4, 3), (40, 0)], dilation=[1, 3]
    ),
    "band with dropout": lambda D: banded(70, D, window=(30, 5), **DROPOUT),
    "dense": lambda D: dense(5, 70, D),
    "blocks": lambda D: block(75, D, block_size=16, before=1, after=1, masked=True),
    "lsh": lambda D: lsh(75, D, chunk_size=16, chunks_before=1, chunks_after=0, causal=True),
    "lsh, wrapped, with dropout": lambda D: lsh(
        70, D, chunk_size=32, chunks_before=1, chunks_after=1, wrap=True, same_bucket=True, **DROPOUT
    ),
    "lsh, deduplicated": lambda D: lsh(40, D, chunk_size=16, wrap=True, deduplicate=True, masked=True),
    "buckets": lambda D: bucket(75, D, window=7, masked=True),
    "multidim": lambda D: multidim(37, D, direction="forward"),
    "multidim, full": lambda D: multidim(9, D + 5, direction="full"),
}
