"""LSH attention, and Reformer as a whole, against transformers' own, in one run.

    python scripts/bench_lsh.py [--threads 2] [--rounds 5] [--quick]

First all results are compared, then timed in turn, round after round; medians are printed. Speed is time of the peer
over ours. The core is everything between the projections: both get the same query-key vectors, values and buckets,
sort, attend and merge. The model has 2 LSH layers of 2 heads x 64, hidden size 256 and chunks of 64; both have the same
weights and rotations, no dropout, batch 1, float32. Memory is the growth of peak resident memory over the loaded
model, each figure taken in a process of its own.
"""

import argparse
import os
import subprocess
import sys
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.reformer.modeling_reformer import LocalSelfAttention, LSHSelfAttention

import longspan
from longspan.info import summary
from longspan.ops import HAS_EXTENSION, block_attention, lsh_attention, lsh_buckets
from longspan.testing import interleaved
from longspan.training.memory import PeakMemory

HEADS, HEAD_SIZE, CHUNK = 2, 64, 64
OURS, THEIRS = "longspan", "transformers"


def configuration(length: int, rounds: int) -> dict:
    return {
        "attn_layers": ["lsh", "lsh"],
        "hidden_size": 256,
        "num_attention_heads": HEADS,
        "attention_head_size": HEAD_SIZE,
        "feed_forward_size": 512,
        "lsh_attn_chunk_length": CHUNK,
        "local_attn_chunk_length": CHUNK,
        "num_hashes": rounds,
        "is_decoder": True,
        "axial_pos_shape": [length // 64, 64],
        "axial_pos_embds_dim": [64, 192],
        "max_position_embeddings": length,
        "vocab_size": 320,
        "hidden_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "hash_seed": 1,
        "use_cache": False,
    }


class Given(nn.Module):
    """A projection that returns what it was given."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = rows  # [1, T, H * D]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.rows


class Core:
    """The same inputs for both: query-key vectors, values ``[1, T, H * D]``, and buckets ``[1, H, R, T]``."""

    def __init__(self, length: int, rounds: int):
        torch.manual_seed(0)
        config = transformers.ReformerConfig(**configuration(length, rounds))
        self.query_key, self.value = (torch.randn(1, length, HEADS * HEAD_SIZE, requires_grad=True) for _ in range(2))
        self.layer: Any = LSHSelfAttention(config, layer_idx=0).eval()
        self.layer.query_key, self.layer.value = Given(self.query_key), Given(self.value)
        half = length // CHUNK
        self.rotations = torch.randn(HEADS, HEAD_SIZE, rounds, half)
        self.buckets = lsh_buckets(self.split(self.query_key), self.rotations, 2 * half)
        self.with_offsets = self.buckets + 2 * half * torch.arange(rounds)[:, None]
        self.layer.num_buckets = 2 * half
        self.local: Any = LocalSelfAttention(config, layer_idx=0).eval()
        self.local.query = self.local.key = Given(self.query_key)
        self.local.value = self.layer.value
        self.hidden = torch.zeros(1, length, 256)
        self.inputs = (self.query_key, self.value)

    @staticmethod
    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (HEADS, HEAD_SIZE)).transpose(1, 2)

    def ours(self) -> Tensor:
        out = lsh_attention(
            self.split(self.query_key), self.split(self.value), self.buckets, chunk_size=CHUNK, causal=True, wrap=True
        )
        return out.transpose(1, 2).flatten(2)

    def theirs(self) -> Tensor:
        return self.layer(self.hidden, num_hashes=self.buckets.shape[2], buckets=self.with_offsets).hidden_states

    def our_local(self) -> Tensor:
        query = self.split(self.query_key)
        out = block_attention(query, query, self.split(self.value), block_size=CHUNK, causal=True, wrap=True)
        return out.transpose(1, 2).flatten(2)

    def their_local(self) -> Tensor:
        return self.local(self.hidden).hidden_states

    def our_hash(self) -> Tensor:
        return lsh_buckets(self.split(self.query_key), self.rotations, self.layer.num_buckets)

    def their_hash(self) -> Tensor:
        return self.layer._hash_vectors(self.split(self.query_key), self.buckets.shape[2], None)


def agree(a: Tensor, b: Tensor, tolerance: float, rows: Tensor | None = None) -> None:
    gap = (a - b).abs()
    gap = (gap if rows is None else gap[rows]).max().item() / max(1.0, b.abs().max().item())
    if gap > tolerance:
        raise SystemExit(f"the results differ by {gap:.1e}: nothing is timed on results that disagree")


def line(label: str, ours: float, theirs: float, unit: str = "ms") -> None:
    print(f"  {label:<34}{ours:>10.1f}{theirs:>14.1f} {unit}{theirs / ours:>9.2f}x")


def bench_core(length: int, hashes: int, rounds: int) -> None:
    core = Core(length, hashes)
    weight = torch.randn(1, length, HEADS * HEAD_SIZE)
    with torch.no_grad():
        # Queries that find no key get 1.8 % of error from transformers in several rounds: its logits are near -1e5.
        _, lse = lsh_attention(
            core.split(core.query_key), core.split(core.value), core.buckets, chunk_size=CHUNK, causal=True, wrap=True,
            return_lse=True,
        )  # fmt: skip
        found = (lse > -torch.inf).transpose(1, 2)[0]  # [T, H]
        ours, theirs = (x.view(length, HEADS, HEAD_SIZE) for x in (core.ours(), core.theirs()))
        agree(ours, theirs, 2e-5, found)
        times = interleaved({OURS: core.ours, THEIRS: core.theirs}, rounds)
        agree(core.our_local(), core.their_local(), 2e-5)
        local = interleaved({OURS: core.our_local, THEIRS: core.their_local}, rounds)
        hashing = interleaved({OURS: core.our_hash, THEIRS: core.their_hash}, rounds)

    def gradients(function, retain=True):
        out = function()
        return lambda: torch.autograd.grad(out, core.inputs, weight, retain_graph=retain)

    backward = {OURS: gradients(core.ours), THEIRS: gradients(core.theirs)}
    for a, b in zip(backward[OURS](), backward[THEIRS](), strict=True):
        agree(a, b, 2e-2)  # the rows just named pass their error on
    times_backward = interleaved(backward, rounds)
    print(f"\nLSH attention core, {length} tokens, {hashes} rounds{'longspan':>14}{'transformers':>14}{'speed':>12}")
    line("forward (target 7x)", times[OURS], times[THEIRS])
    line("backward (target 3.5x)", times_backward[OURS], times_backward[THEIRS])
    line("hashing", hashing[OURS], hashing[THEIRS])
    line("local attention of the same chunks", local[OURS], local[THEIRS])


def build(name: str, length: int, hashes: int) -> nn.Module:
    torch.manual_seed(0)
    values = configuration(length, hashes)
    model = transformers.ReformerModel(transformers.ReformerConfig(**values))
    if name == OURS:
        state = model.state_dict()
        model = longspan.ReformerModel(longspan.ReformerConfig(**values, lsh_semantics="original"))
        model.load_state_dict(state)
    return model


def run_model(model: nn.Module, length: int, train: bool) -> Tensor:
    ids = torch.randint(2, 320, (1, length), generator=torch.Generator().manual_seed(1))
    if not train:
        with torch.no_grad():
            return model.eval()(ids).last_hidden_state
    model.train()
    model.zero_grad(set_to_none=True)
    out = model(ids).last_hidden_state
    out.sum().backward()
    return out.detach()


def peak(name: str, length: int, hashes: int, train: bool, threads: int) -> float:
    """MiB, from a process of its own."""
    command = [sys.executable, __file__, "--measure", name, str(length), str(hashes), str(int(train)), str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(name: str, length: str, hashes: str, train: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    model = build(name, int(length), int(hashes))
    if name == OURS:
        run_model(model, 1024, bool(int(train)))  # what is set up once is not counted
    with PeakMemory() as memory:
        run_model(model, int(length), bool(int(train)))
    print(memory.mib)


def bench_model(length: int, hashes: int, rounds: int, threads: int, targets: tuple[float, ...]) -> None:
    models = {name: build(name, length, hashes) for name in (OURS, THEIRS)}
    agree(run_model(models[OURS], length, False), run_model(models[THEIRS], length, False), 2e-2)
    print(f"\nReformerModel, {length} tokens, {hashes} rounds{'longspan':>20}{'transformers':>14}{'speed':>12}")
    for train, label, target in ((False, "forward", targets[0]), (True, "forward + backward", targets[1])):
        calls = {name: lambda m=model, t=train: run_model(m, length, t) for name, model in models.items()}
        times = interleaved(calls, max(2, rounds // 2))
        line(f"{label} (target {target}x)", times[OURS], times[THEIRS])
    for train, label, target in ((False, "forward", 0.65), (True, "forward + backward", 0.5)):
        ours, theirs = (peak(name, length, hashes, train, threads) for name in (OURS, THEIRS))
        print(f"  {'peak memory, ' + label:<34}{ours:>10.0f}{theirs:>14.0f} MiB{ours / theirs:>7.2f} (target {target})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="4096 tokens only")
    parser.add_argument("--core", action="store_true", help="without the models")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(*options.measure)
    torch.set_num_threads(options.threads)
    print(summary())
    if not HAS_EXTENSION:
        raise SystemExit("\nThe compiled kernels are not installed: there is nothing to measure.")
    for length in [4096] if options.quick else [4096, 16384]:
        for hashes in (2, 8):
            bench_core(length, hashes, options.rounds)
    if not options.core:
        bench_model(4096, 2, options.rounds, options.threads, (1.7, 1.5))
        bench_model(4096, 8, options.rounds, options.threads, (3.0, 2.4))
        if not options.quick:
            bench_model(16384, 2, options.rounds, options.threads, (1.7, 1.5))


if __name__ == "__main__":
    main()
