"""Banded attention against its peers, in one run: FlexAttention, dense SDPA, transformers' sliding chunks, blocked bmm.

    python scripts/bench_banded.py [--threads 2] [--rounds 7] [--quick]

First all results are compared, then timed in turn, round after round; medians are printed. Speed is time of the peer
over ours. The share of peak is useful floating-point operations (visible pairs only) over the processor's fused
multiply-add rate, measured here too.
"""

import argparse
import math
import os
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from longspan.info import summary
from longspan.ops import HAS_EXTENSION, banded_attention
from longspan.testing import interleaved

HEADS, LENGTH, WINDOW = 12, 4096, 256


def visible_pairs(length: int, window: int) -> int:
    return sum(min(length - 1, i + window) - max(0, i - window) + 1 for i in range(length))


def useful_operations(length: int, window: int, head_size: int, products: int) -> int:
    """Two operations per multiply-add of each product over the visible pairs (forward 2 products, backward 5)."""
    return 2 * products * HEADS * head_size * visible_pairs(length, window)


def blocked_bmm(query, key, value):
    """Blocks of `window` queries against three windows of keys: the best that plain matrix products do."""
    B, H, T, D = query.shape
    count = T // WINDOW
    keys, values = (F.pad(x, (0, 0, WINDOW, WINDOW)).unfold(2, 3 * WINDOW, WINDOW) for x in (key, value))
    offset = torch.arange(3 * WINDOW) - WINDOW - torch.arange(WINDOW)[:, None]
    place = torch.arange(count)[:, None, None] * WINDOW + torch.arange(3 * WINDOW) - WINDOW
    hidden = (offset.abs() > WINDOW) | (place < 0) | (place >= T)
    scores = (query.view(B, H, count, WINDOW, D) * D**-0.5 @ keys).masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ values.mT).reshape(B, H, T, D)


def transformers_chunks(head_size: int):
    """The attention core of transformers' Longformer, layout changes included in neither direction."""
    from transformers.models.longformer.modeling_longformer import LongformerConfig, LongformerSelfAttention

    config = LongformerConfig(
        attention_window=[2 * WINDOW], num_hidden_layers=1, hidden_size=HEADS * head_size, num_attention_heads=HEADS
    )
    layer = LongformerSelfAttention(config, 0).eval()

    def attention(query, key, value):
        query, key, value = (x.transpose(1, 2).contiguous() for x in (query, key, value))
        scores = layer._sliding_chunks_query_key_matmul(query * head_size**-0.5, key, WINDOW)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).type_as(query)
        return layer._sliding_chunks_matmul_attn_probs_value(weights, value, WINDOW).transpose(1, 2)

    return attention


def contenders(head_size: int) -> dict:
    position = torch.arange(LENGTH)
    mask = (position - position[:, None]).abs() <= WINDOW
    block_mask = create_block_mask(lambda b, h, q, k: (q - k).abs() <= WINDOW, None, None, LENGTH, LENGTH, device="cpu")
    flex = torch.compile(flex_attention, dynamic=False)
    return {
        "longspan": lambda q, k, v: banded_attention(q, k, v, window=(WINDOW, WINDOW)),
        "FlexAttention, compiled": lambda q, k, v: flex(q, k, v, block_mask=block_mask),
        "blocked bmm": blocked_bmm,
        "transformers' chunks": transformers_chunks(head_size),
        "dense SDPA, masked": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    }


def inputs_for(head_size: int, dtype: torch.dtype, requires_grad: bool = False):
    torch.manual_seed(0)
    return [torch.randn(1, HEADS, LENGTH, head_size).to(dtype).requires_grad_(requires_grad) for _ in range(3)]


def agree(results: dict, tolerance: float) -> None:
    ours = results["longspan"].float()
    for name, result in results.items():
        gap = (result.float() - ours).abs().max().item()
        if gap > tolerance:
            raise SystemExit(f"{name} differs from longspan by {gap:.1e}: nothing is timed on results that disagree")


