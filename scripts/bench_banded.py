"""Banded attention against its peers, in one run: FlexAttention, dense SDPA, transformers' sliding chunks, blocked bmm.

    python scripts/bench_banded.py [--threads 2] [--rounds 7] [--quick]
    python scripts/bench_banded.py --device cuda      # and FlashAttention's window, where flash_attn is installed

First all results are compared (a peer that does not run here, or differs, is left out and named), then timed in turn,
round after round; medians are printed. Speed is time of the peer over ours. On the CPU the share of peak is useful
floating-point operations (visible pairs only) over the processor's fused multiply-add rate, measured here too; on a GPU
over the rate of a large matrix product in the same run.
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
from longspan.testing import has_kernel, interleaved

HEADS, LENGTH, WINDOW = 12, 4096, 256
GPU = "cuda"
BATCH = {"cpu": 1, GPU: 8}
IN_A_ROW = {"cpu": 1, GPU: 10}  # calls between two looks at the clock: on a GPU starting one hides behind the last
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def visible_pairs(length: int, window: int) -> int:
    return sum(min(length - 1, i + window) - max(0, i - window) + 1 for i in range(length))


def useful_operations(length: int, window: int, head_size: int, products: int) -> int:
    """Two operations per multiply-add of each product over the visible pairs (forward 2 products, backward 5)."""
    return 2 * products * HEADS * head_size * visible_pairs(length, window)


def product_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """GFLOP/s of a large matrix product on the GPU."""
    a, b = (torch.randn(size, size, device=GPU).to(dtype) for _ in range(2))
    (milliseconds,) = timed({"": lambda: a @ b}, 5, GPU).values()
    return 2 * size**3 / milliseconds / 1e6


def blocked_bmm(query, key, value):
    """Blocks of `window` queries against three windows of keys: the best that plain matrix products do."""
    B, H, T, D = query.shape
    count = T // WINDOW
    keys, values = (F.pad(x, (0, 0, WINDOW, WINDOW)).unfold(2, 3 * WINDOW, WINDOW) for x in (key, value))
    columns = torch.arange(3 * WINDOW, device=query.device) - WINDOW
    offset = columns - torch.arange(WINDOW, device=query.device)[:, None]
    place = torch.arange(count, device=query.device)[:, None, None] * WINDOW + columns
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


def flash_window():
    """FlashAttention's own window, where the package is installed."""
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None

    def attention(query, key, value):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return flash_attn_func(query, key, value, window_size=(WINDOW, WINDOW)).transpose(1, 2)

    return attention


def contenders(head_size: int, dtype: torch.dtype, device: str) -> dict:
    torch.compiler.reset()  # else the ninth kind of input would run FlexAttention uncompiled
    position = torch.arange(LENGTH, device=device)
    mask = (position - position[:, None]).abs() <= WINDOW
    block_mask = create_block_mask(
        lambda b, h, q, k: (q - k).abs() <= WINDOW, None, None, LENGTH, LENGTH, device=device
    )
    flex = torch.compile(flex_attention, dynamic=False)
    found = {
        "longspan": lambda q, k, v: banded_attention(q, k, v, window=(WINDOW, WINDOW)),
        "FlexAttention, compiled": lambda q, k, v: flex(q, k, v, block_mask=block_mask),
        "blocked bmm": blocked_bmm,
        "transformers' chunks": transformers_chunks(head_size),
        "dense SDPA, masked": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    }
    if device == GPU and dtype != torch.float32 and (flash := flash_window()):
        found["FlashAttention's window"] = flash
    return found


def inputs_for(head_size: int, dtype: torch.dtype, device: str, requires_grad: bool = False):
    torch.manual_seed(0)
    shape = (BATCH[device], HEADS, LENGTH, head_size)
    return [torch.randn(shape, device=device).to(dtype).requires_grad_(requires_grad) for _ in range(3)]


def agreeing(calls: dict, tolerance: float) -> dict:
    """Of calls that give a list of tensors: those that run here and agree with longspan, which is the first."""
    found, ours = {}, []
    for name, call in calls.items():
        try:
            results = [result.float() for result in call()]
        except Exception as error:
            if not found:
                raise
            reason = (str(error).splitlines() or [""])[0]
            print(f"  left out: {name}: {type(error).__name__}: {reason}")
            continue
        ours = ours or results
        gaps = [(a - b).abs().max().item() for a, b in zip(results, ours, strict=True)]
        if all(gap <= tolerance for gap in gaps):  # false for NaN
            found[name] = call
        else:
            print(f"  left out: {name} differs from longspan by {gaps}, more than {tolerance:.0e}")
    if list(found) in ([], ["longspan"]):
        raise SystemExit("longspan agrees with nobody (see above): nothing is timed on results that disagree")
    return found


