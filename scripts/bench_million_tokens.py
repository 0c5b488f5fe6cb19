"""One million tokens in one pass: forward and backward of a small Reformer over 2^20 bytes of real text.

    python scripts/bench_million_tokens.py [--lengths 65536 262144 1048576] [--layers 6] [--limit 20]

For each length, in a process of its own: time of the forward and of the backward pass, and the peak of resident memory,
everything included, with the bytes per token that it grew over the loaded model. Exit status 1 above ``--limit`` GiB.
One training step, batch 1, with dropout: reversible layers, feed-forward and loss some tokens at a time, matrix
products in bf16 where that is fast here.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import set_seed

from longspan.data.byte_windows import byte_offset, to_ids
from longspan.data.corpora import load_corpus
from longspan.data.packages import PackageUnavailable
from longspan.info import summary
from longspan.reformer import ReformerConfig, ReformerModelWithLMHead
from longspan.training.fine_tuning import has_fast_bf16
from longspan.training.memory import PeakMemory
from longspan.training.report import heading, table

GIB = 2.0**30


def main(argv: list[str] | None = None) -> dict[int, dict[str, float]]:
    options = parse(argv)
    if options.one:
        print(json.dumps(step(options, options.one)))
        return {}
    load_corpus("wikipedia")  # fetched and credited once, here
    config = configuration(options, max(options.lengths))
    print("\n".join(summary().splitlines()[:2]))
    heading(
        f"Layers {', '.join(config.attn_layers)}; width {config.hidden_size}, {config.num_attention_heads} heads of "
        f"{config.attention_head_size}, feed-forward {config.feed_forward_size}, chunks of "
        f"{config.lsh_attn_chunk_length}, {config.num_hashes} hash round(s)"
    )
    figures, rows = {}, []
    for length in options.lengths:
        figures[length] = one = in_own_process(options, length)
        rows.append(
            [
                f"2^{math.log2(length):.4g}",
                f"{one['forward']:.1f}",
                f"{one['backward']:.1f}",
                f"{1e6 * (one['forward'] + one['backward']) / length:.1f}",
                f"{one['peak'] / GIB:.2f}",
                "-" if one["growth"] is None else f"{one['growth'] / length:.0f}",
                f"{one['bits']:.2f}",
            ]
        )
    print(f"  matrix products in {'bf16' if options.bf16 else 'float32'}, streams in float32")
    header = ["tokens", "forward s", "backward s", "us/token", "peak GiB", "growth bytes/token", "bits/byte, untrained"]
    print(table(header, rows))
    peak = max(one["peak"] for one in figures.values()) / GIB
    print(f"\nLargest peak {peak:.2f} GiB of {options.limit:g} GiB allowed")
    if peak > options.limit:
        raise SystemExit(1)
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1 << 16, 1 << 18, 1 << 20], help="tokens (bytes)")
    parser.add_argument("--layers", type=int, default=6, help="local and LSH layers in turn")
    parser.add_argument("--hidden", type=int, default=256, help="width of each stream")
    parser.add_argument("--heads", type=int, default=2, help="heads of 64")
    parser.add_argument("--hashes", type=int, default=1, help="hash rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--bf16", type=int, default=int(has_fast_bf16()), help="1: matrix products in bf16, 0: float32")
    parser.add_argument("--limit", type=float, default=20.0, help="GiB of resident memory")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)  # measure this length, print the figures
    return parser.parse_args(argv)


def configuration(options: argparse.Namespace, length: int) -> ReformerConfig:
    """A small causal Reformer with positions on a grid: their tables grow with the root of the length."""
    side = 1 << -(-(length - 1).bit_length() // 2)
    return ReformerConfig(
        vocab_size=258,
        hidden_size=options.hidden,
        num_attention_heads=options.heads,
        attention_head_size=64,
        feed_forward_size=2 * options.hidden,
        attn_layers=[("local", "lsh")[layer % 2] for layer in range(options.layers)],
        num_hashes=options.hashes,
        axial_pos_shape=[side, side],
        axial_pos_embds_dim=[options.hidden // 4, options.hidden - options.hidden // 4],
        max_position_embeddings=side * side,
        chunk_size_feed_forward=1024,
        chunk_size_lm_head=4096,
        is_decoder=True,
    )


def in_own_process(options: argparse.Namespace, length: int) -> dict[str, float]:
    arguments = [f"--{key}={value}" for key, value in vars(options).items() if key not in ("lengths", "one")]
    command = [sys.executable, __file__, *arguments, f"--one={length}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"the process with {length} tokens ended with status {done.returncode} (-9: out of memory)")
    return json.loads(done.stdout.strip().splitlines()[-1])


def step(options: argparse.Namespace, length: int) -> dict[str, float | None]:
    """One training step: seconds, bytes, and the loss in bits."""
    torch.set_num_threads(options.threads)
    set_seed(0)
    config = configuration(options, length)
    model = ReformerModelWithLMHead(config).train()
    text = load_corpus("wikipedia").train
    if length > len(text):
        raise SystemExit(f"lengths must not exceed the text's {len(text)} bytes, got {length}")
    ids = to_ids(text[:length], byte_offset(config.vocab_size))[None]
    with PeakMemory() as memory:
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(options.bf16)):
            loss = model(input_ids=ids, labels=ids).loss
        between = time.perf_counter()
        loss.backward()
        ended = time.perf_counter()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    if missing:
        raise SystemExit(f"no finite gradient reached {', '.join(missing)}")
    return {
        "forward": between - began,
        "backward": ended - between,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "growth": None if memory.mib is None else memory.mib * 2**20,
        "bits": float(loss.detach()) / math.log(2),
    }


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