def table(title: str, times: dict[str, float], operations: int, peak: float) -> None:
    print(f"\n{title}\n  {'':<26}{'ms':>9}{'ratio':>9}{'GFLOP/s':>10}{'of FMA peak':>13}")
    for name, milliseconds in times.items():
        rate = operations / milliseconds / 1e6
        ratio = f"{milliseconds / times['longspan']:.2f}x"
        print(f"  {name:<26}{milliseconds:>9.1f}{ratio:>9}{rate:>10.0f}{rate / peak:>13.0%}")


def forward(head_size: int, dtype: torch.dtype, rounds: int, peak: float) -> None:
    inputs = inputs_for(head_size, dtype)
    with torch.no_grad():
        calls = {name: lambda f=f: f(*inputs) for name, f in contenders(head_size).items()}
        agree({name: call() for name, call in calls.items()}, 2e-5 if dtype == torch.float32 else 3e-2)
        times = interleaved(calls, rounds)
    table(f"forward, {dtype}, head size {head_size}", times, useful_operations(LENGTH, WINDOW, head_size, 2), peak)


def forward_backward(head_size: int, rounds: int, peak: float) -> None:
    inputs = inputs_for(head_size, torch.float32, requires_grad=True)
    weight = torch.randn_like(inputs[0])
    functions = contenders(head_size)
    del functions["FlexAttention, compiled"]  # has no backward pass on the CPU

    def gradients(function):
        return torch.autograd.grad((function(*inputs) * weight).sum(), inputs)

    calls = {name: lambda f=f: gradients(f) for name, f in functions.items()}
    for index in range(3):
        agree({name: call()[index] for name, call in calls.items()}, 1e-4)
    times = interleaved(calls, rounds)
    title = f"forward + backward, float32, head size {head_size} (FlexAttention has no backward on the CPU)"
    table(title, times, useful_operations(LENGTH, WINDOW, head_size, 7), peak)


GROWTH = """
import sys, time, torch
from longspan.ops import banded_attention
from longspan.training.memory import PeakMemory
length, threads = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
inputs = [torch.randn(1, 2, length, 64, requires_grad=True) for _ in range(3)]
banded_attention(*[x[:, :, :256] for x in inputs], window=(256, 256)).sum().backward()
for x in inputs: x.grad = None
with PeakMemory() as memory:
    start = time.perf_counter()
    out = banded_attention(*inputs, window=(256, 256))
    middle = time.perf_counter()
    out.backward(torch.ones_like(out))
    end = time.perf_counter()
print(middle - start, end - middle, memory.mib)
"""


def growth(lengths: list[int], threads: int) -> None:
    print("\nlength alone, float32, 2 heads x 64 (each in a process of its own)")
    print(f"  {'tokens':>8}{'forward us/token':>18}{'backward us/token':>19}{'peak growth bytes/token':>25}")
    for length in lengths:
        run = subprocess.run(
            [sys.executable, "-c", GROWTH, str(length), str(threads)], capture_output=True, text=True, check=True
        )
        first, second, mebibytes = map(float, run.stdout.split())
        scale = 1e6 / length
        print(f"  {length:>8}{first * scale:>18.2f}{second * scale:>19.2f}{mebibytes * 2**20 / length:>25.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="head size 64 and lengths up to 16k only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(summary())
    if not HAS_EXTENSION:
        raise SystemExit("\nThe compiled kernels are not installed: there is nothing to measure.")
    peak = torch.ops.longspan.cpu_fma_peak()
    print(f"\n{options.threads} threads, {LENGTH} tokens, window {WINDOW} each side, {HEADS} heads, batch 1")
    print(f"float32 fused multiply-add peak measured here: {peak:.0f} GFLOP/s")
    head_sizes = [64] if options.quick else [64, 128]
    for head_size in head_sizes:
        forward(head_size, torch.float32, options.rounds, peak)
    forward(64, torch.bfloat16, options.rounds, peak)
    forward_backward(64, max(3, options.rounds // 2), peak)
    growth([4096, 16384] if options.quick else [4096, 16384, 65536, 262144], options.threads)


if __name__ == "__main__":
    main()
