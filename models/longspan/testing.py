"""What tests and benchmarks share: shapes that break kernels, switches over the compiled paths, fair timing."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from longspan.ops import HAS_EXTENSION
from longspan.ops.library import has_kernel as has_kernel

CPU_ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")

# (batch, heads, queries, keys, head size, windows, dilation): empty, single, prime, shorter than the window, cached,
# windows and dilations that differ per head, one-sided, unlimited, and longer than one tile of a kernel.
BANDED_SHAPES = [
    (1, 1, 0, 0, 4, (2, 2), 1),
    (0, 2, 5, 5, 4, (2, 2), 1),
    (1, 1, 1, 1, 1, (0, 0), 1),
    (2, 3, 7, 7, 5, (9, 9), 1),
    (1, 2, 37, 37, 16, (3, 3), 1),
    (2, 2, 53, 53, 8, (4, 0), 2),
    (1, 3, 61, 61, 20, [(2, 3), (5, 0), (0, 7)], [1, 2, 3]),
    (1, 2, 30, 41, 32, (6, -1), 1),
    (1, 2, 1, 97, 64, (20, 0), [1, 4]),
    (2, 1, 49, 200, 33, (None, 0), 1),
    (1, 2, 131, 131, 64, (None, None), [1, 200]),
    (1, 2, 300, 307, 80, [(64, 64), (130, 5)], [1, 2]),
    (1, 1, 401, 401, 96, (50, 50), 1),
    (1, 1, 193, 193, 128, (17, 200), 1),
]

# (batch, heads, tokens, head size, hash rounds, chunk, chunks before, chunks after): empty, single, prime, shorter than
# the chunk, exactly the chunk, one token more; single-token chunks; fewer chunks than the window; odd head sizes.
LSH_SHAPES = [
    (1, 1, 0, 4, 2, 4, 1, 0),
    (0, 2, 5, 4, 2, 2, 1, 0),
    (2, 0, 5, 4, 2, 2, 1, 0),
    (1, 1, 1, 1, 1, 1, 1, 0),
    (1, 2, 1, 8, 2, 64, 1, 1),
    (2, 3, 7, 5, 2, 16, 1, 0),
    (1, 2, 16, 16, 2, 16, 1, 0),
    (1, 2, 17, 16, 2, 16, 1, 0),
    (1, 2, 30, 12, 1, 16, 3, 3),
    (1, 3, 37, 16, 1, 5, 1, 0),
    (1, 1, 41, 1, 2, 5, 0, 0),
    (2, 1, 53, 8, 8, 5, 2, 1),
    (1, 1, 61, 33, 2, 1, 1, 1),
    (2, 2, 64, 80, 2, 16, 0, 2),
    (1, 2, 97, 64, 2, 16, 1, 0),
    (1, 2, 130, 130, 2, 64, 0, 1),
    (1, 1, 211, 128, 2, 64, 1, 0),
    (1, 1, 211, 64, 3, 100, 1, 1),
    (1, 1, 350, 20, 2, 300, 1, 0),
]

# (batch, heads, queries, keys, head size, max_span, ramp, span of each head): empty, single, prime, one query and many
# cached keys, spans of 0, between tokens, at the limit and beyond it, windows longer than the sequence, one tile more.
SPAN_SHAPES = [
    (1, 1, 0, 0, 4, 3, 2, [1.0]),
    (0, 2, 5, 5, 4, 3, 2, [1.0, 2.0]),
    (2, 0, 5, 5, 4, 3, 2, []),
    (1, 1, 1, 1, 1, 1, 1, [0.0]),
    (2, 3, 7, 7, 5, 9, 2.5, [0.0, 1.3, 9.0]),
    (1, 2, 37, 37, 16, 12, 4, [3.0, 20.5]),
    (2, 2, 1, 97, 64, 64, 16, [2.5, 57.0]),
    (1, 2, 3, 230, 40, 200, 16, [30.5, 170.0]),
    (1, 3, 30, 41, 20, 64, 8, [0.25, 17.0, 64.0]),
    (2, 1, 49, 200, 33, 300, 32, [140.7]),
    (1, 2, 131, 131, 8, 40, 7, [-3.5, 24.0]),
    (1, 1, 211, 211, 128, 97, 32, [30.0]),
    (1, 3, 203, 210, 80, 160, 32, [18.0, 70.5, 140.0]),
    (1, 2, 97, 1300, 32, 1200, 64, [1.0, 1150.0]),
]


def shape_id(shape: tuple) -> str:
    """A readable test id: ``B1-H2-T30-S41-D32-w6,-1-d1``."""
    B, H, T, S, D, window, dilation = shape
    return f"B{B}-H{H}-T{T}-S{S}-D{D}-w{window}-d{dilation}".replace(" ", "")


def lsh_shape_id(shape: tuple) -> str:
    """A readable test id: ``B1-H2-T30-D32-R2-c16-1+0``."""
    B, H, T, D, R, chunk, before, after = shape
    return f"B{B}-H{H}-T{T}-D{D}-R{R}-c{chunk}-{before}+{after}"


def span_shape_id(shape: tuple) -> str:
    """A readable test id: ``B1-H2-T30-S41-D32-m64-r8-z3.0,20.5``."""
    B, H, T, S, D, max_span, ramp, spans = shape
    return f"B{B}-H{H}-T{T}-S{S}-D{D}-m{max_span}-r{ramp}-z{','.join(map(str, spans))}"


def cpu_isa() -> str | None:
    """The instruction set that compiled CPU kernels use now; None without the extension."""
    return CPU_ISAS[torch.ops.longspan.cpu_isa()] if HAS_EXTENSION else None


@contextmanager
def limited_cpu_isa(name: str) -> Iterator[bool]:
    """Compiled CPU kernels use at most the instruction set ``name``. Yields whether the processor has it."""
    level = CPU_ISAS.index(name)
    try:
        yield torch.ops.longspan.limit_cpu_isa(level) == level
    finally:
        torch.ops.longspan.limit_cpu_isa(len(CPU_ISAS) - 1)


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int, wait: Callable[[], Any] = lambda: None
) -> dict[str, float]:
    """Median milliseconds of each call: every round runs all of them, each once to warm up and twice to be timed.

    ``wait()`` returns when all that was started has ended: ``torch.cuda.synchronize`` on a GPU.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            for _ in range(2):
                wait()
                start = time.perf_counter()
                call()
                wait()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(series) for name, series in times.items()}
