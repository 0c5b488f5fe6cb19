"""Multi-dimensional attention against the same with all scores stored, in one run.

    python scripts/bench_multidim.py [--threads 2] [--rounds 5] [--quick]

The peer is the textbook form in PyTorch, as the original code computes it: sums of pairs, tanh, mask, softmax, product,
each a tensor [B, L, L, D]. Results and gradients are compared first, then timed in turn, round after round; medians are
printed. Speed is time of the peer over ours. 300 features, forward direction, float32, random inputs. Beside it stands
the operator's own PyTorch reference, which stores no scores either. Memory is the growth of peak resident memory over
inputs and output gradient, each figure taken in a process of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from longspan.info import summary
from longspan.ops import HAS_EXTENSION, multidim_attention
from longspan.ops.multidim import (
    DIRECTIONS,
    multidim_attention_backward_reference,
    multidim_attention_reference,
)
from longspan.training.memory import PeakMemory

FEATURES, SCALE = 300, 5.0
OURS, LOOP, STORED = "longspan", "PyTorch loop", "stored scores"
SEES = DIRECTIONS["forward"]

# name, sequences, tokens: single sequences, and the two levels of 8192 tokens in blocks of 26
CASES = [
    ("8 sequences of 64", 8, 64),
    ("4 sequences of 128", 4, 128),
    ("2 sequences of 256", 2, 256),
    ("1 sequence of 512", 1, 512),
    ("8192 tokens in blocks of 26", 316, 26),
    ("their 316 block vectors", 1, 316),
]


def random_inputs(sequences: int, length: int) -> tuple[list[Tensor], Tensor]:
    """Dependent, head, value and bias, and a gradient of the output."""
    torch.manual_seed(0)
    shape = (sequences, length, FEATURES)
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)] + [torch.randn(FEATURES, requires_grad=True)]
    return inputs, torch.randn(shape)


def ours(inputs: list[Tensor]) -> Tensor:
    dependent, head, value, bias = inputs
    return multidim_attention(dependent, head, value, bias, direction="forward", scale=SCALE)


def stored(inputs: list[Tensor]) -> Tensor:
    dependent, head, value, bias = inputs
    length = value.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril(-1)[..., None]
    scores = SCALE * torch.tanh((dependent[:, None] + head[:, :, None] + bias) / SCALE)
    weights = torch.softmax(scores.masked_fill(~visible, -1e30), 2) * visible  # a row that sees nothing becomes 0
    return (weights * value[:, None]).sum(2)


class Loop(torch.autograd.Function):
    """The operator's reference, whether kernels are installed or not."""

    @staticmethod
    def forward(ctx, dependent, head, value, bias):
        out, denominator = multidim_attention_reference(dependent, head, value, bias, None, *SEES, SCALE)
        ctx.save_for_backward(dependent, head, value, bias, out, denominator)
        return out

    @staticmethod
    def backward(ctx, grad_out):  # type: ignore[override]
        dependent, head, value, bias, out, denominator = ctx.saved_tensors
        return multidim_attention_backward_reference(
            grad_out, None, dependent, head, value, bias, out, denominator, None, *SEES, SCALE
        )


FORMS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    OURS: ours,
    LOOP: lambda inputs: Loop.apply(*inputs),  # type: ignore[return-value]
    STORED: stored,
}


def agree(inputs: list[Tensor], grad_out: Tensor) -> None:
    """Outputs and gradients of all forms, or nothing is timed."""
    results = {}
    for name, form in FORMS.items():
        out = form(inputs)
        results[name] = [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]
    for name in (OURS, LOOP):
        for got, wanted in zip(results[name], results[STORED], strict=True):
            gap = ((got - wanted).abs().max() / wanted.abs().max()).item()
            if gap > 2e-5:
                raise SystemExit(f"{name}: results differ by {gap:.1e}: nothing is timed on results that disagree")


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def bench(label: str, sequences: int, length: int, rounds: int) -> None:
    inputs, grad_out = random_inputs(sequences, length)
    agree(inputs, grad_out)
    forward, both = ({name: [] for name in FORMS} for _ in range(2))
    for _ in range(rounds):
        for name, form in FORMS.items():
            with torch.no_grad():
                forward[name].append(timed(lambda form=form: form(inputs)))
            both[name].append(timed(lambda form=form: torch.autograd.grad(form(inputs), inputs, grad_out)))
    for part, series in (("forward", forward), ("forward + backward", both)):
        times = {name: statistics.median(values) for name, values in series.items()}
        figures = "".join(f"{times[name]:>15.1f}" for name in FORMS)
        print(f"  {label:<29}{part:<19}{figures} ms{times[STORED] / times[OURS]:>8.1f}x")


def peak(name: str, sequences: int, length: int, threads: int) -> float:
    """MiB of a forward and backward pass, from a process of its own."""
    command = [sys.executable, __file__, "--measure", name, str(sequences), str(length), str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(name: str, sequences: str, length: str, threads: str) -> None:
    torch.set_num_threads(int(threads))

    def run(inputs: list[Tensor], grad_out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(FORMS[name](inputs), inputs, grad_out)

    run(*random_inputs(2, int(length)))  # what is set up once is not counted
    arguments = random_inputs(int(sequences), int(length))
    with PeakMemory() as memory:
        run(*arguments)
    print(memory.mib)


def bench_memory(threads: int) -> None:
    print("\nPeak memory, forward + backward, 8192 tokens in blocks of 26 (target for longspan: below 60 MiB)")
    for name in FORMS:
        print(f"  {name:<16}{peak(name, 316, 26, threads):>8.0f} MiB")
    print(f"  {'one score tensor':<16}{4 * FEATURES * (316 * 26**2 + 316**2) / 2**20:>8.0f} MiB, both levels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="up to 128 tokens, one round")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(*options.measure)
    torch.set_num_threads(options.threads)
    print(summary())
    if not HAS_EXTENSION:
        raise SystemExit("\nThe compiled kernels are not installed: there is nothing to measure.")
    print(f"\n{FEATURES} features, {options.threads} threads; target: forward + backward at least 6x")
    print(f"  {'':<48}" + "".join(f"{name:>15}" for name in FORMS) + f"{'speed':>12}")
    for label, sequences, length in CASES[:2] if options.quick else CASES:
        bench(label, sequences, length, 1 if options.quick else options.rounds)
    if not options.quick:
        bench_memory(options.threads)


if __name__ == "__main__":
    main()