def timed(calls: dict, rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds of each call."""

    def in_a_row(call):
        for _ in range(IN_A_ROW[device]):
            call()

    rows = {name: lambda call=call: in_a_row(call) for name, call in calls.items()}
    times = interleaved(rows, rounds, torch.cuda.synchronize if device == GPU else lambda: None)
    return {name: milliseconds / IN_A_ROW[device] for name, milliseconds in times.items()}


def table(title: str, times: dict[str, float], operations: int, peak: float) -> None:
    print(f"\n{title}\n  {'':<26}{'ms':>9}{'ratio':>9}{'GFLOP/s':>10}{'of peak':>10}")
    for name, milliseconds in times.items():
        rate = operations / milliseconds / 1e6
        ratio = f"{milliseconds / times['longspan']:.2f}x"
        print(f"  {name:<26}{milliseconds:>9.2f}{ratio:>9}{rate:>10.0f}{rate / peak:>10.0%}")


def forward(head_size: int, dtype: torch.dtype, device: str, rounds: int, peak: float) -> None:
    inputs = inputs_for(head_size, dtype, device)
    with torch.no_grad():
        functions = contenders(head_size, dtype, device)
        calls = agreeing({name: lambda f=f: [f(*inputs)] for name, f in functions.items()}, TOLERANCE[dtype])
        times = timed(calls, rounds, device)
    operations = BATCH[device] * useful_operations(LENGTH, WINDOW, head_size, 2)
    table(f"forward, {dtype}, head size {head_size}", times, operations, peak)


def forward_backward(head_size: int, dtype: torch.dtype, device: str, rounds: int, peak: float) -> None:
    inputs = inputs_for(head_size, dtype, device, requires_grad=True)
    weight = torch.randn_like(inputs[0])
    functions = contenders(head_size, dtype, device)
    note = ""
    if device == "cpu":
        del functions["FlexAttention, compiled"]
        note = " (FlexAttention has no backward on the CPU)"

    def gradients(function):
        return torch.autograd.grad((function(*inputs) * weight).sum(), inputs)

    calls = agreeing({name: lambda f=f: gradients(f) for name, f in functions.items()}, 5 * TOLERANCE[dtype])
    times = timed(calls, rounds, device)
    operations = BATCH[device] * useful_operations(LENGTH, WINDOW, head_size, 7)
    table(f"forward + backward, {dtype}, head size {head_size}{note}", times, operations, peak)


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


def growth_on_gpu(lengths: list[int]) -> None:
    print("\nlength alone, float16, 12 heads x 64, forward + backward")
    print(f"  {'tokens':>8}{'ns/token':>12}{'peak growth bytes/token':>25}")
    for length in lengths:
        shape = (1, HEADS, length, 64)
        inputs = [torch.randn(shape, device=GPU, dtype=torch.float16, requires_grad=True) for _ in range(3)]

        def step(inputs=inputs):
            return torch.autograd.grad(banded_attention(*inputs, window=(WINDOW, WINDOW)).sum(), inputs)

        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        (milliseconds,) = timed({"": step}, 5, GPU).values()
        growth = torch.cuda.max_memory_allocated() - before
        print(f"  {length:>8}{milliseconds * 1e6 / length:>12.1f}{growth / length:>25.0f}")


def on_gpu(rounds: int, quick: bool) -> None:
    size = f"{LENGTH} tokens, window {WINDOW} each side, {HEADS} heads, batch {BATCH[GPU]}"
    print(f"\n{torch.cuda.get_device_name()}, {size}")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        peak = product_rate(dtype)
        print(f"\n{dtype}: a large matrix product runs at {peak:.0f} GFLOP/s here")
        for head_size in [64] if quick else [64, 128]:
            forward(head_size, dtype, GPU, rounds, peak)
            forward_backward(head_size, dtype, GPU, rounds, peak)
    growth_on_gpu([4096, 16384] if quick else [4096, 16384, 65536, 262144])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=BATCH, default="cpu")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="head size 64 and lengths up to 16k only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(summary())
    if options.device == GPU:
        if not torch.cuda.is_available():
            raise SystemExit("\nThere is no GPU that this PyTorch can use: nothing to measure.")
        if not has_kernel("banded_attention", "CUDA"):
            raise SystemExit("\nThe CUDA kernels are not installed (see above): there is nothing to measure.")
        return on_gpu(options.rounds, options.quick)
    if not HAS_EXTENSION:
        raise SystemExit("\nThe compiled kernels are not installed: there is nothing to measure.")
    peak = torch.ops.longspan.cpu_fma_peak()
    print(f"\n{options.threads} threads, {LENGTH} tokens, window {WINDOW} each side, {HEADS} heads, batch 1")
    print(f"float32 fused multiply-add peak measured here: {peak:.0f} GFLOP/s")
    head_sizes = [64] if options.quick else [64, 128]
    for head_size in head_sizes:
        forward(head_size, torch.float32, "cpu", options.rounds, peak)
    forward(64, torch.bfloat16, "cpu", options.rounds, peak)
    forward_backward(64, torch.float32, "cpu", max(3, options.rounds // 2), peak)
    growth([4096, 16384] if options.quick else [4096, 16384, 65536, 262144], options.threads)


if __name__ == "__main__":
    main()
