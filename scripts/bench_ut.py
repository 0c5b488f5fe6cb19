"""What a Universal Transformer saves by computing active tokens alone, against the same loop over all tokens.

    python scripts/bench_ut.py [--threads 1] [--rounds 3] [--ponder 8.2] [--quick]

One training step (forward and backward pass) of the recurrent part at hidden size 512, 4096 tokens and up to 12
steps, with adaptive computation time as ``UniversalTransformerConfig.efficient()`` has it. New weights; the halting
unit's bias is set so that tokens halt after about ``--ponder`` steps in the mean. Both ways compute the same function
of the same weights: outputs, steps of each token and gradients are compared first, in float64 on two texts and in
float32 on what is timed. Then they run in turn, round after round; medians of process time are printed, which other
work on the machine disturbs less than wall-clock time.

*ideal* is the share of (token, step) pairs, padding included, in which a token is active: what the time could shrink
to. *measured* is the time of packed steps over that of dense ones. *activations* are the bytes that the backward pass
keeps, weights included.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan import UniversalTransformerConfig
from longspan.universal_transformer.stack_universal_transformer import StackCall, UniversalTransformerStack

WANTED = 0.85  # of the ideal ratio


@dataclass(frozen=True)
class Setting:
    """What is run: ``texts`` of up to ``length`` tokens, down to a third of it if ``ragged``."""

    name: str
    texts: int
    length: int
    causal: bool = False
    ragged: bool = False


SETTINGS = (
    Setting("encoder, 16 texts of 256 tokens", 16, 256),
    Setting("encoder, 16 texts of 85 to 256 tokens, padded", 16, 256, ragged=True),
    Setting("decoder, 4 texts of 1024 tokens", 4, 1024, causal=True),
)


@dataclass
class Inputs:
    """Embedded tokens ``[B, T, E]``, their mask ``[B, T]``, and the gradient of the output."""

    hidden: Tensor
    mask: Tensor | None
    grad: Tensor

    def first(self, texts: int) -> "Inputs":
        mask = None if self.mask is None else self.mask[:texts]
        return Inputs(self.hidden[:texts], mask, self.grad[:texts])


def make_inputs(setting: Setting, hidden_size: int) -> Inputs:
    torch.manual_seed(0)
    shape = (setting.texts, setting.length, hidden_size)
    mask = None
    if setting.ragged:
        lengths = torch.linspace(setting.length // 3, setting.length, setting.texts).long()
        mask = torch.arange(setting.length) < lengths[torch.randperm(setting.texts), None]
    grad = torch.randn(shape) if mask is None else torch.randn(shape) * mask[..., None]
    return Inputs(torch.randn(shape), mask, grad)


def make_stacks(options: argparse.Namespace, causal: bool) -> dict[str, UniversalTransformerStack]:
    """The same weights twice: computing active tokens alone, and all."""
    torch.manual_seed(1)
    stacks = {}
    for name in ("packed", "dense"):
        config = UniversalTransformerConfig.efficient(
            hidden_size=options.hidden,
            intermediate_size=4 * options.hidden,
            num_attention_heads=max(1, options.hidden // 64),
            num_recurrent_steps=options.steps,
            recurrence_options={"packed": name == "packed"},
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            activation_dropout_prob=0.0,
        )
        stacks[name] = UniversalTransformerStack(config, causal=causal).train()
    for parameter in stacks["packed"].parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_uniform_(parameter)
    torch.nn.init.normal_(halting_unit(stacks["packed"]).weight, std=0.2 * options.hidden**-0.5)
    stacks["dense"].load_state_dict(stacks["packed"].state_dict())
    return stacks


def halting_unit(stack: UniversalTransformerStack) -> Any:
    return stack.recurrence.halting


def run(stack: UniversalTransformerStack, inputs: Inputs, steps: int) -> tuple[Tensor, Any, int]:
    """Output, how tokens halted, and the number of steps done."""
    positions = torch.arange(inputs.hidden.shape[1])[None]
    call = StackCall(inputs.mask, positions, steps)
    out, _ = stack(inputs.hidden, call)
    return out, call.halting, len(call.halting_steps)


@dataclass
class Step:
    """What a training step came to: output at tokens, steps of each token, gradients, and bytes kept for them."""

    out: Tensor
    counts: Tensor
    done: int
    gradients: list[Tensor]
    kept: int


def train_step(stack: UniversalTransformerStack, inputs: Inputs, steps: int) -> Step:
    """Forward and backward pass, to the input and all parameters, with a ponder cost."""
    hidden, held = inputs.hidden.requires_grad_(), {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out, halting, done = run(stack, inputs, steps)
    loss = (out * inputs.grad).sum() + halting.remainders.sum()
    gradients = list(torch.autograd.grad(loss, [hidden, *stack.parameters()]))
    out = out.detach() if inputs.mask is None else out.detach() * inputs.mask[..., None]
    return Step(out, halting.n_updates, done, gradients, sum(held.values()))


@torch.no_grad()
def set_ponder(stacks: dict[str, UniversalTransformerStack], inputs: Inputs, target: float, steps: int) -> None:
    """Choose the bias of the halting unit by bisection, on a few texts."""
    few, low, high = inputs.first(4), -8.0, 4.0
    for _ in range(10):
        middle = (low + high) / 2
        for stack in stacks.values():
            halting_unit(stack).bias.fill_(middle)
        counts = run(stacks["packed"], few, steps)[1].n_updates
        real = torch.ones_like(counts, dtype=torch.bool) if few.mask is None else few.mask
        low, high = (low, middle) if counts[real].mean() < target else (middle, high)


def compare(found: dict[str, Step], tolerance: float) -> float:
    """Largest difference relative to the largest value, over outputs and gradients; exits beyond the tolerance."""
    ours, theirs = found["packed"], found["dense"]
    if not torch.equal(ours.counts, theirs.counts):
        sys.exit("tokens take different numbers of steps: nothing is timed on results that disagree")
    gap = 0.0
    for a, b in zip([ours.out, *ours.gradients], [theirs.out, *theirs.gradients], strict=True):
        gap = max(gap, ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item())
    if gap > tolerance:
        sys.exit(f"packed and dense differ by {gap:.1e}: nothing is timed on results that disagree")
    return gap


def measure(setting: Setting, options: argparse.Namespace) -> float:
    """Print one setting's figures; the share of the ideal that was reached."""
    stacks, inputs = make_stacks(options, setting.causal), make_inputs(setting, options.hidden)
    set_ponder(stacks, inputs, options.ponder, options.steps)
    doubled = {name: copy.deepcopy(stack).double() for name, stack in stacks.items()}
    few = inputs.first(2)
    few = Inputs(few.hidden.detach().double(), few.mask, few.grad.double())
    exact = compare({name: train_step(stack, few, options.steps) for name, stack in doubled.items()}, 1e-9)
    found = {name: train_step(stack, inputs, options.steps) for name, stack in stacks.items()}
    gap = compare(found, 1e-5)

    times: dict[str, list[float]] = {name: [] for name in stacks}
    for _ in range(options.rounds):
        for name, stack in stacks.items():
            start = time.process_time()
            train_step(stack, inputs, options.steps)
            times[name].append(time.process_time() - start)
    kept = {name: step.kept / 2**20 for name, step in found.items()}
    counts, done = found["packed"].counts, found["packed"].done
    real = torch.ones_like(counts, dtype=torch.bool) if inputs.mask is None else inputs.mask
    dense, packed = (statistics.median(times[name]) for name in ("dense", "packed"))
    ideal, measured = (counts.sum() / (done * counts.numel())).item(), packed / dense
    print(f"\n{setting.name}: {counts.numel()} tokens, {int(counts.numel() - real.sum())} of them padding")
    print(f"  ponder time {counts[real].mean():.1f} +- {counts[real].std():.1f} of {done} steps")
    print(f"  packed = dense to {exact:.0e} in float64, {gap:.0e} in float32, gradients included")
    print(f"  {'':<8}{'seconds':>9}{'activations, MiB':>19}")
    for name, seconds in (("dense", dense), ("packed", packed)):
        print(f"  {name:<8}{seconds:>9.2f}{kept[name]:>19.0f}")
    reached = (1 / measured) / (1 / ideal)
    print(f"  ratio: ideal {ideal:.3f}, measured {measured:.3f}: {1 / measured:.2f}x of at most {1 / ideal:.2f}x "
          f"({reached:.0%})")  # fmt: skip
    return reached


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ponder", type=float, default=8.2, help="mean number of steps of a token")
    parser.add_argument("--steps", type=int, default=12, help="the most steps")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--quick", action="store_true", help="texts of an eighth of the length")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, hidden size {options.hidden}, "
          f"up to {options.steps} steps, float32")  # fmt: skip
    reached = {}
    for setting in SETTINGS:
        if options.quick:
            setting = Setting(setting.name, setting.texts, setting.length // 8, setting.causal, setting.ragged)
        reached[setting.name] = measure(setting, options)
    worst = min(reached.values())
    print(f"\nleast share of the ideal speed: {worst:.0%} (wanted: {WANTED:.0%})")
    return reached


if __name__ == "__main__":
    main()
