"""A step of generation under adaptive spans, against heads that all look as far as they may, and against GPT-2.

    python scripts/bench_span_generation.py [--tokens 8192] [--threads 1] [--rounds 5] [--quick]

Models have the shape of the paper's small one (12 layers of 8 heads, width 512), float32, random weights, one row of
context. Spans are those of no trained model, but like them: seven layers at the minimum, in each of the other five a
few long heads, 314 tokens on average with the ramp, as the paper's text8 model has. The step with a cache is compared
with the full pass first. Time is process time, of a step the least of several rounds; memory is what the
cache holds.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from longspan import AdaptiveSpanConfig, AdaptiveSpanForCausalLM
from longspan.info import summary

LONG_HEADS = [0, 50, 114, 250, 600, 1400, 3000, 0]  # tokens, of the upper five layers
STEPS = 8  # tokens in a measurement


def adaptive_model(spans: list[list[float]], **fields) -> AdaptiveSpanForCausalLM:
    """Random weights, given spans ``[layers][heads]`` in tokens."""
    torch.manual_seed(0)
    config = AdaptiveSpanConfig(num_hidden_layers=len(spans), num_attention_heads=len(spans[0]), **fields)
    model = AdaptiveSpanForCausalLM(config).eval()
    with torch.no_grad():
        for parameter, of_heads in zip(model.span_parameters(), spans, strict=True):
            parameter.copy_(torch.tensor(of_heads) / config.max_span)
    return model


def gpt2(layers: int, heads: int, width: int, positions: int) -> GPT2LMHeadModel:
    """GPT-2 of the same shape."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=205, n_layer=layers, n_head=heads, n_embd=width, n_inner=4 * width, n_positions=positions,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def held(cache) -> int:
    """Bytes of keys and values."""
    total = 0
    for layer in cache.layers:
        if hasattr(layer, "num_bytes"):
            total += layer.num_bytes
        else:
            total += sum(x.numel() * x.element_size() for x in (layer.keys, layer.values))
    return total


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Process time of ``work``, the least of ``rounds``."""
    taken = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def measure(model, ids: Tensor, rounds: int) -> dict[str, float]:
    """Time of the full pass and of a step in seconds, bytes of the cache, and how much step and full pass differ."""
    with torch.no_grad():
        context, last = ids[:, :-1], ids[:, -1:]
        begin = time.process_time()
        whole = model(ids, use_cache=False, logits_to_keep=1).logits
        full = time.process_time() - begin
        cache = model(context, use_cache=True, logits_to_keep=1).past_key_values
        size = held(cache)
        error = float((model(last, past_key_values=cache, use_cache=True).logits - whole).abs().max())

        def steps() -> None:
            for _ in range(STEPS):
                model(last, past_key_values=cache, use_cache=True)

        return {"full": full, "step": seconds(steps, rounds) / STEPS, "cache": size, "error": error}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=8192, help="of context")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small model, to see that this runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    width, longest, short = (64, 256, 1) if options.quick else (512, 8192, 7)
    scale = longest / 8192
    spans = [[0.0] * 8] * short + [[span * scale for span in LONG_HEADS]] * (2 if options.quick else 5)
    sizes = dict(hidden_size=width, intermediate_size=4 * width, max_span=longest)
    models = {
        "adaptive spans": lambda: adaptive_model(spans, **sizes),
        "all heads at the maximum": lambda: adaptive_model([[float(longest)] * 8] * len(spans), **sizes),
        "GPT-2": lambda: gpt2(len(spans), 8, width, options.tokens + STEPS * (options.rounds + 1) + 2),
    }
    ids = torch.randint(205, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    print(summary())
    figures = {}
    for name, make in models.items():
        figures[name] = one = measure(make(), ids, options.rounds)
        if one["error"] > 1e-3:
            raise SystemExit(f"{name}: step and full pass differ by {one['error']:.1e}: nothing to compare")
        print(
            f"{name:26} a step {one['step'] * 1e3:7.1f} ms   full pass {one['full'] * 1e3:8.0f} ms   "
            f"cache {one['cache'] / 2**20:7.1f} MiB"
        )
    ours = figures["adaptive spans"]
    for name, one in figures.items():
        if one is not ours:
            print(
                f"{name}: {one['step'] / ours['step']:.1f} times the time of a step, "
                f"{one['cache'] / ours['cache']:.1f} times the memory"
            )
    return figures


if __name__ == "__main__":
    main()
